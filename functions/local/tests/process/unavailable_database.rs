//! An external database that is unreachable, comes up and goes down.

use agent_service::proto::agent_v1::{ChatResponse, FinishReason};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt as _;

use crate::{
    external_database::{DatabaseProxy, ExternalDatabase},
    process::{Sandbox, within_timeout},
    server::{full_text, joined_deltas, query, question},
};

fn recall_failed(frames: &[ChatResponse]) -> bool {
    frames.iter().any(|frame| frame.metadata.get("recall").is_some_and(|recall| recall == "failed"))
}

#[tokio::test]
async fn server_without_database_answers_and_reports_not_serving() {
    let sandbox = Sandbox::new();
    let proxy = DatabaseProxy::new();
    let server = sandbox.start_listening(&[("DATABASE_URL", &proxy.unreachable_url())]).await;
    assert!(server.process.stdout.so_far().contains("memory     Postgres at DATABASE_URL"));
    assert_eq!(server.health().await.next().await, Some(ServingStatus::NotServing));
    server.process.stderr.line("the database is not ready").await;

    let (answer, mut client) = (server.chat(question("hello")).await, server.agent().await);
    // Each waits some seconds for a connection to the database.
    let (frames, rejected) =
        tokio::join!(answer.rest(), within_timeout("a refusal", client.retrieve_memory(query("anything"))));
    let frames = frames.unwrap();
    assert!(recall_failed(&frames), "{frames:?}");
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
    assert_eq!(full_text(&frames), joined_deltas(&frames));

    let rejected = rejected.unwrap_err();
    assert_eq!(rejected.code(), Code::Unavailable);
    let retry = rejected.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()), "{retry:?}");
    assert!(!sandbox.data().exists(), "an embedded database was created");
}

#[tokio::test]
async fn health_follows_database_availability() {
    let external = ExternalDatabase::new().await;
    let sandbox = Sandbox::new();
    let mut proxy = DatabaseProxy::new();
    let server = sandbox.start_listening(&[("DATABASE_URL", &external.url(&proxy)), ("LEARNING", "off")]).await;
    let mut health = server.health().await;
    health.wait_for_status(ServingStatus::NotServing).await;
    for round in 0..2 {
        external.connect_through(&mut proxy);
        health.wait_for_status(ServingStatus::Serving).await;
        server.remember(&format!("round {round}")).await;
        let frames = server.chat(question("hello")).await.rest().await.unwrap();
        assert!(!recall_failed(&frames), "{frames:?}");
        proxy.close();
        health.wait_for_status(ServingStatus::NotServing).await;
    }
    external.connect_through(&mut proxy);
    health.wait_for_status(ServingStatus::Serving).await;
    assert_eq!(server.remembered().await, ["round 0", "round 1"]);
    server.process.stop().await;
    external.end().await;
}
