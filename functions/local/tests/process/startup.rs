//! First and later starts, and the banner.

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    process::{Sandbox, within_timeout},
    server::Server,
};

const ONCE: [&str; 2] = ["Unpacking the embedded Postgres", "Creating an empty database"];
const ALWAYS: [&str; 2] = ["Starting the database", "Ready."];

#[tokio::test]
async fn only_first_start_unpacks_postgres() {
    let sandbox = Sandbox::new();
    let first = sandbox.start_listening(&[]).await;
    first.process.stdout.line("Ready.").await;
    first.health().await.wait_for_status(ServingStatus::Serving).await;
    let stdout = first.process.stdout.so_far();
    let places: Vec<_> = ONCE.iter().chain(&ALWAYS).map(|step| stdout.find(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{stdout}");
    first.remember("I mix up eigenvalues and eigenvectors").await;
    first.process.stop().await;

    let later = sandbox.start_serving(&[]).await;
    assert_eq!(later.remembered().await, ["I mix up eigenvalues and eigenvectors"]);
    let stdout = later.process.stop().await.stdout;
    assert!(ALWAYS.iter().all(|step| stdout.contains(step)), "{stdout}");
    assert!(!ONCE.iter().any(|step| stdout.contains(step)), "{stdout}");
}

#[tokio::test]
async fn banner_shows_address_mode_memory_and_examples() {
    let sandbox = Sandbox::new();
    let server = sandbox.start_listening(&[]).await;
    let banner = server.process.stdout.so_far();
    let url = &server.url;
    let data = sandbox.data();
    for part in [
        format!("address    {url} (gRPC and gRPC-Web)"),
        "answers    DEMO mode: canned answers, because no API key is set; set LLM_API_KEY".to_owned(),
        format!("memory     embedded Postgres in {}", data.display()),
        "callers    not authenticated (AUTH=none): only this machine".to_owned(),
        format!("agent-local chat --addr {url} \"帮我制定高数复习计划\""),
        format!("agent-local remember --addr {url} "),
        format!("agent-local recall --addr {url} "),
    ] {
        assert!(banner.contains(&part), "{part} is not in:\n{banner}");
    }
    assert_ne!(server.port(), 0);
}

#[tokio::test]
async fn server_survives_closed_stdout() {
    let sandbox = Sandbox::new();
    let mut child = sandbox.command(&[], &[]).spawn().unwrap();
    let mut line = String::new();
    // As with `agent-local | head -1`.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).await.unwrap();
    drop(stdout);
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut stdout = Vec::new();
    within_timeout("the database is ready", async {
        while !stdout.last().is_some_and(|line: &String| line.contains("the database is ready")) {
            stdout.push(stderr.next_line().await.unwrap().unwrap_or_else(|| panic!("the server ended: {stdout:?}")));
        }
    })
    .await;
}

#[tokio::test]
async fn default_data_directory_is_below_home() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.bare(&["serve"]);
    // The default port may be in use.
    command.env("GRPC_PORT", "0");
    let server = Server::start(command).await;
    server.health().await.wait_for_status(ServingStatus::Serving).await;
    let data = sandbox.path().join(".local/share/agent-service");
    assert!(data.join("postgres/PG_VERSION").is_file());
    assert!(server.process.stdout.so_far().contains(&*data.to_string_lossy()));
}
