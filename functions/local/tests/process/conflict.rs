//! Two servers that want the same.

use crate::server::{Home, Server};

#[tokio::test]
async fn a_second_server_on_one_data_directory_ends_and_names_the_process_that_holds_it() {
    let home = Home::new();
    let first = home.serving(&[]).await;
    let second = home.run(&[], &[]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    let data = home.data().canonicalize().unwrap();
    for part in [
        &format!("process {} ", first.process.pid()),
        data.to_str().unwrap(),
        "--addr",
        "AGENT_DATA_DIR",
        "DATABASE_URL",
    ] {
        assert!(second.stderr.contains(part), "{part} is not in:\n{}", second.stderr);
    }
    // The first one is none the worse for it.
    first.remember("still here").await;
}

#[tokio::test]
async fn a_second_server_on_one_port_ends_with_a_message_that_names_grpc_port() {
    let (home, other_home) = (Home::new(), Home::new());
    let first = Server::start(home.command(&[], &[])).await;
    let port = first.port().to_string();
    let second = other_home.run(&[], &[("GRPC_PORT", &port)]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("GRPC_PORT"), "{}", second.stderr);
    assert!(second.stderr.contains(&format!("127.0.0.1:{port}")), "{}", second.stderr);
    assert!(!second.stdout.contains("address"), "no address is announced that others hold: {}", second.stdout);
    assert!(!other_home.data().join("postgres").exists(), "the port is tried before a database is made");
}
