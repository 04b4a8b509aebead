//! The first start and the later ones.

use tonic_health::pb::health_check_response::ServingStatus;

use crate::server::{Home, Server};

const ONCE: [&str; 2] = ["Unpacking the embedded Postgres", "Making an empty database"];
const ALWAYS: [&str; 2] = ["Starting the database", "Ready."];

#[tokio::test]
async fn a_first_start_tells_its_progress_and_a_later_one_unpacks_nothing_and_keeps_the_memories() {
    let home = Home::new();
    let first = home.listening(&[]).await;
    first.process.stderr.line("Ready.").await;
    first.health().await.becomes(ServingStatus::Serving).await;
    let told = first.process.stderr.so_far();
    let places: Vec<_> = ONCE.iter().chain(&ALWAYS).map(|step| told.find(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told}");
    first.remember("I mix up eigenvalues and eigenvectors").await;
    first.process.stop().await;

    let later = home.serving(&[]).await;
    assert_eq!(later.remembered().await, ["I mix up eigenvalues and eigenvectors"]);
    let told = later.process.stop().await.stderr;
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
