//! Limits of a user's calls: every call has one, without a store and while it is down.

use std::time::{Duration, SystemTime};

use agent_service::proto::{DESCRIPTOR, agent_v1 as pb};
use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use sqlx::{AssertSqlSafe, Executor as _};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_types::StatusExt as _;

use crate::{
    fake_provider::{FakeProvider, Step},
    harness::{CLOSED_ADDRESS, TestServer, UNREACHABLE_DATABASE, ask, chat_request, memory_input},
};

/// Messages as bytes.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// `/agent.v1.MemoryService/AddMemories` and the like, of every service.
fn methods() -> Vec<String> {
    let files = FileDescriptorSet::decode(DESCRIPTOR).unwrap().file.into_iter();
    let services = files.filter(|file| file.package() == "agent.v1").flat_map(|file| file.service);
    services
        .flat_map(|service| {
            let name = service.name().to_owned();
            service.method.into_iter().map(move |method| format!("/agent.v1.{name}/{}", method.name()))
        })
        .collect()
}

/// An empty message of a user, until the call ends.
async fn call(server: &TestServer, method: &str, user: &str) -> Result<(), Status> {
    let mut request = Request::new(Bytes::new());
    request.metadata_mut().insert("user-id", user.parse().unwrap());
    let mut grpc = Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path: PathAndQuery = method.parse().unwrap();
    let mut messages = grpc.server_streaming(request, path, RawCodec).await?.into_inner();
    while messages.message().await?.is_some() {}
    Ok(())
}

fn quota_of(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    let expected = if delay > Duration::from_secs(3) { "-1".to_owned() } else { delay.as_millis().to_string() };
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), &*expected);
    let subject = details.quota_failure().unwrap().violations[0].subject.clone();
    assert!(status.message().contains(&subject), "{status:?}");
    subject
}

/// The name of a quota that the request exceeds alone.
fn exceeded_quota_of(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    assert!(details.retry_info().is_none(), "{status:?}");
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
    details.quota_failure().unwrap().violations[0].subject.clone()
}

/// So that a test of a quota of the day does not run into the next day.
async fn wait_for_a_day_with_time_left() {
    const DAY: u64 = 24 * 60 * 60;
    let seconds = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let left = DAY - seconds % DAY;
    if left < 120 {
        tokio::time::sleep(Duration::from_secs(left)).await;
    }
}

/// The refusal behind `allowed` chats. While the machine is slow, some more are allowed.
async fn refused_after(server: &TestServer, allowed: usize, request: impl Fn() -> pb::ChatRequest) -> Status {
    for answered in 0..100 {
        if let Err(refused) = server.chat(request()).await {
            assert!(answered >= allowed, "{answered}: {refused:?}");
            return refused;
        }
    }
    panic!("100 chats were answered");
}

/// With its own user for each method: `calls_per_minute` is one limit for all of them.
async fn assert_every_call_is_limited(server: &TestServer) {
    let methods = methods();
    assert!(methods.len() >= 13, "{methods:?}");
    for method in methods {
        let user = method.replace('/', ".");
        let first = call(server, &method, &user).await;
        assert!(
            first.is_ok() || first.as_ref().is_err_and(|error| error.code() != Code::ResourceExhausted),
            "{first:?}"
        );
        let second = call(server, &method, &user).await.expect_err(&method);
        assert_eq!(quota_of(&second), "calls_per_minute", "{method}");
        assert!(second.message().contains("at most 1 "), "{second:?}");
    }
}

const ONE_CALL: (&str, &str) = ("RATE_LIMITS", "calls_per_minute=1,requests_per_minute=1");

#[tokio::test]
async fn every_call_is_limited() {
    assert_every_call_is_limited(&TestServer::start(&[ONE_CALL]).await).await;
}

#[tokio::test]
async fn every_call_is_limited_without_conversations() {
    assert_every_call_is_limited(&TestServer::start(&[ONE_CALL, ("CONVERSATIONS", "off")]).await).await;
}

#[tokio::test]
async fn every_call_is_limited_while_the_store_is_down() {
    let variables = [ONE_CALL, ("ADMISSION_TIMEOUT_MS", "100")];
    assert_every_call_is_limited(&TestServer::start_on(UNREACHABLE_DATABASE, &variables).await).await;
}

async fn assert_direct_chats_are_limited(server: &TestServer) {
    let refused = refused_after(server, 3, || ask("hi")).await;
    assert_eq!(quota_of(&refused), "requests_per_minute");
    let other = pb::ChatRequest { user_id: "bob".into(), ..ask("hi") };
    server.chat(other).await.unwrap();
}

#[tokio::test]
async fn chats_are_limited_without_conversations() {
    let limits = ("RATE_LIMITS", "requests_per_minute=3");
    assert_direct_chats_are_limited(&TestServer::start(&[limits, ("CONVERSATIONS", "off")]).await).await;
}

#[tokio::test]
async fn chats_are_limited_and_not_refused_while_the_store_is_down() {
    let limits = ("RATE_LIMITS", "requests_per_minute=3");
    let server = TestServer::start_on(UNREACHABLE_DATABASE, &[limits, ("ADMISSION_TIMEOUT_MS", "1000")]).await;
    assert_direct_chats_are_limited(&server).await;
}

#[tokio::test]
async fn tokens_of_direct_chats_are_counted() {
    let limits = ("RATE_LIMITS", "tokens_per_day=1");
    let server = TestServer::start(&[limits, ("CONVERSATIONS", "off")]).await;
    server.chat(ask("hi")).await.unwrap();
    assert_eq!(quota_of(&server.chat(ask("hi")).await.unwrap_err()), "tokens_per_day");
}

#[tokio::test]
async fn shed_chats_cost_no_request() {
    let server = TestServer::start(&[
        ("RATE_LIMITS", "requests_per_minute=1"),
        ("CONVERSATIONS", "off"),
        ("MAX_CONCURRENT_STREAMS", "1"),
        ("DEMO_CHUNK_DELAY_MS", "3600000"),
    ])
    .await;
    let other = pb::ChatRequest { user_id: "bob".into(), ..ask("hi") };
    let _running = server.agent().stream_chat(other).await.unwrap();
    for _ in 0..3 {
        let shed = server.chat(ask("hi")).await.unwrap_err();
        assert_eq!(shed.code(), Code::Unavailable, "{shed:?}");
    }
}

#[tokio::test]
async fn chats_cost_no_tokens_while_the_provider_is_down() {
    let server = TestServer::start(&[
        ("RATE_LIMITS", "tokens_per_day=1"),
        ("CONVERSATIONS", "off"),
        ("LLM_PROVIDER", "compatible"),
        ("LLM_API_BASE_URL", &format!("http://{CLOSED_ADDRESS}/v1")),
        ("LLM_API_KEY", "key"),
        ("LLM_MODEL_NAME", "test-model"),
        ("LLM_MAX_ATTEMPTS", "1"),
    ])
    .await;
    for _ in 0..3 {
        server.chat(ask("a question of many tokens")).await.unwrap();
    }
}

#[tokio::test]
async fn chat_that_is_left_costs_what_its_prompt_has_of_a_long_history() {
    let server = TestServer::start(&[
        ("RATE_LIMITS", "tokens_per_day=20000,concurrent_streams=1"),
        ("CONVERSATIONS", "off"),
        ("DEMO_CHUNK_DELAY_MS", "3600000"),
    ])
    .await;
    let message = pb::ChatMessage { role: "user".into(), content: "tea ".repeat(20_000), ..Default::default() };
    let long = || pb::ChatRequest { history: vec![message.clone(); 40], ..ask("hi") };
    let mut left = server.agent().stream_chat(long()).await.unwrap().into_inner();
    while !matches!(left.message().await.unwrap().unwrap().content, Some(pb::chat_response::Content::Delta(_))) {}
    drop(left);
    // Until the server has noticed.
    loop {
        match server.agent().stream_chat(ask("hi")).await {
            Ok(_) => break,
            Err(refused) => assert_eq!(quota_of(&refused), "concurrent_streams"),
        }
    }
}

#[tokio::test]
async fn repeats_of_a_chat_are_limited() {
    let server = TestServer::start(&[("RATE_LIMITS", "calls_per_minute=3,requests_per_minute=2")]).await;
    let refused = refused_after(&server, 3, || chat_request("r", "s", "hi")).await;
    assert_eq!(quota_of(&refused), "calls_per_minute");
}

#[tokio::test]
async fn exports_have_a_limit_of_their_own() {
    let server = TestServer::start(&[("RATE_LIMITS", "exports_per_minute=1")]).await;
    let export = "/agent.v1.MemoryService/ExportMemories";
    call(&server, export, "ann").await.unwrap();
    assert_eq!(quota_of(&call(&server, export, "ann").await.unwrap_err()), "exports_per_minute");
    call(&server, export, "bob").await.unwrap();
    call(&server, "/agent.v1.MemoryService/ListMemories", "ann").await.unwrap();
}

async fn add(server: &TestServer, user: &str, id: &str, bytes: usize) -> Result<pb::AddMemoriesResponse, Status> {
    let content = "tea ".repeat(bytes / 4);
    let memories = vec![memory_input(id, &content)];
    let request = pb::AddMemoriesRequest { user_id: user.into(), memories };
    server.memory().add_memories(request).await.map(tonic::Response::into_inner)
}

async fn embedded_bytes(server: &TestServer) -> i64 {
    let mut owner = server.connect_as_owner().await;
    let bytes = "select embedded_bytes from user_usage where user_id = 'ann'";
    sqlx::query_scalar(AssertSqlSafe(bytes)).fetch_one(&mut owner).await.unwrap()
}

#[tokio::test]
async fn embedded_bytes_of_a_day_hold_across_instances_for_new_text_only() {
    wait_for_a_day_with_time_left().await;
    let budget = ("RATE_LIMITS", "embedded_bytes_per_day=1000");
    let server = TestServer::start(&[budget]).await;
    let other = server.start_second(&[budget]).await;
    add(&server, "ann", "a", 600).await.unwrap();
    for _ in 0..3 {
        assert_eq!(add(&other, "ann", "a", 600).await.unwrap().unchanged, 1, "stored text is not embedded again");
    }
    let refused = add(&other, "ann", "b", 600).await.unwrap_err();
    assert_eq!(quota_of(&refused), "embedded_bytes_per_day");
    assert!(refused.message().contains("1000"), "{refused:?}");
    let document = pb::IngestDocumentRequest {
        user_id: "ann".into(),
        document_id: "d".into(),
        content: "tea ".repeat(150),
        ..Default::default()
    };
    let refused = other.memory().ingest_document(document.clone()).await.unwrap_err();
    assert_eq!(quota_of(&refused), "embedded_bytes_per_day");
    let update = pb::UpdateMemoryRequest {
        user_id: "ann".into(),
        id: "a".into(),
        content: Some("cake ".repeat(120)),
        ..Default::default()
    };
    let refused = server.memory().update_memory(update).await.unwrap_err();
    assert_eq!(quota_of(&refused), "embedded_bytes_per_day");
    add(&other, "ann", "c", 400).await.unwrap();

    let ingested = pb::IngestDocumentRequest { user_id: "bob".into(), ..document };
    server.memory().ingest_document(ingested).await.unwrap();
    assert_eq!(quota_of(&add(&server, "bob", "b", 600).await.unwrap_err()), "embedded_bytes_per_day");
}

#[tokio::test]
async fn embedded_bytes_are_new_on_the_next_day() {
    wait_for_a_day_with_time_left().await;
    let server = TestServer::start(&[("RATE_LIMITS", "embedded_bytes_per_day=1000")]).await;
    add(&server, "ann", "a", 1_000).await.unwrap();
    add(&server, "ann", "b", 4).await.unwrap_err();
    let mut owner = server.connect_as_owner().await;
    owner.execute("update user_usage set embedded_on = embedded_on - 1").await.unwrap();
    add(&server, "ann", "b", 1_000).await.unwrap();
    add(&server, "ann", "c", 4).await.unwrap_err();
}

#[tokio::test]
async fn text_that_exceeds_the_whole_budget_is_refused() {
    wait_for_a_day_with_time_left().await;
    let server = TestServer::start(&[("RATE_LIMITS", "embedded_bytes_per_day=1000")]).await;
    let refused = add(&server, "ann", "a", 2_000).await.unwrap_err();
    assert_eq!(exceeded_quota_of(&refused), "embedded_bytes_per_day");
    assert!(refused.message().contains("divide it") && refused.message().contains("1000"), "{refused:?}");
    add(&server, "ann", "a", 1_000).await.unwrap();
}

#[tokio::test]
async fn deleted_data_does_not_bring_the_budget_back() {
    wait_for_a_day_with_time_left().await;
    let server = TestServer::start(&[("RATE_LIMITS", "embedded_bytes_per_day=1000")]).await;
    add(&server, "ann", "a", 1_000).await.unwrap();
    let everything = pb::DeleteMemoriesRequest { user_id: "ann".into(), everything: true, ..Default::default() };
    server.memory().delete_memories(everything).await.unwrap();
    let sessions = pb::DeleteSessionsRequest { user_id: "ann".into(), everything: true, ..Default::default() };
    server.conversations().delete_sessions(sessions).await.unwrap();
    assert_eq!(quota_of(&add(&server, "ann", "a", 1_000).await.unwrap_err()), "embedded_bytes_per_day");
}

#[tokio::test]
async fn failed_embedding_gives_its_bytes_back() {
    wait_for_a_day_with_time_left().await;
    let server = TestServer::start(&[
        ("RATE_LIMITS", "embedded_bytes_per_day=1000"),
        ("LLM_MAX_ATTEMPTS", "1"),
        ("EMBEDDING_PROVIDER", "openai"),
        ("EMBEDDING_API_BASE_URL", &format!("http://{CLOSED_ADDRESS}/v1")),
        ("EMBEDDING_API_KEY", "key"),
        ("EMBEDDING_MODEL", "tiny"),
        ("EMBEDDING_DIM", "2"),
    ])
    .await;
    for _ in 0..3 {
        let failed = add(&server, "ann", "a", 600).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    }
    assert_eq!(embedded_bytes(&server).await, 0);
}

#[tokio::test]
async fn failed_embedding_gives_back_only_what_was_not_embedded() {
    wait_for_a_day_with_time_left().await;
    let provider = FakeProvider::start().await;
    let mut variables = provider.embedding_variables();
    variables.extend([
        ("RATE_LIMITS", "embedded_bytes_per_day=1000"),
        ("LLM_MAX_ATTEMPTS", "1"),
        ("EMBEDDING_DIM", "2"),
    ]);
    let server = TestServer::start(&variables).await;
    // Two requests for 64 texts each, one of which fails.
    let vectors: Vec<_> = (0..64).map(|index| serde_json::json!({"index": index, "embedding": [1, 0]})).collect();
    provider.respond(200, &serde_json::json!({ "data": vectors }).to_string()).await;
    provider.respond(503, "{}").await;
    let memories = (0..128).map(|number| memory_input("", &format!("tea {number:03}"))).collect();
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
    let failed = server.memory().add_memories(request).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    assert_eq!(embedded_bytes(&server).await, 64 * 7);
}

#[tokio::test]
async fn headings_that_are_embedded_with_a_chunk_count() {
    wait_for_a_day_with_time_left().await;
    let server = TestServer::start(&[("RATE_LIMITS", "embedded_bytes_per_day=2000")]).await;
    let document = pb::IngestDocumentRequest {
        user_id: "ann".into(),
        document_id: "d".into(),
        title: "t".repeat(200),
        content: "a drink".into(),
        ..Default::default()
    };
    server.memory().ingest_document(document).await.unwrap();
    assert_eq!(embedded_bytes(&server).await, 208);
    let id = server.list_memories("ann").await[0].id.clone();
    let update =
        pb::UpdateMemoryRequest { user_id: "ann".into(), id, content: Some("a meal".into()), ..Default::default() };
    server.memory().update_memory(update).await.unwrap();
    assert_eq!(embedded_bytes(&server).await, 208 + 207);
}

#[tokio::test]
async fn rejected_text_does_not_bring_the_budget_back() {
    wait_for_a_day_with_time_left().await;
    let (provider, server) = {
        let provider = FakeProvider::start().await;
        let mut variables = provider.embedding_variables();
        variables.push(("RATE_LIMITS", "embedded_bytes_per_day=1000"));
        let server = TestServer::start(&variables).await;
        (provider, server)
    };
    let rejection = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".to_vec();
    provider.script(vec![Step::Send(rejection)]).await;
    assert_eq!(add(&server, "ann", "a", 600).await.unwrap_err().code(), Code::Internal);
    assert_eq!(quota_of(&add(&server, "ann", "a", 600).await.unwrap_err()), "embedded_bytes_per_day");
}

#[tokio::test]
async fn query_bytes_are_limited_without_a_database() {
    let server = TestServer::start_without_database(&[("RATE_LIMITS", "embedded_bytes_per_day=10")]).await;
    let query = |text: &str| pb::MemoryQuery { user_id: "ann".into(), query_text: text.into(), ..Default::default() };
    let refused = server.agent().retrieve_memory(query("a longer question")).await.unwrap_err();
    assert_eq!(exceeded_quota_of(&refused), "embedded_bytes_per_day");
    let keywords = pb::MemoryQuery { hybrid_alpha: Some(0.0), ..query("a longer question") };
    for query in [query("short"), keywords] {
        let down = server.agent().retrieve_memory(query).await.unwrap_err();
        assert_eq!(down.code(), Code::Unavailable, "{down:?}");
    }
    let invalid = pb::MemoryQuery { limit: -1, ..query("wrong") };
    let invalid = server.agent().retrieve_memory(invalid).await.unwrap_err();
    assert_eq!(invalid.code(), Code::InvalidArgument, "{invalid:?}");
    let refused = server.agent().retrieve_memory(query("too much")).await.unwrap_err();
    assert_eq!(quota_of(&refused), "embedded_bytes_per_day");
}

#[tokio::test]
async fn refusal_is_in_the_accepted_language() {
    let server = TestServer::start_without_database(&[ONE_CALL]).await;
    let query = || {
        let mut request = Request::new(pb::MemoryQuery { user_id: "ann".into(), ..Default::default() });
        request.metadata_mut().insert("accept-language", "zh-CN".parse().unwrap());
        request
    };
    server.agent().retrieve_memory(query()).await.unwrap_err();
    let refused = server.agent().retrieve_memory(query()).await.unwrap_err();
    assert!(refused.message().contains("一分钟内的调用过多") && refused.message().contains("每分钟 1"), "{refused:?}");
}
