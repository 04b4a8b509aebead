//! `grpc-timeout` bounds calls, also if the client itself does not enforce it.

use agent_service::proto::agent_v1::{self as pb, FinishReason, chat_response::Content};
use prost::Message as _;

use crate::{
    fake_provider::{FakeProvider, Step, delta, events, stream_head},
    harness::{
        TEST_TIMEOUT, TestServer, ask, chat_request, error_of, grpc_frame, http, open_stream, read_to_end, read_until,
    },
};

/// The frames and the trailers of a gRPC-Web chat.
async fn web_chat(server: &TestServer, request: &pb::ChatRequest, timeout: &str) -> (Vec<pb::ChatResponse>, String) {
    let call = http()
        .http1_only()
        .build()
        .unwrap()
        .post(format!("http://{}/agent.v1.AgentService/StreamChat", server.address));
    let call = call.header("content-type", "application/grpc-web+proto").header("grpc-timeout", timeout);
    let body = call.body(grpc_frame(&request.encode_to_vec())).send().await.unwrap();
    let body = tokio::time::timeout(TEST_TIMEOUT, body.bytes()).await.expect("the call does not end").unwrap();
    let (mut rest, mut frames) = (&body[..], Vec::new());
    loop {
        let (head, tail) = rest.split_at_checked(5).expect("the stream has no trailers");
        let (content, tail) = tail.split_at(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize);
        if head[0] == 0x80 {
            assert!(tail.is_empty());
            return (frames, String::from_utf8(content.to_vec()).unwrap());
        }
        frames.push(pb::ChatResponse::decode(content).unwrap());
        rest = tail;
    }
}

#[tokio::test]
async fn chat_ends_with_an_error_frame_at_its_deadline() {
    let mut provider = FakeProvider::start().await;
    for store in [&[][..], &[("CONVERSATIONS", "off")]] {
        let server = TestServer::start(&[&provider.variables()[..], store].concat()).await;
        for silent in [
            vec![stream_head(), Step::AwaitDisconnect],
            vec![stream_head(), events(&[&delta("one ")]), Step::AwaitDisconnect],
        ] {
            provider.script(silent).await;
            let (frames, trailers) = web_chat(&server, &ask("question"), "700m").await;
            assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
            let error = error_of(&frames);
            assert_eq!((error.code.as_str(), error.error_code()), ("DEADLINE_EXCEEDED", pb::ErrorCode::Timeout));
            assert!(error.retryable);
            assert_eq!(frames.last().unwrap().finish_reason(), FinishReason::Error);
            tokio::time::timeout(TEST_TIMEOUT, provider.disconnects.recv()).await.expect("the turn goes on").unwrap();
        }
    }
}

#[tokio::test]
async fn attached_reader_ends_at_its_deadline_and_the_run_goes_on() {
    let server = TestServer::start(&[("DEMO_CHUNK_DELAY_MS", "3600000")]).await;
    let question = || chat_request("r", "s", "hi");
    let mut stream = open_stream(&server, question()).await;
    read_until(&mut stream, "delta").await;
    let (frames, trailers) = web_chat(&server, &question(), "300m").await;
    // A last frame would say that the answer has ended.
    assert!(trailers.contains("grpc-status:4"), "{trailers:?}");
    assert!(frames.len() > 2 && frames.iter().all(|frame| frame.finish_reason() == FinishReason::Null));
    server.cancel_turn("s", "r").await;
    let rest = read_to_end(stream).await;
    assert_eq!(error_of(&rest).code, "CANCELLED");
    assert!(!rest.iter().any(|frame| matches!(&frame.content, Some(Content::FullText(_)))));
}

#[tokio::test]
async fn chat_without_a_frame_is_deadline_exceeded() {
    // Accepts connections and never answers: the admission waits for it.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let server = TestServer::start_on(&url, &[]).await;
    let call = crate::harness::raw_call(&server, "StreamChat", &ask("hi").encode_to_vec(), "50m").await;
    assert_eq!(call.headers()["grpc-status"], "4", "{:?}", call.headers());
}
