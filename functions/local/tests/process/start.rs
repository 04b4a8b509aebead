//! The first start and the later ones.

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::server::{Home, Server, soon};

const ONCE: [&str; 2] = ["Unpacking the embedded Postgres", "Making an empty database"];
const ALWAYS: [&str; 2] = ["Starting the database", "Ready."];

#[tokio::test]
async fn a_first_start_tells_its_progress_and_a_later_one_unpacks_nothing_and_keeps_the_memories() {
    let home = Home::new();
    let first = home.listening(&[]).await;
    first.process.stdout.line("Ready.").await;
    first.health().await.becomes(ServingStatus::Serving).await;
    let told = first.process.stdout.so_far();
    let places: Vec<_> = ONCE.iter().chain(&ALWAYS).map(|step| told.find(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told}");
    first.remember("I mix up eigenvalues and eigenvectors").await;
    first.process.stop().await;

    let later = home.serving(&[]).await;
    assert_eq!(later.remembered().await, ["I mix up eigenvalues and eigenvectors"]);
    let told = later.process.stop().await.stdout;
    assert!(ALWAYS.iter().all(|step| told.contains(step)), "{told}");
    assert!(!ONCE.iter().any(|step| told.contains(step)), "{told}");
}

#[tokio::test]
async fn the_banner_tells_address_mode_memory_callers_and_how_to_try_it() {
    let home = Home::new();
    let server = home.listening(&[]).await;
    let banner = server.process.stdout.so_far();
    let url = &server.url;
    let data = home.data();
    for part in [
        format!("address    {url} (gRPC and gRPC-Web)"),
        "answers    DEMO: canned answers, because no key is set; set LLM_API_KEY".to_owned(),
        format!("memory     embedded Postgres in {}", data.display()),
        "callers    not authenticated: only this machine".to_owned(),
        format!("agent-local chat --addr {url} \"帮我制定高数复习计划\""),
        format!("agent-local remember --addr {url} "),
        format!("agent-local recall --addr {url} "),
    ] {
        assert!(banner.contains(&part), "{part} is not in:\n{banner}");
    }
    assert_ne!(server.port(), 0);
}

#[tokio::test]
async fn a_reader_of_the_banner_that_goes_away_does_not_end_the_server() {
    let home = Home::new();
    let mut child = home.command(&[], &[]).spawn().unwrap();
    let mut line = String::new();
    // As `agent-local | head -1` does.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).await.unwrap();
    drop(stdout);
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut told = Vec::new();
    soon("the database is ready", async {
        while !told.last().is_some_and(|line: &String| line.contains("the database is ready")) {
            told.push(stderr.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended: {told:?}")));
        }
    })
    .await;
}

#[tokio::test]
async fn with_nothing_set_data_go_to_the_data_directory_of_the_user() {
    let home = Home::new();
    let mut command = home.bare(&["serve"]);
    // The default port may be taken on this machine.
    command.env("GRPC_PORT", "0");
    let server = Server::start(command).await;
    server.health().await.becomes(ServingStatus::Serving).await;
    let data = home.path().join(".local/share/agent-service");
    assert!(data.join("postgres/PG_VERSION").is_file());
    assert!(server.process.stdout.so_far().contains(&*data.to_string_lossy()));
}
