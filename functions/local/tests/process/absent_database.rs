//! A database elsewhere that is not there, comes up and goes down.

use agent_service::proto::agent_v1::{ChatResponse, FinishReason};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt as _;

use crate::{
    database::{Elsewhere, Gate},
    server::{Home, full_text, query, question, soon, typed},
};

fn recall_failed(frames: &[ChatResponse]) -> bool {
    frames.iter().any(|frame| frame.metadata.get("recall").is_some_and(|recall| recall == "failed"))
}

#[tokio::test]
async fn without_its_database_the_server_is_not_serving_but_answers_and_says_what_is_missing() {
    let home = Home::new();
    let gate = Gate::new();
    let server = home.listening(&[("DATABASE_URL", &gate.dead_url())]).await;
    assert!(server.process.stdout.so_far().contains("memory     Postgres at DATABASE_URL"));
    assert_eq!(server.health().await.next().await, Some(ServingStatus::NotServing));
    server.process.stderr.line("the database is not ready").await;

    let (answer, mut client) = (server.chat(question("hello")).await, server.agent().await);
    // Each of them waits for a connection to the database for some seconds.
    let (frames, refused) = tokio::join!(answer.rest(), soon("a refusal", client.retrieve_memory(query("anything"))));
    let frames = frames.unwrap();
    assert!(recall_failed(&frames), "{frames:?}");
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
    assert_eq!(full_text(&frames), typed(&frames));

    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let retry = refused.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()), "{retry:?}");
    assert!(!home.data().exists(), "no database of its own is made");
}

#[tokio::test]
async fn the_health_follows_the_database_down_and_up() {
    let elsewhere = Elsewhere::new().await;
    let home = Home::new();
    let mut gate = Gate::new();
    let server = home.listening(&[("DATABASE_URL", &elsewhere.url(&gate)), ("LEARNING", "off")]).await;
    let mut health = server.health().await;
    health.becomes(ServingStatus::NotServing).await;
    for round in 0..2 {
        elsewhere.behind(&mut gate);
        health.becomes(ServingStatus::Serving).await;
        server.remember(&format!("round {round}")).await;
        let frames = server.chat(question("hello")).await.rest().await.unwrap();
        assert!(!recall_failed(&frames), "{frames:?}");
        gate.close();
        health.becomes(ServingStatus::NotServing).await;
    }
    elsewhere.behind(&mut gate);
    health.becomes(ServingStatus::Serving).await;
    assert_eq!(server.remembered().await, ["round 0", "round 1"]);
    server.process.stop().await;
    elsewhere.end().await;
}
