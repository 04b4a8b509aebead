//! Requests of strangers, and requests that are too large: both are refused before their bodies are read.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream, stream::FuturesUnordered};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::timeout;
use tonic::{Status, body::Body, transport::Channel};
use tower::ServiceExt as _;

use crate::{
    harness::{TEST_TIMEOUT, TestServer},
    wire::{CHAT, GRPC, WEB, compressed_frame, gzip, post},
};

const MIB: u32 = 1024 * 1024;
const METHODS: [(&str, u32); 13] = [
    (CHAT, 32 * MIB),
    ("/agent.v1.AgentService/RetrieveMemory", MIB),
    ("/agent.v1.MemoryService/AddMemories", 50 * MIB),
    ("/agent.v1.MemoryService/IngestDocument", 50 * MIB),
    ("/agent.v1.MemoryService/ListMemories", MIB),
    ("/agent.v1.MemoryService/UpdateMemory", MIB),
    ("/agent.v1.MemoryService/DeleteMemories", MIB),
    ("/agent.v1.MemoryService/ExportMemories", MIB),
    ("/agent.v1.ConversationService/ListSessions", MIB),
    ("/agent.v1.ConversationService/GetSession", MIB),
    ("/agent.v1.ConversationService/RenameSession", MIB),
    ("/agent.v1.ConversationService/DeleteSessions", MIB),
    ("/agent.v1.ConversationService/CancelTurn", MIB),
];
/// Needs no credentials.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const OTHERS: [(&str, &str); 2] = [("CONVERSATIONS", "off"), ("ADMISSION_TIMEOUT_MS", "100")];

fn message_head(length: u32) -> Bytes {
    [&[0][..], &length.to_be_bytes()].concat().into()
}

/// The status and the message of a call whose body begins so and never ends.
async fn status_of_unfinished(channel: &Channel, path: &str, content_type: &str, begin: Bytes) -> (String, String) {
    let body = stream::iter([Ok::<_, Status>(Frame::data(begin))]).chain(stream::pending());
    let request = http::Request::post(path).header("content-type", content_type).header("te", "trailers");
    let request = request.body(Body::new(StreamBody::new(body))).unwrap();
    let response = timeout(TEST_TIMEOUT, channel.clone().oneshot(request)).await;
    let response = response.unwrap_or_else(|_| panic!("{path} waits for its body")).unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    (header("grpc-status").unwrap_or_default(), header("grpc-message").unwrap_or_default().replace("%20", " "))
}

#[tokio::test]
async fn call_without_credentials_is_refused_before_its_body_is_read() {
    let secret = ("JWT_SECRET", "a secret that the gateway shares");
    let server = TestServer::start_without_database(&[("AUTH", "jwt"), secret]).await;
    for (path, _) in METHODS {
        for content_type in [GRPC, WEB] {
            for begin in [Bytes::new(), message_head(10), message_head(u32::MAX), Bytes::from(vec![0xff; 100_000])] {
                let (status, message) = status_of_unfinished(&server.channel, path, content_type, begin).await;
                assert_eq!(status, "16", "{path} {content_type}: {message}");
            }
        }
    }
}

#[tokio::test]
async fn message_that_is_too_large_is_refused_by_its_head() {
    let server = TestServer::start_without_database(&OTHERS).await;
    for (path, limit) in METHODS.into_iter().chain([(HEALTH, MIB)]) {
        for content_type in [GRPC, WEB] {
            for length in [limit + 1, u32::MAX] {
                let head = message_head(length);
                let (status, message) = status_of_unfinished(&server.channel, path, content_type, head).await;
                assert_eq!(status, "8", "{path} {content_type} {length}: {message}");
                assert!(
                    message.contains(&length.to_string()) && message.contains(&limit.to_string()),
                    "{path}: {message}"
                );
            }
        }
    }
}

#[tokio::test]
async fn compressed_message_counts_with_its_whole_size() {
    let server = TestServer::start_without_database(&OTHERS).await;
    for (path, limit) in METHODS {
        for (size, is_refused) in [(limit + 1, true), (limit, false)] {
            let body = compressed_frame(&gzip(&vec![0; size as usize]));
            assert!(body.len() < limit as usize / 100);
            let answer = post(&server, path, GRPC, &[("grpc-encoding", "gzip")], body).await;
            assert_eq!(answer.header("grpc-status") == "8", is_refused, "{path} {size}: {answer:?}");
            assert!(!is_refused || answer.header("grpc-message").contains(&limit.to_string()), "{path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn one_connection_holds_a_bounded_number_of_incomplete_bytes() {
    const CALLS: u32 = 40;
    let server = TestServer::start_without_database(&OTHERS).await;
    // The connection is authenticated by any call.
    let (status, _) = status_of_unfinished(&server.channel, METHODS[1].0, GRPC, message_head(MIB + 1)).await;
    assert_eq!(status, "8");
    let size = 8 * MIB;
    let call = || status_of_unfinished(&server.channel, METHODS[2].0, GRPC, message_head(size));
    let mut calls: FuturesUnordered<_> = (0..CALLS).map(|_| call()).collect();
    // 128 MiB hold 16 of them; the others are refused.
    for _ in 0..CALLS - 16 {
        let (status, message) = calls.next().await.unwrap();
        assert_eq!(status, "8", "{message}");
        assert!(message.contains(&size.to_string()) && message.contains(&(128 * MIB).to_string()), "{message}");
    }
    let small = status_of_unfinished(&server.channel, METHODS[1].0, GRPC, message_head(MIB + 1)).await;
    assert_eq!(small.0, "8", "other calls of the connection go on");
    assert!(futures_util::poll!(calls.next()).is_pending(), "16 calls are held");
}

#[tokio::test]
async fn connection_without_credentials_holds_less() {
    let secret = ("JWT_SECRET", "a secret that the gateway shares");
    let server = TestServer::start_without_database(&[("AUTH", "jwt"), secret]).await;
    let calls = (0..5).map(|_| status_of_unfinished(&server.channel, HEALTH, GRPC, message_head(MIB / 2)));
    let mut calls: FuturesUnordered<_> = calls.collect();
    for _ in 0..3 {
        let (status, message) = calls.next().await.unwrap();
        assert!(status == "8" && message.contains(&MIB.to_string()), "{status} {message}");
    }
}
