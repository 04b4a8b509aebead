//! Input validation: each rule of the contract names its field.

use agent_service::proto::agent_v1::{self as pb, chat_request::Input};
use prost::Message as _;
use prost_types::{Struct, Timestamp, Value, value::Kind};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::harness::{TestServer, ask, memory_input, memory_query, raw_call};

fn message(role: &str, content: &str) -> pb::ChatMessage {
    pb::ChatMessage { role: role.into(), content: content.into(), ..Default::default() }
}

fn context(kind: Option<Kind>) -> Option<Struct> {
    Some(Struct { fields: [("key".to_owned(), Value { kind })].into() })
}

fn nested_list(depth: usize) -> Kind {
    (0..depth).fold(Kind::NumberValue(1.0), |inner, _| {
        Kind::ListValue(prost_types::ListValue { values: vec![Value { kind: Some(inner) }] })
    })
}

fn config(temperature: Option<f32>, max_tokens: Option<i32>) -> Option<pb::ChatConfig> {
    Some(pb::ChatConfig { temperature, max_tokens, ..Default::default() })
}

/// Asserts INVALID_ARGUMENT with the field in message and details.
fn assert_names(status: &Status, field: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    assert!(status.message().contains(field), "{field}: {}", status.message());
    let details = status.get_details_bad_request().expect("no BadRequest");
    assert_eq!(details.field_violations[0].field, field);
    assert!(!details.field_violations[0].description.is_empty());
}

#[tokio::test]
async fn invalid_chat_field_is_named() {
    let server = TestServer::start(&[]).await;
    let long = "x".repeat(100_001);
    let cases: Vec<(&str, pb::ChatRequest)> = vec![
        ("user_id", pb::ChatRequest { user_id: String::new(), ..ask("hi") }),
        ("user_id", pb::ChatRequest { user_id: "a/b".into(), ..ask("hi") }),
        ("user_id", pb::ChatRequest { user_id: "u".repeat(257), ..ask("hi") }),
        ("session_id", pb::ChatRequest { session_id: "a/b".into(), ..ask("hi") }),
        ("session_id", pb::ChatRequest { session_id: "a\tb".into(), ..ask("hi") }),
        ("request_id", pb::ChatRequest { request_id: "r".repeat(257), ..ask("hi") }),
        ("input", pb::ChatRequest { input: None, ..ask("") }),
        ("message", ask("")),
        ("message", ask(" \n\u{3000}")),
        ("message", ask("a\0b")),
        ("message", ask(&long)),
        (
            "tool_result.tool_call_id",
            pb::ChatRequest {
                input: Some(Input::ToolResult(pb::ToolResult { tool_call_id: "c1".into(), ..Default::default() })),
                ..ask("")
            },
        ),
        (
            "history[1].role",
            pb::ChatRequest { history: vec![message("user", "a"), message("robot", "b")], ..ask("hi") },
        ),
        ("history[0].tool_call_id", pb::ChatRequest { history: vec![message("tool", "a")], ..ask("hi") }),
        ("history[0].content", pb::ChatRequest { history: vec![message("user", &long)], ..ask("hi") }),
        ("history[0].content", pb::ChatRequest { history: vec![message("user", "a\0")], ..ask("hi") }),
        ("history", pb::ChatRequest { history: vec![message("user", "a"); 201], ..ask("hi") }),
        ("config.temperature", pb::ChatRequest { config: config(Some(2.1), None), ..ask("hi") }),
        ("config.temperature", pb::ChatRequest { config: config(Some(-0.1), None), ..ask("hi") }),
        ("config.temperature", pb::ChatRequest { config: config(Some(f32::NAN), None), ..ask("hi") }),
        ("config.max_tokens", pb::ChatRequest { config: config(None, Some(0)), ..ask("hi") }),
        ("config.max_tokens", pb::ChatRequest { config: config(None, Some(-1)), ..ask("hi") }),
        ("extra_context", pb::ChatRequest { extra_context: context(None), ..ask("hi") }),
        (
            "extra_context",
            pb::ChatRequest { extra_context: context(Some(Kind::NumberValue(f64::INFINITY))), ..ask("hi") },
        ),
        (
            "extra_context",
            pb::ChatRequest { extra_context: context(Some(Kind::StringValue("\0".into()))), ..ask("hi") },
        ),
        (
            "extra_context",
            pb::ChatRequest { extra_context: context(Some(Kind::StringValue(long.clone()))), ..ask("hi") },
        ),
        ("file_ids[0]", pb::ChatRequest { file_ids: vec![String::new()], ..ask("hi") }),
        ("document_filter[0]", pb::ChatRequest { document_filter: vec!["a\0b".into()], ..ask("hi") }),
        ("file_ids", pb::ChatRequest { file_ids: vec!["f".into()], use_document_context: Some(false), ..ask("hi") }),
        (
            "document_filter",
            pb::ChatRequest { document_filter: vec!["f".into()], use_document_context: Some(false), ..ask("hi") },
        ),
        (
            "user_profile.nickname",
            pb::ChatRequest {
                user_profile: Some(pb::UserProfile { nickname: "n\0".into(), ..Default::default() }),
                ..ask("hi")
            },
        ),
    ];
    for (field, request) in cases {
        assert_names(&server.chat(request).await.unwrap_err(), field);
    }
    let valid = pb::ChatRequest {
        extra_context: context(Some(nested_list(20))),
        config: config(Some(2.0), Some(1)),
        ..ask("hi")
    };
    assert!(server.chat(valid).await.is_ok(), "a valid request was rejected");
}

#[tokio::test]
async fn invalid_memory_call_field_is_named() {
    let server = TestServer::start(&[]).await;
    let query = |change: fn(&mut pb::MemoryQuery)| {
        let mut query = memory_query("ann", "x");
        change(&mut query);
        query
    };
    for (field, query) in [
        ("user_id", query(|query| query.user_id.clear())),
        ("query_text", query(|query| query.query_text = " ".into())),
        ("query_text", query(|query| query.query_text = "x".repeat(10_001))),
        ("limit", query(|query| query.limit = -1)),
        ("min_score", query(|query| query.min_score = 1.1)),
        ("min_score", query(|query| query.min_score = f32::NAN)),
        ("hybrid_alpha", query(|query| query.hybrid_alpha = Some(-0.1))),
        (
            "filter.start_time",
            query(|query| {
                let start_time = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
                query.filter = Some(pb::MemoryFilter { start_time, ..Default::default() });
            }),
        ),
    ] {
        assert_names(&server.agent().retrieve_memory(query).await.unwrap_err(), field);
    }

    let memory = |change: fn(&mut pb::MemoryInput)| {
        let mut memory = memory_input("", "x");
        change(&mut memory);
        pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![memory] }
    };
    let too_many = pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![memory_input("", "x"); 1001] };
    for (field, request) in [
        ("memories", too_many),
        ("memories[0].content", memory(|memory| memory.content.clear())),
        ("memories[0].content", memory(|memory| memory.content = "x".repeat(64_001))),
        ("memories[0].content", memory(|memory| memory.content = "a\0".into())),
        ("memories[0].id", memory(|memory| memory.id = "a\0b".into())),
        ("memories[0].id", memory(|memory| memory.id = "x".repeat(257))),
        ("memories[0].created_at", memory(|memory| memory.created_at = Some(Timestamp { seconds: 0, nanos: -1 }))),
        ("memories[0].metadata", memory(|memory| drop(memory.metadata.insert("\0".into(), String::new())))),
        ("memories[0].tags[0]", memory(|memory| memory.tags = vec![String::new()])),
    ] {
        assert_names(&server.memory().add_memories(request).await.unwrap_err(), field);
    }

    let page = |page_token: &str, page_size| pb::ListMemoriesRequest {
        user_id: "ann".into(),
        page_token: page_token.into(),
        page_size,
        ..Default::default()
    };
    for (field, request) in [("page_token", page("nonsense", 0)), ("page_size", page("", -1))] {
        assert_names(&server.memory().list_memories(request).await.unwrap_err(), field);
    }
}

#[tokio::test]
async fn nul_is_rejected_in_every_text_field() {
    let server = TestServer::start(&[]).await;
    let profile = |change: fn(&mut pb::UserProfile)| {
        let mut profile = pb::UserProfile::default();
        change(&mut profile);
        pb::ChatRequest { user_profile: Some(profile), ..ask("hi") }
    };
    let history = |change: fn(&mut pb::ChatMessage)| {
        let mut message = message("user", "a");
        change(&mut message);
        pb::ChatRequest { history: vec![message], ..ask("hi") }
    };
    for (field, request) in [
        ("user_profile.avatar_url", profile(|profile| profile.avatar_url = "\0".into())),
        ("user_profile.extra_context", profile(|profile| profile.extra_context = "\0".into())),
        ("user_profile.preferences", profile(|profile| drop(profile.preferences.insert("a".into(), "\0".into())))),
        ("history[0].name", history(|message| message.name = "\0".into())),
        ("history[0].tool_call_id", history(|message| message.tool_call_id = "\0".into())),
        ("history[0].metadata", history(|message| drop(message.metadata.insert("\0".into(), String::new())))),
        ("chat_mode", pb::ChatRequest { chat_mode: "\0".into(), ..ask("hi") }),
        ("active_tools[0]", pb::ChatRequest { active_tools: vec!["\0".into()], ..ask("hi") }),
    ] {
        assert_names(&server.chat(request).await.unwrap_err(), field);
    }
}

#[tokio::test]
async fn unusual_but_valid_requests_are_accepted() {
    let server = TestServer::start(&[]).await;
    let files = (0..300).map(|n| format!("uploads/{n}.pdf")).collect();
    assert!(server.chat(pb::ChatRequest { file_ids: files, ..ask("hi") }).await.is_ok());
    assert_eq!(server.add_memories("ann", vec![memory_input("conv-26/D1:3", "x")]).await.ids, ["conv-26/D1:3"]);
    // The last second of 9999, which clients send as "no end".
    let end_time = Some(Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 });
    let filter = Some(pb::MemoryFilter { end_time, ..Default::default() });
    assert_eq!(server.retrieve(pb::MemoryQuery { filter, ..memory_query("ann", "x") }).await.total_found, 1);
}

#[tokio::test]
async fn rejection_is_localized_and_names_the_field_verbatim() {
    let server = TestServer::start(&[]).await;
    let profile = pb::UserProfile { language: "zh-CN".into(), ..Default::default() };
    let request = pb::ChatRequest { user_profile: Some(profile), config: config(Some(3.0), None), ..ask("hi") };
    let status = server.chat(request).await.unwrap_err();
    assert_names(&status, "config.temperature");
    assert!(status.message().contains("超出范围"), "{}", status.message());
}

#[tokio::test]
async fn chat_of_31_mb_is_read_and_33_mb_is_too_large() {
    let server = TestServer::start(&[]).await;
    let status = server.chat(ask(&"x".repeat(33 << 20))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_names(&server.chat(ask(&"x".repeat(31 << 20))).await.unwrap_err(), "message");
    assert!(server.chat(ask("hi")).await.is_ok());
}

#[tokio::test]
async fn unknown_method_is_unimplemented() {
    let server = TestServer::start_without_database(&[]).await;
    for path in ["/agent.v1.AgentService/Nothing", "/agent.v1.Nothing/StreamChat", "/"] {
        let mut client = tonic::client::Grpc::new(server.channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<pb::ChatRequest, pb::ChatResponse>::default();
        let call = client.unary(Request::new(ask("hi")), path.parse().unwrap(), codec).await;
        assert_eq!(call.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn undecodable_message_is_invalid_argument() {
    let server = TestServer::start(&[]).await;
    // Nested deeper than prost's recursion limit.
    let deep = pb::ChatRequest { extra_context: context(Some(nested_list(150))), ..ask("hi") }.encode_to_vec();
    for bytes in [vec![0xff; 9], vec![0x0a, 0x02, 0xc3, 0x28], deep] {
        let response = raw_call(&server, "StreamChat", &bytes, "60S").await;
        assert_eq!(response.headers()["grpc-status"], "3", "{:?}", response.headers());
    }
    assert!(server.chat(ask("hi")).await.is_ok());
}
