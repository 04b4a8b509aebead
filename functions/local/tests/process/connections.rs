//! Connections of strangers, and file descriptors that run out.

use std::pin::pin;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    process::{Sandbox, within_timeout},
    server::{Server, full_text, joined_deltas, question},
};

/// The program with these limits of descriptors, and without a database.
async fn start_with_descriptors(sandbox: &Sandbox, soft: u32, hard: u32) -> Server {
    let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\"");
    let variables = [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"), ("CONVERSATIONS", "off")];
    let program = sandbox.command(&[], &variables);
    let mut command: Command = sandbox.program("sh".as_ref(), &["-c", &script, env!("CARGO_BIN_EXE_agent-local")]);
    command.envs(program.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    Server::start(command).await
}

async fn request(server: &Server, request: &str) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Reads the head of an answer, which has no body that matters.
async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within_timeout("a head", socket.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn assert_answers(server: &Server) {
    let frames = server.chat(question("hello")).await.rest().await.unwrap();
    assert_eq!(full_text(&frames), joined_deltas(&frames));
}

#[tokio::test]
async fn descriptor_limit_is_raised_to_the_hard_limit_and_logged() {
    let sandbox = Sandbox::new();
    let server = start_with_descriptors(&sandbox, 100, 300).await;
    let line = server.process.stderr.line("limit of file descriptors").await;
    assert!(line.contains("300") && line.contains("100"), "{line}");
    #[cfg(target_os = "linux")]
    {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.process.pid())).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["300", "300"]);
    }
}

#[tokio::test]
async fn strangers_do_not_keep_others_out() {
    const CONNECTIONS: usize = 60;
    let sandbox = Sandbox::new();
    // A quarter for strangers, of which a quarter for an address.
    let server = start_with_descriptors(&sandbox, 128, 128).await;
    let mut strangers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut socket = request(&server, "HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(read_head(&mut socket).await.starts_with("HTTP/1.1 200"));
        strangers.push(socket);
    }
    // They are closed long before their keep-alive is over.
    for socket in strangers.iter_mut().take(CONNECTIONS - 8) {
        assert_eq!(within_timeout("the end of an old connection", socket.read(&mut [0])).await.unwrap(), 0);
    }
    assert_answers(&server).await;
}

#[tokio::test]
async fn server_without_free_descriptors_waits_and_recovers() {
    let sandbox = Sandbox::new();
    let server = start_with_descriptors(&sandbox, 64, 64).await;
    let path = "/agent.v1.AgentService/RetrieveMemory";
    let call = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0"
    );
    // A refused argument comes from an authenticated caller, whose connections are not closed for others.
    let mut authenticated = Vec::new();
    let mut failing = pin!(server.process.stderr.lines_with("a connection cannot be accepted", 3));
    let failures = loop {
        let answered = async {
            let mut socket = request(&server, &call).await;
            assert!(read_head(&mut socket).await.contains("grpc-status: 3"));
            socket
        };
        tokio::select! {
            failures = &mut failing => break failures,
            socket = answered => authenticated.push(socket),
        }
    };
    assert!(
        failures[2].contains("failures=4") || failures[2].contains("\"failures\":4"),
        "logged at each power of two: {failures:?}"
    );
    drop(authenticated);
    assert_answers(&server).await;
    assert_eq!(server.health().await.next().await, Some(ServingStatus::NotServing));
}
