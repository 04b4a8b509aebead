//! Two servers with the same data directory or port.

use crate::{process::Sandbox, server::Server};

#[tokio::test]
async fn second_server_on_data_directory_names_the_first_process() {
    let (sandbox, first) = Sandbox::with_server(&[]).await;
    let second = sandbox.run(&[], &[]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    let data = sandbox.data().canonicalize().unwrap();
    for part in [
        &format!("process {} ", first.process.pid()),
        data.to_str().unwrap(),
        "--addr",
        "AGENT_DATA_DIR",
        "DATABASE_URL",
    ] {
        assert!(second.stderr.contains(part), "{part} is not in:\n{}", second.stderr);
    }
    first.remember("still here").await;
}

#[tokio::test]
async fn second_server_on_port_names_grpc_port() {
    let (sandbox, other_home) = (Sandbox::new(), Sandbox::new());
    let first = Server::start(sandbox.command(&[], &[])).await;
    let port = first.port().to_string();
    let second = other_home.run(&[], &[("GRPC_PORT", &port)]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("GRPC_PORT"), "{}", second.stderr);
    assert!(second.stderr.contains(&format!("127.0.0.1:{port}")), "{}", second.stderr);
    assert!(
        !second.stdout.contains("address"),
        "the banner shows an address that another server holds: {}",
        second.stdout
    );
    assert!(!other_home.data().join("postgres").exists(), "a database was created before the port was bound");
}
