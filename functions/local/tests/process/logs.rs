//! Logs: their fields, and what they never contain.

use std::collections::BTreeMap;

use agent_service::proto::agent_v1 as pb;
use prost_types::{Struct, Value as ProtoValue, value::Kind};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::{Code, Request};

use crate::{
    external_database::DatabaseProxy,
    process::Sandbox,
    server::{ChatStream, Server, USER, memories, query, question, question_without_memory},
};

/// Must never be logged.
const MARKER: &str = "Rhabarberkuchen";
const VERBOSE: (&str, &str) = ("RUST_LOG", "info,agent_service=debug,agent_local=debug");

#[tokio::test]
async fn log_lines_are_json_without_a_terminal() {
    let (_sandbox, server) = Sandbox::with_server(&[]).await;
    let mut request = Request::new(pb::ChatRequest {
        session_id: "session-1".to_owned(),
        request_id: "request-1".to_owned(),
        ..question("帮我制定高数复习计划")
    });
    let trace = "0af7651916cd43dd8448eb211c80319c";
    request.metadata_mut().insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01").parse().unwrap());
    let frames = ChatStream::new(server.agent().await.stream_chat(request).await.unwrap()).rest().await.unwrap();
    let logged = server.process.stderr.line("StreamChat ended").await;
    let line: Value = serde_json::from_str(&logged).unwrap();
    let span = &line["span"];
    for (field, value) in [
        ("method", "StreamChat"),
        ("session", "session-1"),
        ("request", "request-1"),
        ("trace", trace),
        ("model", "demo"),
    ] {
        assert_eq!(span[field], value, "{field}: {logged}");
    }
    let user = span["user"].as_str().unwrap();
    assert!(user.len() == 12 && user.bytes().all(|b| b.is_ascii_hexdigit()), "{logged}");
    assert_eq!(line["frames"], frames.len(), "{logged}");
    assert_eq!(line["outcome"], "stop", "{logged}");
    assert_eq!(line["level"], "INFO", "{logged}");
    let (first, elapsed) = (line["ttft_ms"].as_f64().unwrap(), line["elapsed_ms"].as_f64().unwrap());
    assert!(0.0 < first && first <= elapsed, "{logged}");

    let output = server.process.stop().await;
    for line in output.stderr.lines() {
        let json = serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(json["timestamp"].is_string() && json["message"].is_string(), "{line}");
    }
    assert!(!output.stderr.contains(USER), "the user id is not hashed: {}", output.stderr);
}

#[tokio::test]
async fn rejected_and_cancelled_chats_log_their_outcome() {
    let sandbox = Sandbox::new();
    let proxy = DatabaseProxy::new();
    let thinking = ("DEMO_THINKING_DELAY_MS", "3600000");
    let server = sandbox.start_listening(&[("DATABASE_URL", &proxy.unreachable_url()), thinking]).await;
    let mut client = server.agent().await;
    assert_eq!(client.stream_chat(question(" ")).await.unwrap_err().code(), Code::InvalidArgument);
    let logged = server.process.stderr.line("StreamChat ended").await;
    assert!(logged.contains(r#""outcome":"invalid_argument""#), "{logged}");
    let mut answer = server.chat(question_without_memory("hello")).await;
    answer.until(|_| true).await;
    drop(answer);
    let logged = server.process.stderr.lines_with("StreamChat ended", 2).await.remove(1);
    assert!(logged.contains(r#""outcome":"cancelled""#), "{logged}");
}

#[tokio::test]
async fn pretty_log_format_has_no_colours_without_a_terminal() {
    let (_sandbox, server) = Sandbox::with_server(&[("LOG_FORMAT", "pretty")]).await;
    let output = server.process.stop().await;
    let line = output.stderr.lines().find(|line| line.contains("the database is ready")).unwrap();
    assert!(serde_json::from_str::<Value>(line).is_err(), "{line}");
    assert!(!output.stderr.contains('\x1b'), "{:?}", output.stderr);
}

fn marked_chat() -> pb::ChatRequest {
    let text = || MARKER.to_owned();
    let value = ProtoValue { kind: Some(Kind::StringValue(text())) };
    pb::ChatRequest {
        user_id: text(),
        input: Some(pb::chat_request::Input::Message(format!("What about {MARKER}?"))),
        user_profile: Some(pb::UserProfile {
            nickname: text(),
            timezone: text(),
            language: text(),
            preferences: BTreeMap::from([(text(), text())]),
            extra_context: text(),
            avatar_url: text(),
            ..Default::default()
        }),
        extra_context: Some(Struct { fields: [(text(), value)].into() }),
        history: vec![pb::ChatMessage { role: "user".to_owned(), content: text(), name: text(), ..Default::default() }],
        chat_mode: text(),
        ..Default::default()
    }
}

fn marked_memory() -> pb::MemoryInput {
    let text = || MARKER.to_owned();
    pb::MemoryInput {
        content: format!("I like {MARKER}"),
        source_type: text(),
        tags: vec![text()],
        metadata: BTreeMap::from([(text(), text())]),
        ..Default::default()
    }
}

async fn send_marked(server: &Server) {
    let add = pb::AddMemoriesRequest { user_id: MARKER.to_owned(), memories: vec![marked_memory()] };
    server.memory().await.add_memories(add).await.unwrap();
    let search = pb::MemoryQuery {
        user_id: MARKER.to_owned(),
        filter: Some(pb::MemoryFilter { tags: vec![MARKER.to_owned()], ..Default::default() }),
        ..query(MARKER)
    };
    let found = server.agent().await.retrieve_memory(search).await.unwrap().into_inner();
    assert!(found.items[0].content.contains(MARKER));
    let mut request = Request::new(marked_chat());
    request.metadata_mut().insert("authorization", format!("Bearer {MARKER}").parse().unwrap());
    request.metadata_mut().insert("x-internal-api-key", MARKER.parse().unwrap());
    let frames = ChatStream::new(server.agent().await.stream_chat(request).await.unwrap()).rest().await.unwrap();
    assert!(format!("{frames:?}").contains(MARKER), "the marked memory was not recalled");
}

async fn send_marked_and_wrong(server: &Server) {
    let nul = || format!("{MARKER}\0");
    let chats = [
        pb::ChatRequest { user_id: format!("{MARKER}/"), ..marked_chat() },
        pb::ChatRequest { input: Some(pb::chat_request::Input::Message(nul())), ..marked_chat() },
        pb::ChatRequest { input: Some(pb::chat_request::Input::Message(MARKER.repeat(10_000))), ..marked_chat() },
        pb::ChatRequest {
            history: vec![pb::ChatMessage { role: MARKER.to_owned(), content: nul(), ..Default::default() }],
            ..marked_chat()
        },
        pb::ChatRequest { config: Some(pb::ChatConfig { model: nul(), ..Default::default() }), ..marked_chat() },
        pb::ChatRequest { active_tools: vec![nul()], ..marked_chat() },
    ];
    let mut agent = server.agent().await;
    for chat in chats {
        assert_eq!(agent.stream_chat(chat).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(agent.retrieve_memory(query(&nul())).await.unwrap_err().code(), Code::InvalidArgument);
    let mut memory = server.memory().await;
    assert_eq!(memory.add_memories(memories(&[&nul()])).await.unwrap_err().code(), Code::InvalidArgument);
    let list = pb::ListMemoriesRequest { page_token: MARKER.to_owned(), ..Default::default() };
    assert_eq!(memory.list_memories(list).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn logs_contain_no_user_text_or_token() {
    let (sandbox, server) = Sandbox::with_server(&[VERBOSE]).await;
    send_marked(&server).await;
    send_marked_and_wrong(&server).await;
    let output = server.process.stop().await;
    assert!(output.stderr.contains("call rejected"), "debug messages are off: {}", output.stderr);
    assert_unmarked(&output.stdout);
    assert_unmarked(&output.stderr);
    assert_unmarked(&std::fs::read_to_string(sandbox.data().join("postgres.log")).unwrap());
}

#[tokio::test]
async fn logs_contain_no_key_echoed_by_provider_or_database() {
    let sandbox = Sandbox::new();
    let provider = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", provider.local_addr().unwrap());
    tokio::spawn(refuse_and_repeat(provider));
    let proxy = DatabaseProxy::new();
    let database = proxy.unreachable_url().replace("postgres://", &format!("postgres://agent:{MARKER}@"));
    let server = sandbox
        .start_listening(&[
            VERBOSE,
            ("DATABASE_URL", &database),
            ("LLM_PROVIDER", "compatible"),
            ("LLM_API_BASE_URL", &base_url),
            ("LLM_MODEL_NAME", "some-model"),
            ("LLM_API_KEY", MARKER),
            ("EMBEDDING_PROVIDER", "openai"),
            ("EMBEDDING_API_BASE_URL", &base_url),
            ("EMBEDDING_API_KEY", MARKER),
            ("EMBEDDING_DIM", "8"),
            ("EMBEDDING_MODEL", "some-model"),
        ])
        .await;
    server.process.stderr.line("the database is not ready").await;
    let frames = server.chat(marked_chat()).await.rest().await.unwrap();
    assert_eq!(frames.last().unwrap().finish_reason(), pb::FinishReason::Error, "{frames:?}");
    server.agent().await.retrieve_memory(query(MARKER)).await.unwrap_err();
    let output = server.process.stop().await;
    assert!(output.stderr.contains("turn failed"), "{}", output.stderr);
    assert_unmarked(&output.stdout);
    assert_unmarked(&output.stderr);
}

async fn refuse_and_repeat(provider: TcpListener) {
    let body = format!(r#"{{"error":{{"message":"bad: {MARKER}","type":"{MARKER}","code":"{MARKER}"}}}}"#);
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    while let Ok((mut connection, _)) = provider.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut request = Vec::new();
            let length = |head: &str| {
                let lines = head.lines().filter_map(|line| line.split_once(": "));
                let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
                lengths.next().and_then(|(_, length)| length.parse::<usize>().ok()).unwrap_or(0)
            };
            loop {
                let text = String::from_utf8_lossy(&request).into_owned();
                if let Some((head, _)) = text.split_once("\r\n\r\n")
                    && request.len() >= head.len() + 4 + length(head)
                {
                    break;
                }
                if connection.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let _ = connection.write_all(answer.as_bytes()).await;
            let _ = connection.shutdown().await;
        });
    }
}

fn assert_unmarked(text: &str) {
    for line in text.lines() {
        assert!(!line.contains(MARKER), "{line}");
    }
}
