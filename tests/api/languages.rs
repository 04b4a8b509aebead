//! Every text of a refusal is wholly in the caller's language.

use std::collections::BTreeSet;

use agent_service::{
    config::VARIABLES,
    proto::{
        DESCRIPTOR,
        agent_v1::{self as pb, chat_response::Content},
    },
};
use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use tonic::{Code, Request, Status, client::Grpc};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::harness::{TestServer, ask, run_chat};

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTOR).unwrap()
}

/// Names of the contract, which are the same in every language.
fn identifiers() -> BTreeSet<String> {
    let messages = descriptors().file.into_iter().flat_map(|file| file.message_type);
    let fields = messages.flat_map(|message| message.field).map(|field| field.name().to_owned());
    let metadata = ["user", "id", "x", "recall", "last", "response", "authorization", "internal", "api", "key"];
    let values = ["on", "off", "false", "user", "assistant", "system", "tool", "input"];
    let names = metadata.into_iter().chain(values).chain(VARIABLES.iter().copied()).map(str::to_owned);
    fields.chain(names).collect()
}

fn assert_chinese(text: &str) {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let english: Vec<_> = words
        .filter(|word| word.contains(|c: char| c.is_ascii_alphabetic()) && !identifiers().contains(*word))
        .collect();
    assert!(english.is_empty(), "{text:?} has {english:?}");
    assert!(!text.is_ascii(), "{text}");
}

fn assert_english(text: &str) {
    assert!(!text.is_empty() && text.is_ascii(), "{text}");
}

fn assert_language(status: &Status, is_chinese: bool) {
    let mut texts = vec![status.message().to_owned()];
    let details = status.get_error_details();
    texts
        .extend(details.bad_request().into_iter().flat_map(|it| &it.field_violations).map(|it| it.description.clone()));
    for text in texts {
        if is_chinese { assert_chinese(&text) } else { assert_english(&text) }
    }
}

/// Calls a method with an empty message, which names no user.
async fn call(server: &TestServer, path: &str, method: &MethodDescriptorProto, language: Option<&str>) -> Status {
    let mut client = Grpc::new(server.channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(pb::MemoryQuery::default());
    if let Some(language) = language {
        request.metadata_mut().insert("accept-language", language.parse().unwrap());
    }
    let codec = ProstCodec::<pb::MemoryQuery, pb::MemoryResult>::default();
    let path = path.parse().unwrap();
    if method.server_streaming() {
        client.server_streaming(request, path, codec).await.map(drop).unwrap_err()
    } else {
        client.unary(request, path, codec).await.map(drop).unwrap_err()
    }
}

#[tokio::test]
async fn every_call_refuses_in_the_accepted_language() {
    let server = TestServer::start(&[]).await;
    let mut calls = 0;
    for file in descriptors().file.iter().filter(|file| file.package() == "agent.v1") {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/agent.v1.{}/{}", service.name(), method.name());
                for (language, is_chinese) in
                    [(Some("zh-CN,zh;q=0.9,en;q=0.8"), true), (Some("en"), false), (None, false)]
                {
                    let status = call(&server, &path, method, language).await;
                    assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status:?}");
                    assert!(status.message().contains("user_id"), "{path}: {status:?}");
                    assert_language(&status, is_chinese);
                }
                calls += 1;
            }
        }
    }
    assert!(calls >= 13, "{calls}");
}

/// The call's status; an `accept-language` that the stored profile precedes.
macro_rules! refusal {
    ($client:expr, $method:ident, $message:expr) => {{
        let mut request = Request::new($message);
        request.metadata_mut().insert("user-id", "ann".parse().unwrap());
        request.metadata_mut().insert("accept-language", "en".parse().unwrap());
        ($client.$method(request).await.map(drop).unwrap_err(), stringify!($method))
    }};
}

#[tokio::test]
async fn refusal_is_in_the_language_of_the_stored_profile() {
    let server = TestServer::start(&[]).await;
    let profile = pb::UserProfile { language: "zh-CN".into(), ..Default::default() };
    run_chat(&server, pb::ChatRequest { user_profile: Some(profile), ..ask("hi") }).await;
    let (mut agent, mut memory, mut conversations) = (server.agent(), server.memory(), server.conversations());
    let memories = vec![pb::MemoryInput::default()];
    let page_token = || "x".to_owned();
    let refusals = [
        refusal!(agent, stream_chat, pb::ChatRequest { session_id: "a/b".into(), ..ask("hello") }),
        refusal!(agent, retrieve_memory, pb::MemoryQuery::default()),
        refusal!(memory, add_memories, pb::AddMemoriesRequest { memories, ..Default::default() }),
        refusal!(memory, ingest_document, pb::IngestDocumentRequest::default()),
        refusal!(memory, list_memories, pb::ListMemoriesRequest { page_token: page_token(), ..Default::default() }),
        refusal!(memory, update_memory, pb::UpdateMemoryRequest::default()),
        refusal!(memory, delete_memories, pb::DeleteMemoriesRequest::default()),
        refusal!(
            conversations,
            list_sessions,
            pb::ListSessionsRequest { page_token: page_token(), ..Default::default() }
        ),
        refusal!(conversations, get_session, pb::GetSessionRequest::default()),
        refusal!(conversations, rename_session, pb::RenameSessionRequest::default()),
        refusal!(conversations, delete_sessions, pb::DeleteSessionsRequest::default()),
        refusal!(conversations, cancel_turn, pb::CancelTurnRequest::default()),
    ];
    for (status, method) in refusals {
        assert_eq!(status.code(), Code::InvalidArgument, "{method}: {status:?}");
        assert_language(&status, true);
    }
    let id = "no-such-id".to_owned();
    let update = pb::UpdateMemoryRequest { id: id.clone(), content: Some("x".into()), ..Default::default() };
    for (status, method) in [
        refusal!(memory, update_memory, update),
        refusal!(conversations, get_session, pb::GetSessionRequest { session_id: id, ..Default::default() }),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{method}: {status:?}");
        assert_language(&status, true);
    }
}

#[tokio::test]
async fn stream_speaks_the_language_of_most_letters_without_a_profile() {
    let server = TestServer::start(&[]).await;
    let statuses = async |user: &str, message: &str| -> Vec<String> {
        let frames = run_chat(&server, pb::ChatRequest { user_id: user.into(), ..ask(message) }).await;
        let suffix = if frames[0].prompt_version.ends_with(".zh") { ".zh" } else { ".en" };
        assert!(frames.iter().all(|frame| frame.prompt_version.ends_with(suffix)), "a stream speaks one language");
        let details = frames.into_iter().filter_map(|frame| match frame.content {
            Some(Content::StatusUpdate(status)) => Some(status.details),
            _ => None,
        });
        details.collect()
    };
    for text in statuses("ann", "What does 好 mean?").await {
        assert!(text.starts_with(|c: char| c.is_ascii_alphabetic()), "{text}");
    }
    for text in statuses("bob", "什么是 eigenvalue？").await {
        assert_chinese(&text);
    }
    let blank = server.chat(pb::ChatRequest { user_id: "eve".into(), session_id: "a/b".into(), ..ask("你好") });
    assert_language(&blank.await.unwrap_err(), true);
}

#[tokio::test]
async fn status_names_the_agent_that_works() {
    let server = TestServer::start(&[]).await;
    for frame in run_chat(&server, ask("hi")).await {
        if let Some(Content::StatusUpdate(status)) = frame.content {
            let is_searching = status.state() == pb::agent_status::State::Searching;
            let agent = if is_searching { pb::AgentType::Knowledge } else { pb::AgentType::Orchestrator };
            assert_eq!((status.active_agent(), status.current_agent_name.as_str()), (agent, agent.as_str_name()));
        }
    }
}
