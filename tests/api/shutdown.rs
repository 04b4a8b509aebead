//! Graceful shutdown: streams drain within the grace period.

use agent_service::proto::agent_v1 as pb;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{TEST_TIMEOUT, TestServer, ask, assert_contract, error_of, open_stream, outline};

async fn join(mut server: TestServer) {
    let serving = server.serving.take().unwrap();
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("the server does not stop").unwrap();
}

async fn stop_during_answer(
    server: &TestServer,
    question: &str,
    when: fn(&[pb::ChatResponse]) -> bool,
) -> Vec<pb::ChatResponse> {
    let mut stream = open_stream(server, ask(question)).await;
    let mut frames = Vec::new();
    while let Some(frame) = stream.message().await.unwrap() {
        frames.push(frame);
        if when(&frames) {
            server.stop.cancel();
        }
    }
    assert_contract(&frames);
    frames
}

#[tokio::test]
async fn streams_finish_within_the_grace_period() {
    let server = TestServer::start(&[("DEMO_CHUNK_DELAY_MS", "2"), ("SHUTDOWN_GRACE_SECONDS", "60")]).await;
    let frames = stop_during_answer(&server, "帮我制定高数复习计划", |frames| frames.len() == 6).await;
    assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Stop);
    join(server).await;
}

#[tokio::test]
async fn streams_beyond_the_grace_period_end_with_retryable_error() {
    let variables = [("DEMO_CHUNK_DELAY_MS", "3600000"), ("SHUTDOWN_GRACE_SECONDS", "0.05")];
    let server = TestServer::start(&variables).await;
    let frames = stop_during_answer(&server, "hi", |frames| outline(frames).contains(&"delta")).await;
    assert_eq!(outline(&frames), ["THINKING", "SEARCHING", "GENERATING", "delta", "usage", "error"]);
    let error = error_of(&frames);
    assert_eq!((error.code.as_str(), error.retryable), ("SERVER_SHUTTING_DOWN", true));
    let address = server.address;
    join(server).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the listener is still open");
}

#[tokio::test]
async fn health_watch_does_not_delay_shutdown() {
    let server = TestServer::start(&[("SHUTDOWN_GRACE_SECONDS", "3600")]).await;
    let mut client = HealthClient::new(server.channel.clone());
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    server.stop.cancel();
    join(server).await;
}
