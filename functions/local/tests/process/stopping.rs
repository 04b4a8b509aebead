//! Signals: an orderly end, and how long it may take.

use agent_service::proto::agent_v1::{ChatResponse, ErrorCode, FinishReason, chat_response::Content};
use tokio::net::TcpStream;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    database::{Elsewhere, Gate},
    server::{
        Answer, FOR_EVER_MS, Home, LONG_GRACE, Server, Signal, eventually, full_text, is_delta, kill,
        question_without_memory, typed,
    },
};

const STOPPING: &str = "a second signal ends at once";
/// An answer whose first chunk is its last for the time of a test.
const ENDLESS: (&str, &str) = ("DEMO_CHUNK_DELAY_MS", FOR_EVER_MS);

/// A server that needs no database, hence starts at once.
async fn without_database(home: &Home, variables: &[(&str, &str)]) -> (Server, Gate, String) {
    let gate = Gate::new();
    let url = gate.dead_url();
    let variables = [variables, &[("DATABASE_URL", url.as_str())]].concat();
    (home.listening(&variables).await, gate, url)
}

/// An answer that has begun to be typed, and what has arrived of it.
async fn begun(server: &Server) -> (Answer, Vec<ChatResponse>) {
    let mut answer = server.chat(question_without_memory("帮我制定高数复习计划")).await;
    let frames = answer.until(is_delta).await;
    (answer, frames)
}

#[tokio::test]
async fn sigterm_and_sigint_end_the_server_and_its_postgres_with_exit_code_0() {
    let home = Home::new();
    for signal in [Signal::TERM, Signal::INT] {
        let server = home.serving(&[]).await;
        assert!(home.postmaster().is_some());
        server.process.signal(signal);
        let ended = server.process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stderr.contains("stopped"), "{}", ended.stderr);
        assert_eq!(home.postmaster(), None);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_part_of_postgres_that_hears_of_no_end_is_not_left_behind() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let postmaster = home.postmaster().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let writes_checkpoints = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("checkpointer"))
    };
    let deaf = children.split_whitespace().find(writes_checkpoints).unwrap().parse().unwrap();
    // As a disk does that does not answer: a shutdown in order waits for its checkpoint.
    kill(deaf, Signal::STOP);
    server.process.signal(Signal::TERM);
    let ended = server.process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(home.postmaster(), None);
    assert!(!std::path::Path::new(&format!("/proc/{deaf}")).exists());
}

#[tokio::test]
async fn idle_connections_and_a_watcher_of_the_health_do_not_delay_the_end() {
    let home = Home::new();
    // If they did, the end would take the whole grace.
    let (server, ..) = without_database(&home, &[LONG_GRACE]).await;
    let _idle = server.channel().await;
    let mut health = server.health().await;
    assert_eq!(health.next().await, Some(ServingStatus::NotServing));
    server.process.stop().await;
    while let Some(status) = health.next().await {
        assert_eq!(status, ServingStatus::NotServing);
    }
}

#[tokio::test]
async fn a_stream_under_way_is_finished_within_the_grace() {
    let home = Home::new();
    let (server, ..) = without_database(&home, &[("DEMO_CHUNK_DELAY_MS", "10"), LONG_GRACE]).await;
    let (answer, mut frames) = begun(&server).await;
    server.process.signal(Signal::TERM);
    server.process.stderr.line(STOPPING).await;
    frames.extend(answer.rest().await.unwrap());
    assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Stop);
    assert_eq!(full_text(&frames), typed(&frames));
    let ended = server.process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test]
async fn a_stream_that_outlasts_the_grace_ends_with_usage_and_an_error_that_says_try_again() {
    let home = Home::new();
    let (server, ..) = without_database(&home, &[ENDLESS, ("SHUTDOWN_GRACE_SECONDS", "0.2")]).await;
    let (answer, _) = begun(&server).await;
    server.process.signal(Signal::TERM);
    // The call itself ends OK: clients read the error from the frame.
    let rest = answer.rest().await.unwrap();
    let [usage, last] = &rest[..] else { panic!("{rest:?}") };
    assert!(matches!(&usage.content, Some(Content::Usage(usage)) if usage.completion_tokens > 0), "{usage:?}");
    assert_eq!(usage.finish_reason(), FinishReason::Null);
    assert_shutting_down(last);
    let ended = server.process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test]
async fn a_stream_that_has_typed_nothing_when_the_grace_is_over_has_no_usage() {
    let home = Home::new();
    let thinking = ("DEMO_THINKING_DELAY_MS", FOR_EVER_MS);
    let (server, ..) = without_database(&home, &[thinking, ("SHUTDOWN_GRACE_SECONDS", "0")]).await;
    let mut answer = server.chat(question_without_memory("hello")).await;
    answer.until(|_| true).await;
    server.process.signal(Signal::TERM);
    let rest = answer.rest().await.unwrap();
    let [last] = &rest[..] else { panic!("{rest:?}") };
    assert_shutting_down(last);
    assert_eq!(server.process.ended().await.code, Some(0));
}

fn assert_shutting_down(frame: &ChatResponse) {
    assert_eq!(frame.finish_reason(), FinishReason::Error);
    let Some(Content::Error(error)) = &frame.content else { panic!("{frame:?}") };
    assert_eq!((error.code.as_str(), error.error_code()), ("SERVER_SHUTTING_DOWN", ErrorCode::Unavailable));
    assert!(error.retryable && !error.message.is_empty(), "{error:?}");
}

#[tokio::test]
async fn at_the_signal_the_health_becomes_not_serving_and_new_connections_are_refused() {
    let home = Home::new();
    let server = home.serving(&[ENDLESS, LONG_GRACE]).await;
    let mut health = server.health().await;
    health.becomes(ServingStatus::Serving).await;
    let (_answer, _) = begun(&server).await;
    server.process.signal(Signal::TERM);
    health.becomes(ServingStatus::NotServing).await;
    let port = server.port();
    eventually("connections are refused", || async move {
        TcpStream::connect(("127.0.0.1", port)).await.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    })
    .await;
    // The stream is still open and its database still runs.
    assert!(home.postmaster().is_some());
}

#[tokio::test]
async fn a_second_signal_ends_the_server_at_once_whatever_is_open() {
    let home = Home::new();
    let server = home.serving(&[ENDLESS, LONG_GRACE]).await;
    let (_answer, _) = begun(&server).await;
    let _health = server.health().await;
    server.process.signal(Signal::INT);
    server.process.stderr.line(STOPPING).await;
    server.process.signal(Signal::INT);
    let ended = server.process.ended().await;
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert_eq!(home.postmaster(), None, "Postgres is stopped in order all the same");
}

#[tokio::test]
async fn a_signal_in_the_middle_of_the_first_start_ends_it_and_does_no_harm() {
    let home = Home::new();
    for step in ["Unpacking", "Making an empty database"] {
        let server = home.listening(&[]).await;
        server.process.stdout.line(step).await;
        server.process.signal(Signal::INT);
        let ended = server.process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(home.postmaster(), None);
        if step == "Unpacking" {
            // Begun steps are finished, so the next round begins anew only without them.
            std::fs::remove_dir_all(home.data()).unwrap();
        }
    }
    home.serving(&[]).await.remember("works").await;
}

#[tokio::test]
async fn a_database_that_comes_up_while_the_server_stops_does_not_make_it_serving() {
    let elsewhere = Elsewhere::new().await;
    let home = Home::new();
    let mut gate = Gate::new();
    let url = elsewhere.url(&gate);
    let server = home.listening(&[ENDLESS, LONG_GRACE, ("DATABASE_URL", &url)]).await;
    let (_answer, _) = begun(&server).await;
    let mut health = server.health().await;
    assert_eq!(health.next().await, Some(ServingStatus::NotServing));
    server.process.signal(Signal::TERM);
    server.process.stderr.line(STOPPING).await;
    elsewhere.behind(&mut gate);
    server.process.stderr.line("the database is ready").await;
    // A later check of the database comes after what the first one led to.
    gate.close();
    server.process.stderr.line("the database can not be reached").await;
    server.process.signal(Signal::TERM);
    while let Some(status) = health.next().await {
        assert_eq!(status, ServingStatus::NotServing);
    }
    drop(server);
    elsewhere.end().await;
}
