//! Conversations: history, sessions, stored profiles, quotas and admission.

use std::time::Duration;

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};
use serde_json::Value;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    fake_provider::ReceivedRequest,
    harness::{
        TestServer, UNREACHABLE_DATABASE, ask, chat_request, complete_answer, endless_answer, joined_deltas,
        open_stream, outline, read_to_end, read_until, resume_after, run_chat,
    },
};

fn prompt_messages(received: &ReceivedRequest) -> Vec<(String, String)> {
    let messages = received.body["messages"].as_array().unwrap();
    let text = |message: &Value, name: &str| message[name].as_str().unwrap_or_default().to_owned();
    messages.iter().skip(1).map(|message| (text(message, "role"), text(message, "content"))).collect()
}

#[tokio::test]
async fn client_history_is_used_in_the_first_turn_only() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    let history = vec![
        pb::ChatMessage { role: "user".into(), content: "earlier".into(), ..Default::default() },
        pb::ChatMessage { role: "assistant".into(), content: "indeed".into(), ..Default::default() },
    ];
    for (message, answer) in [("one?", "first answer"), ("two?", "second answer")] {
        provider.script(complete_answer(answer)).await;
        let request = pb::ChatRequest { history: history.clone(), ..chat_request("", "s", message) };
        let frames = run_chat(&server, request).await;
        assert_eq!(joined_deltas(&frames), answer);
    }
    let pair = |role: &str, content: &str| (role.to_owned(), content.to_owned());
    let received = provider.take_requests();
    let first = prompt_messages(&received[0]);
    assert_eq!(first, [pair("user", "earlier"), pair("assistant", "indeed"), pair("user", "one?")]);
    let second = prompt_messages(&received[1]);
    assert_eq!(second, [pair("user", "one?"), pair("assistant", "first answer"), pair("user", "two?")]);

    let found = server.get_session("s").await.unwrap();
    let turns: Vec<_> = found.turns.iter().map(|turn| (turn.number, turn.messages[1].content.as_str())).collect();
    assert_eq!(turns, [(2, "second answer"), (1, "first answer")]);
    let summary = found.session.unwrap();
    assert_eq!((summary.title.as_str(), summary.turns, summary.running_request_id.as_str()), ("one?", 2, ""));
    assert_eq!(found.turns[0].usage.as_ref().unwrap().total_tokens, 22);
}

#[tokio::test]
async fn conversation_rejects_a_concurrent_request() {
    let (provider, server) = TestServer::start_with_provider().await;
    let other = server.start_second(&provider.variables()).await;
    provider.script(endless_answer("a")).await;
    let mut first = open_stream(&server, chat_request("one", "s", "hi")).await;
    read_until(&mut first, "delta").await;
    for on in [&server, &other] {
        let busy = on.chat(chat_request("two", "s", "hi")).await.unwrap_err();
        assert_eq!(busy.code(), Code::Aborted, "{busy:?}");
        let details = busy.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "CONFLICT");
        assert!(details.retry_info().unwrap().retry_delay.unwrap() <= Duration::from_secs(30));
    }
    assert_eq!(
        server.get_session("s").await.unwrap_err().code(),
        Code::NotFound,
        "a session exists from its first finished turn on"
    );
    assert!(!server.cancel_turn("t", "one").await.cancelled);
    let cancelled = server.cancel_turn("s", "").await;
    assert!(cancelled.cancelled && cancelled.request_id == "one", "{cancelled:?}");
    read_to_end(first).await;
    provider.script(complete_answer("free")).await;
    assert_eq!(joined_deltas(&server.chat(chat_request("two", "s", "hi")).await.unwrap()), "free");
}

#[tokio::test]
async fn quotas_hold_across_instances_with_retry_info() {
    let server =
        TestServer::start(&[("RATE_LIMITS", "requests_per_minute=1000000,concurrent_streams=1,tokens_per_day=1")])
            .await;
    let slow = [("DEMO_CHUNK_DELAY_MS", "3600000")];
    let other = server.start_second(&slow).await;
    let mut endless = open_stream(&other, chat_request("one", "s", "hello")).await;
    read_until(&mut endless, "delta").await;
    let rejected = server.chat(chat_request("two", "t", "hello")).await.unwrap_err();
    assert_eq!(rejected.code(), Code::ResourceExhausted, "{rejected:?}");
    assert!(rejected.get_error_details().retry_info().is_some());
    assert!(rejected.message().contains("same time"), "{rejected:?}");
    let delay = rejected.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    let pushback: i64 = rejected.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    let expected = if delay > Duration::from_secs(3) { -1 } else { i64::try_from(delay.as_millis()).unwrap() };
    assert_eq!(pushback, expected, "{delay:?}");
    assert!(server.cancel_turn("s", "").await.cancelled);
    read_to_end(endless).await;

    let bob = |id: &str| pb::ChatRequest { user_id: "bob".into(), ..chat_request(id, id, "hello") };
    server.chat(bob("one")).await.unwrap();
    let rejected = server.chat(bob("two")).await.unwrap_err();
    assert!(rejected.message().contains("today"), "{rejected:?}");
    assert_eq!(rejected.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1", "-1 tells gRPC clients not to retry");
    assert_eq!(
        server.chat(bob("one")).await.unwrap().last().unwrap().finish_reason(),
        pb::FinishReason::Stop,
        "a replay does not count against quotas"
    );
}

#[tokio::test]
async fn overloaded_process_still_admits_attached_readers() {
    let server = TestServer::start(&[("MAX_CONCURRENT_STREAMS", "1"), ("DEMO_CHUNK_DELAY_MS", "3600000")]).await;
    let mut first = open_stream(&server, chat_request("one", "s", "hello")).await;
    read_until(&mut first, "delta").await;
    let overloaded = server.chat(chat_request("two", "t", "hello")).await.unwrap_err();
    assert_eq!(overloaded.code(), Code::Unavailable, "{overloaded:?}");
    assert!(overloaded.get_error_details().retry_info().is_some());
    let mut attached = open_stream(&server, chat_request("one", "s", "hello")).await;
    assert_eq!(outline(&read_until(&mut attached, "delta").await).last(), Some(&"delta"));
}

#[tokio::test]
async fn stored_profile_completes_a_partial_profile() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    let profile = pb::UserProfile {
        nickname: "Zoë".into(),
        language: "zh-CN".into(),
        timezone: "Asia/Shanghai".into(),
        level: 7,
        ..Default::default()
    };
    let partial = pb::UserProfile { nickname: "Zoe".into(), ..Default::default() };
    for (session, profile) in [("a", Some(profile)), ("b", None), ("c", Some(partial))] {
        provider.script(complete_answer("好")).await;
        let frames =
            server.chat(pb::ChatRequest { user_profile: profile, ..chat_request("", session, "hi") }).await.unwrap();
        let Some(Content::StatusUpdate(status)) = &frames[0].content else { panic!("{frames:?}") };
        assert_eq!(status.details, "正在思考…", "{session}");
    }
    let prompts: Vec<String> =
        provider.take_requests().iter().map(|received| received.body["messages"][0]["content"].to_string()).collect();
    assert!(prompts[1].contains("Zoë") && prompts[1].contains("\\\"level\\\": 7"), "{}", prompts[1]);
    assert!(prompts[2].contains("Zoe") && !prompts[2].contains("Zoë") && prompts[2].contains("\\\"level\\\": 7"));
    provider.script(complete_answer("ok")).await;
    let frames = server.chat(pb::ChatRequest { user_id: "bob".into(), ..chat_request("", "a", "hi") }).await.unwrap();
    let Some(Content::StatusUpdate(status)) = &frames[0].content else { panic!("{frames:?}") };
    assert_eq!(status.details, "Thinking…");
}

#[tokio::test]
async fn sessions_are_listed_renamed_and_deleted() {
    let server = TestServer::start(&[]).await;
    let mut client = server.conversations();
    for id in ["a", "b", "c"] {
        server.chat(chat_request("", id, &format!("hello {id}"))).await.unwrap();
    }
    let list = |size, token: &str| pb::ListSessionsRequest {
        user_id: "ann".into(),
        page_size: size,
        page_token: token.into(),
    };
    let first = client.list_sessions(list(2, "")).await.unwrap().into_inner();
    let second = client.list_sessions(list(2, &first.next_page_token)).await.unwrap().into_inner();
    let ids: Vec<_> =
        first.sessions.iter().chain(&second.sessions).map(|session| session.session_id.as_str()).collect();
    assert_eq!((ids, second.next_page_token.as_str()), (vec!["c", "b", "a"], ""));

    let rename = |id: &str, title: &str| pb::RenameSessionRequest {
        user_id: "ann".into(),
        session_id: id.into(),
        title: title.into(),
    };
    assert_eq!(client.rename_session(rename("a", "期末复习")).await.unwrap().into_inner().title, "期末复习");
    assert_eq!(client.rename_session(rename("z", "x")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.rename_session(rename("a", " \t")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(server.get_session("a").await.unwrap().session.unwrap().title, "期末复习");

    let delete = |ids: &[&str], everything| pb::DeleteSessionsRequest {
        user_id: "ann".into(),
        session_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        everything,
    };
    assert_eq!(client.delete_sessions(delete(&["a", "z"], false)).await.unwrap().into_inner().deleted, 1);
    assert_eq!(server.get_session("a").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.delete_sessions(delete(&[], true)).await.unwrap().into_inner().deleted, 2);
    assert!(client.list_sessions(list(0, "")).await.unwrap().into_inner().sessions.is_empty());
    let without_user = pb::ListSessionsRequest::default();
    assert_eq!(client.list_sessions(without_user).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn conversations_off_disables_resume_and_listing() {
    let server = TestServer::start(&[("CONVERSATIONS", "off")]).await;
    let frames = run_chat(&server, chat_request("r", "s", "hello")).await;
    assert_ne!(server.chat(chat_request("r", "s", "hello")).await.unwrap()[0].response_id, frames[0].response_id);
    let rejected =
        server.agent().stream_chat(resume_after(chat_request("r", "s", "hello"), &frames[0])).await.unwrap_err();
    assert_eq!(rejected.code(), Code::InvalidArgument);
    assert_eq!(server.get_session("s").await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn store_outage_affects_existing_conversations_only() {
    let server = TestServer::start_on(UNREACHABLE_DATABASE, &[("ADMISSION_TIMEOUT_MS", "100")]).await;
    let frames = run_chat(&server, ask("hello")).await;
    assert_eq!(frames[0].metadata["conversation"], "not-kept");
    assert_eq!(frames.last().unwrap().metadata["conversation"], "not-kept");
    let rejected = server.chat(chat_request("", "s", "hello")).await.unwrap_err();
    assert_eq!(rejected.code(), Code::Unavailable);
}

#[tokio::test]
async fn deletion_that_did_not_finish_says_so() {
    let server = TestServer::start_on(UNREACHABLE_DATABASE, &[]).await;
    let delete = pb::DeleteSessionsRequest { user_id: "ann".into(), everything: true, ..Default::default() };
    let failed = server.conversations().delete_sessions(delete).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable);
    assert!(failed.message().contains("not all of the conversations were deleted"), "{failed:?}");
    assert!(failed.get_details_retry_info().is_some(), "{failed:?}");
}
