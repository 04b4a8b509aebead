//! Signals and graceful shutdown.

use agent_service::proto::agent_v1::{ChatResponse, ErrorCode, FinishReason, chat_response::Content};
use tokio::net::TcpStream;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    external_database::{DatabaseProxy, ExternalDatabase},
    process::{LONG_GRACE_PERIOD, MAX_DELAY_MS, Sandbox, Signal, eventually, kill},
    server::{ChatStream, Server, full_text, is_delta, joined_deltas, question_without_memory},
};

const STOPPING_MESSAGE: &str = "a second signal ends at once";
/// An answer with no second chunk within a test.
const ENDLESS_ANSWER: (&str, &str) = ("DEMO_CHUNK_DELAY_MS", MAX_DELAY_MS);

async fn without_database(sandbox: &Sandbox, variables: &[(&str, &str)]) -> (Server, DatabaseProxy, String) {
    let proxy = DatabaseProxy::new();
    let url = proxy.unreachable_url();
    let variables = [variables, &[("DATABASE_URL", url.as_str())]].concat();
    (sandbox.start_listening(&variables).await, proxy, url)
}

async fn start_stream(server: &Server) -> (ChatStream, Vec<ChatResponse>) {
    let mut answer = server.chat(question_without_memory("帮我制定高数复习计划")).await;
    let frames = answer.until(is_delta).await;
    (answer, frames)
}

#[tokio::test]
async fn sigterm_sigint_and_sigquit_stop_server_and_postgres_with_code_0() {
    let sandbox = Sandbox::new();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let server = sandbox.start_serving(&[]).await;
        assert!(sandbox.postmaster().is_some());
        server.process.signal(signal);
        let output = server.process.wait_for_success().await;
        assert!(output.stderr.contains("stopped"), "{}", output.stderr);
        assert_eq!(sandbox.postmaster(), None, "{}", output.stderr);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn unresponsive_postgres_process_is_killed_at_shutdown() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    // As with a hanging disk: a graceful shutdown of Postgres waits for the checkpoint.
    let deaf = sandbox.checkpointer();
    kill(deaf, Signal::STOP);
    server.process.signal(Signal::TERM);
    server.process.wait_for_success().await;
    assert_eq!(sandbox.postmaster(), None);
    assert!(!std::path::Path::new(&format!("/proc/{deaf}")).exists());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn embedded_postgres_accepts_no_connection_while_it_stops() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let socket = sandbox.data().join("socket/.s.PGSQL.5432");
    drop(tokio::net::UnixStream::connect(&socket).await.unwrap());
    let checkpointer = sandbox.checkpointer();
    kill(checkpointer, Signal::STOP);
    server.process.signal(Signal::TERM);
    eventually("only the checkpointer is left", async || sandbox.postmaster_children() == [checkpointer]).await;
    // Postgres would wait for it until it sends something.
    let begun = tokio::net::UnixStream::connect(&socket).await;
    kill(checkpointer, Signal::CONT);
    let output = server.process.wait_for_success().await;
    assert!(begun.is_err(), "{begun:?}");
    assert!(!output.stderr.contains("Postgres has not ended yet"), "{}", output.stderr);
    assert_eq!(sandbox.postmaster(), None, "{}", output.stderr);
}

#[tokio::test]
async fn idle_connections_and_health_watch_do_not_delay_shutdown() {
    let sandbox = Sandbox::new();
    // A delay would last the whole grace period, beyond the test timeout.
    let (server, ..) = without_database(&sandbox, &[LONG_GRACE_PERIOD]).await;
    let _idle = server.channel().await;
    let mut health = server.health().await;
    assert_eq!(health.next().await, Some(ServingStatus::NotServing));
    server.process.stop().await;
    while let Some(status) = health.next().await {
        assert_eq!(status, ServingStatus::NotServing);
    }
}

#[tokio::test]
async fn running_stream_finishes_within_grace_period() {
    let sandbox = Sandbox::new();
    let (server, ..) = without_database(&sandbox, &[("DEMO_CHUNK_DELAY_MS", "10"), LONG_GRACE_PERIOD]).await;
    let (answer, mut frames) = start_stream(&server).await;
    server.process.signal(Signal::TERM);
    server.process.stderr.line(STOPPING_MESSAGE).await;
    frames.extend(answer.rest().await.unwrap());
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
    assert_eq!(full_text(&frames), joined_deltas(&frames));
    server.process.wait_for_success().await;
}

#[tokio::test]
async fn sighup_without_tls_changes_nothing() {
    let sandbox = Sandbox::new();
    let debug = ("RUST_LOG", "info,agent_service=debug");
    let (server, ..) = without_database(&sandbox, &[("DEMO_CHUNK_DELAY_MS", "1"), debug]).await;
    let (answer, mut frames) = start_stream(&server).await;
    server.process.signal(Signal::HUP);
    server.process.stderr.line("no TLS certificate to reload").await;
    frames.extend(answer.rest().await.unwrap());
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
    start_stream(&server).await;
    server.process.stop().await;
}

#[tokio::test]
async fn sigquit_drains_streams_as_sigterm_does() {
    let sandbox = Sandbox::new();
    let (server, ..) = without_database(&sandbox, &[("DEMO_CHUNK_DELAY_MS", "10"), LONG_GRACE_PERIOD]).await;
    let (answer, mut frames) = start_stream(&server).await;
    server.process.signal(Signal::QUIT);
    server.process.stderr.line(STOPPING_MESSAGE).await;
    frames.extend(answer.rest().await.unwrap());
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
    server.process.wait_for_success().await;
}

#[tokio::test]
async fn stream_beyond_grace_period_ends_with_retryable_error() {
    let sandbox = Sandbox::new();
    let (server, ..) = without_database(&sandbox, &[ENDLESS_ANSWER, ("SHUTDOWN_GRACE_SECONDS", "0.2")]).await;
    let (answer, _) = start_stream(&server).await;
    server.process.signal(Signal::TERM);
    // The status of the call is OK; the error is in the last frame.
    let rest = answer.rest().await.unwrap();
    let [usage, last] = &rest[..] else { panic!("{rest:?}") };
    assert!(matches!(&usage.content, Some(Content::Usage(usage)) if usage.completion_tokens > 0), "{usage:?}");
    assert_eq!(usage.finish_reason(), FinishReason::Null);
    assert_shutting_down(last);
    server.process.wait_for_success().await;
}

#[tokio::test]
async fn stream_without_deltas_has_no_usage_after_grace_period() {
    let sandbox = Sandbox::new();
    let thinking = ("DEMO_THINKING_DELAY_MS", MAX_DELAY_MS);
    let (server, ..) = without_database(&sandbox, &[thinking, ("SHUTDOWN_GRACE_SECONDS", "0")]).await;
    let mut answer = server.chat(question_without_memory("hello")).await;
    answer.until(|_| true).await;
    server.process.signal(Signal::TERM);
    let rest = answer.rest().await.unwrap();
    let [last] = &rest[..] else { panic!("{rest:?}") };
    assert_shutting_down(last);
    assert_eq!(server.process.wait().await.code, Some(0));
}

fn assert_shutting_down(frame: &ChatResponse) {
    assert_eq!(frame.finish_reason(), FinishReason::Error);
    let Some(Content::Error(error)) = &frame.content else { panic!("{frame:?}") };
    assert_eq!((error.code.as_str(), error.error_code()), ("SERVER_SHUTTING_DOWN", ErrorCode::Unavailable));
    assert!(error.retryable && !error.message.is_empty(), "{error:?}");
}

#[tokio::test]
async fn signal_stops_serving_and_refuses_new_connections() {
    let (sandbox, server) = Sandbox::with_server(&[ENDLESS_ANSWER, LONG_GRACE_PERIOD]).await;
    let mut health = server.health().await;
    health.wait_for_status(ServingStatus::Serving).await;
    let (_answer, _) = start_stream(&server).await;
    server.process.signal(Signal::TERM);
    health.wait_for_status(ServingStatus::NotServing).await;
    let port = server.port();
    eventually("connections are refused", || async move {
        TcpStream::connect(("127.0.0.1", port)).await.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    })
    .await;
    // The stream is still open, and the database runs.
    assert!(sandbox.postmaster().is_some());
}

#[tokio::test]
async fn second_signal_stops_server_immediately() {
    let (sandbox, server) = Sandbox::with_server(&[ENDLESS_ANSWER, LONG_GRACE_PERIOD]).await;
    let (_answer, _) = start_stream(&server).await;
    let _health = server.health().await;
    server.process.signal(Signal::INT);
    server.process.stderr.line(STOPPING_MESSAGE).await;
    server.process.signal(Signal::INT);
    let output = server.process.wait().await;
    assert_eq!(output.code, Some(130), "{output:?}");
    assert_eq!(sandbox.postmaster(), None, "Postgres was not shut down gracefully");
}

#[tokio::test]
async fn signal_during_first_start_stops_it_cleanly() {
    let sandbox = Sandbox::new();
    for step in ["Unpacking", "Creating an empty database"] {
        let server = sandbox.start_listening(&[]).await;
        server.process.stdout.line(step).await;
        server.process.signal(Signal::INT);
        server.process.wait_for_success().await;
        assert_eq!(sandbox.postmaster(), None);
        if step == "Unpacking" {
            // Started steps are finished: without this the next round would skip unpacking.
            std::fs::remove_dir_all(sandbox.data()).unwrap();
        }
    }
    sandbox.start_serving(&[]).await.remember("works").await;
}

#[tokio::test]
async fn database_ready_during_shutdown_does_not_resume_serving() {
    let external = ExternalDatabase::new().await;
    let sandbox = Sandbox::new();
    let mut proxy = DatabaseProxy::new();
    let url = external.url(&proxy);
    let server = sandbox.start_listening(&[ENDLESS_ANSWER, LONG_GRACE_PERIOD, ("DATABASE_URL", &url)]).await;
    let (_answer, _) = start_stream(&server).await;
    let mut health = server.health().await;
    assert_eq!(health.next().await, Some(ServingStatus::NotServing));
    server.process.signal(Signal::TERM);
    server.process.stderr.line(STOPPING_MESSAGE).await;
    external.connect_through(&mut proxy);
    server.process.stderr.line("the database is ready").await;
    // A later check of the database proves that the result of the first was handled.
    proxy.close();
    server.process.stderr.line("the database cannot be reached").await;
    server.process.signal(Signal::TERM);
    while let Some(status) = health.next().await {
        assert_eq!(status, ServingStatus::NotServing);
    }
    drop(server);
    external.end().await;
}
