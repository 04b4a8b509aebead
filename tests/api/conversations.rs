//! Conversations that hold: what was said is known in the next turn, an answer outlives a lost connection, and the same request
//! never runs twice.

use std::time::Duration;

use agent_service::proto::agent_v1::{
    self as pb, chat_response::Content, conversation_service_client::ConversationServiceClient,
};
use serde_json::Value;
use tokio::{sync::oneshot, time::timeout};
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    fake_provider::{FakeProvider, Gate, Received, Step, delta, finish, head, stream, usage},
    harness::{PATIENCE, TestServer, ask, check_contract, error_of, joined_deltas, kind, outline},
};

pub fn conversations(server: &TestServer) -> ConversationServiceClient<Channel> {
    ConversationServiceClient::new(server.channel.clone())
}

pub fn request(id: &str, session: &str, message: &str) -> pb::ChatRequest {
    pb::ChatRequest { request_id: id.into(), session_id: session.into(), ..ask(message) }
}

pub fn answers(text: &str) -> Vec<Step> {
    let pieces: Vec<String> = text.split_inclusive(' ').map(delta).collect();
    let (end, tokens) = (finish("stop"), usage(20, 2));
    let events: Vec<&str> =
        pieces.iter().map(String::as_str).chain([end.as_str(), tokens.as_str(), "[DONE]"]).collect();
    stream(&events)
}

/// An answer that begins and never ends.
pub fn begins(text: &str) -> Vec<Step> {
    let body = format!("data: {}\n\n", delta(text));
    vec![Step::Send(head(200, "text/event-stream")), Step::Send(body.into_bytes()), Step::AwaitGone]
}

fn said(received: &Received) -> Vec<(String, String)> {
    let messages = received.body["messages"].as_array().unwrap();
    let text = |message: &Value, name: &str| message[name].as_str().unwrap_or_default().to_owned();
    messages.iter().skip(1).map(|message| (text(message, "role"), text(message, "content"))).collect()
}

/// Something that a script waits for, and what opens it.
pub fn gate() -> (oneshot::Sender<()>, Gate) {
    let (open, opened) = oneshot::channel();
    (open, Gate::new(opened))
}

pub async fn open(
    server: &TestServer,
    request: impl tonic::IntoRequest<pb::ChatRequest>,
) -> Streaming<pb::ChatResponse> {
    server.agent().stream_chat(request).await.unwrap().into_inner()
}

/// Frames up to the first one of a kind.
pub async fn until(stream: &mut Streaming<pb::ChatResponse>, wanted: &str) -> Vec<pb::ChatResponse> {
    let read = async {
        let mut frames = Vec::new();
        while let Some(frame) = stream.message().await.unwrap() {
            let is_it = kind(&frame) == wanted;
            frames.push(frame);
            if is_it {
                break;
            }
        }
        frames
    };
    timeout(PATIENCE, read).await.expect("the stream hangs")
}

pub async fn rest(mut stream: Streaming<pb::ChatResponse>) -> Vec<pb::ChatResponse> {
    until(&mut stream, "none of these").await
}

pub fn resuming(request: pb::ChatRequest, last: &pb::ChatResponse) -> Request<pb::ChatRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("x-last-response-id", last.response_id.parse().unwrap());
    request
}

async fn session(server: &TestServer, id: &str) -> Result<pb::GetSessionResponse, Status> {
    let request = pb::GetSessionRequest { user_id: "ann".into(), session_id: id.into(), ..Default::default() };
    conversations(server).get_session(request).await.map(tonic::Response::into_inner)
}

async fn cancel(server: &TestServer, session: &str, request: &str) -> pb::CancelTurnResponse {
    let (session_id, request_id) = (session.into(), request.into());
    let request = pb::CancelTurnRequest { user_id: "ann".into(), session_id, request_id };
    conversations(server).cancel_turn(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn what_was_said_is_known_in_the_next_turn_and_what_the_client_sends_only_in_the_first() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let history = vec![
        pb::ChatMessage { role: "user".into(), content: "earlier".into(), ..Default::default() },
        pb::ChatMessage { role: "assistant".into(), content: "indeed".into(), ..Default::default() },
    ];
    for (message, answer) in [("one?", "first answer"), ("two?", "second answer")] {
        provider.script(answers(answer)).await;
        let request = pb::ChatRequest { history: history.clone(), ..request("", "s", message) };
        let frames = server.chat(request).await.unwrap();
        check_contract(&frames);
        assert_eq!(joined_deltas(&frames), answer);
    }
    let pair = |role: &str, content: &str| (role.to_owned(), content.to_owned());
    let received = provider.received();
    let first = said(&received[0]);
    assert_eq!(first, [pair("user", "earlier"), pair("assistant", "indeed"), pair("user", "one?")]);
    let second = said(&received[1]);
    assert_eq!(second, [pair("user", "one?"), pair("assistant", "first answer"), pair("user", "two?")]);

    let found = session(&server, "s").await.unwrap();
    let kept: Vec<_> = found.turns.iter().map(|turn| (turn.number, turn.messages[1].content.as_str())).collect();
    assert_eq!(kept, [(2, "second answer"), (1, "first answer")]);
    let told = found.session.unwrap();
    assert_eq!((told.title.as_str(), told.turns, told.running_request_id.as_str()), ("one?", 2, ""));
    assert_eq!(found.turns[0].usage.as_ref().unwrap().total_tokens, 22);
}

#[tokio::test]
async fn the_same_request_is_answered_once_and_replayed_frame_by_frame() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.script(answers("once and for all")).await;
    let first = server.chat(request("r", "s", "hi")).await.unwrap();
    let again = server.chat(request("r", "s", "hi")).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(provider.received().len(), 1);

    let from_the_middle = rest(open(&server, resuming(request("r", "s", "hi"), &first[3])).await).await;
    assert_eq!(from_the_middle, first[4..]);

    let other = server.chat(request("r", "s", "ho")).await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument);
    assert!(other.message().contains("request_id"), "{other:?}");
    assert_eq!(session(&server, "s").await.unwrap().turns.len(), 1);
}

#[tokio::test]
async fn a_conversation_that_the_server_named_is_found_again_by_the_request() {
    let server = TestServer::start(&[]).await;
    let first = server.chat(request("r", "", "hello")).await.unwrap();
    assert_eq!(server.chat(request("r", "", "hello")).await.unwrap(), first);
}

#[tokio::test]
async fn a_lost_connection_is_taken_up_again_where_it_broke_here_and_on_another_instance() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let url = server.database.as_ref().unwrap().service_url();
    let other = TestServer::start_on(&url, &provider.variables()).await;
    for (id, on) in [("here", &server), ("elsewhere", &other)] {
        let (go_on, gate) = gate();
        let body = |text: &str| format!("data: {}\n\n", delta(text)).into_bytes();
        let end = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", finish("stop"), usage(3, 4));
        provider
            .script(vec![
                Step::Send(head(200, "text/event-stream")),
                Step::Send(body("one ")),
                Step::AwaitGate(gate),
                Step::Send(body("two ")),
                Step::Send(body("three")),
                Step::Send(end.into_bytes()),
            ])
            .await;
        let mut stream = open(&server, request(id, id, "count")).await;
        let mut frames = until(&mut stream, "delta").await;
        drop(stream);
        let resumed = open(on, resuming(request(id, id, "count"), frames.last().unwrap())).await;
        go_on.send(()).unwrap();
        frames.extend(rest(resumed).await);
        check_contract(&frames);
        assert_eq!(joined_deltas(&frames), "one two three", "{id}");
    }
    assert_eq!(provider.received().len(), 2, "the provider was asked once for each");
}

#[tokio::test]
async fn a_second_call_reads_along_from_the_beginning() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let (go_on, gate) = gate();
    let body = |text: &str| format!("data: {}\n\n", delta(text)).into_bytes();
    let end = format!("data: {}\n\ndata: [DONE]\n\n", finish("stop"));
    provider
        .script(vec![
            Step::Send(head(200, "text/event-stream")),
            Step::Send(body("a")),
            Step::AwaitGate(gate),
            Step::Send(body("b")),
            Step::Send(end.into_bytes()),
        ])
        .await;
    let mut first = open(&server, request("r", "s", "hi")).await;
    let mut seen = until(&mut first, "delta").await;
    let second = open(&server, request("r", "s", "hi")).await;
    go_on.send(()).unwrap();
    seen.extend(rest(first).await);
    assert_eq!(rest(second).await, seen);
    assert_eq!(provider.received().len(), 1);
}

#[tokio::test]
async fn a_conversation_answers_one_request_at_a_time() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let other = TestServer::start_on(&server.database.as_ref().unwrap().service_url(), &provider.variables()).await;
    provider.script(begins("a")).await;
    let mut first = open(&server, request("one", "s", "hi")).await;
    until(&mut first, "delta").await;
    for on in [&server, &other] {
        let busy = on.chat(request("two", "s", "hi")).await.unwrap_err();
        assert_eq!(busy.code(), Code::Aborted, "{busy:?}");
        let details = busy.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "CONFLICT");
        assert!(details.retry_info().unwrap().retry_delay.unwrap() <= Duration::from_secs(30));
    }
    assert_eq!(session(&server, "s").await.unwrap_err().code(), Code::NotFound, "there is no turn yet");
    // In another conversation it does not run: then it would be stopped already.
    assert!(!cancel(&server, "t", "one").await.cancelled);
    let stopped = cancel(&server, "s", "").await;
    assert!(stopped.cancelled && stopped.request_id == "one", "{stopped:?}");
    rest(first).await;
    provider.script(answers("free")).await;
    assert_eq!(joined_deltas(&server.chat(request("two", "s", "hi")).await.unwrap()), "free");
}

#[tokio::test]
async fn stopping_an_answer_ends_it_here_and_elsewhere_and_what_was_said_is_kept() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let other = TestServer::start_on(&server.database.as_ref().unwrap().service_url(), &provider.variables()).await;
    for (id, by, named) in [("one", &server, true), ("two", &other, true), ("three", &other, false)] {
        provider.script(begins("half an")).await;
        let mut stream = open(&server, request(id, id, "hi")).await;
        let mut frames = until(&mut stream, "delta").await;
        let stopped = cancel(by, id, if named { id } else { "" }).await;
        assert_eq!((stopped.cancelled, stopped.request_id.as_str()), (true, id));
        frames.extend(rest(stream).await);
        check_contract(&frames);
        let error = error_of(&frames);
        assert_eq!((error.code.as_str(), error.retryable), ("CANCELLED", false));
        timeout(PATIENCE, provider.gone.recv()).await.expect("the provider is told").unwrap();
        let kept = session(&server, id).await.unwrap();
        assert!(kept.turns[0].interrupted);
        assert_eq!(kept.turns[0].messages[1].content, "half an");
        assert!(!cancel(by, id, "").await.cancelled, "there is nothing left to stop");
        let replayed = server.chat(request(id, id, "hi")).await.unwrap();
        assert_eq!(replayed, frames, "it is stopped for good");
    }
}

#[tokio::test]
async fn without_grace_an_answer_stops_when_its_client_is_lost_and_with_it_goes_on() {
    let mut provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.push(("RESUME_GRACE_SECONDS", "0"));
    let server = TestServer::start(&variables).await;
    provider.script(begins("half")).await;
    let mut stream = open(&server, request("r", "s", "hi")).await;
    until(&mut stream, "delta").await;
    drop(stream);
    timeout(PATIENCE, provider.gone.recv()).await.expect("the provider is told").unwrap();
    let replayed = server.chat(request("r", "s", "hi")).await.unwrap();
    assert_eq!(error_of(&replayed).code, "ABANDONED");
    assert_eq!(joined_deltas(&replayed), "half");
    assert!(session(&server, "s").await.unwrap().turns[0].interrupted);
}

#[tokio::test]
async fn a_request_that_came_to_nothing_may_be_repeated() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.refuse(503, "{}").await;
    let failed = server.chat(request("r", "s", "hi")).await.unwrap();
    assert!(error_of(&failed).retryable);
    provider.script(answers("at last")).await;
    assert_eq!(joined_deltas(&server.chat(request("r", "s", "hi")).await.unwrap()), "at last");
    assert_eq!(provider.received().len(), 2);
    assert_eq!(session(&server, "s").await.unwrap().turns.len(), 1);
}

#[tokio::test]
async fn a_failure_in_the_middle_is_replayed_and_never_billed_again() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let body = format!("data: {}\n\n", delta("half")).into_bytes();
    provider.script(vec![Step::Send(head(200, "text/event-stream")), Step::Send(body), Step::Reset]).await;
    let failed = server.chat(request("r", "s", "hi")).await.unwrap();
    assert_eq!(error_of(&failed).code, "PROVIDER_STREAM_CUT");
    assert_eq!(server.chat(request("r", "s", "hi")).await.unwrap(), failed);
    assert_eq!(provider.received().len(), 1);
}

#[tokio::test]
async fn a_frame_that_is_none_of_the_answer_is_refused() {
    let server = TestServer::start(&[]).await;
    let frames = server.chat(request("r", "s", "hello")).await.unwrap();
    for (id, last) in [("r", "nonsense"), ("never", frames[0].response_id.as_str())] {
        let mut call = Request::new(request(id, "s", "hello"));
        call.metadata_mut().insert("x-last-response-id", last.parse().unwrap());
        let refused = server.agent().stream_chat(call).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains("x-last-response-id"));
    }
}

#[tokio::test]
async fn limits_hold_across_instances_and_tell_when_to_come_back() {
    let server =
        TestServer::start(&[("RATE_LIMITS", "requests_per_minute=1000000,concurrent_streams=1,tokens_per_day=1")])
            .await;
    let url = server.database.as_ref().unwrap().service_url();
    let slow = [("DEMO_CHUNK_DELAY_MS", "3600000")];
    let other = TestServer::start_on(&url, &slow).await;
    let mut endless = open(&other, request("one", "s", "hello")).await;
    until(&mut endless, "delta").await;
    let over = server.chat(request("two", "t", "hello")).await.unwrap_err();
    assert_eq!(over.code(), Code::ResourceExhausted, "{over:?}");
    assert!(over.get_error_details().retry_info().is_some());
    assert!(over.message().contains("same time"), "{over:?}");
    let pushback: i64 = over.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((0..=60_000).contains(&pushback));
    assert!(cancel(&server, "s", "").await.cancelled);
    rest(endless).await;

    let bob = |id: &str| pb::ChatRequest { user_id: "bob".into(), ..request(id, id, "hello") };
    server.chat(bob("one")).await.unwrap();
    let over = server.chat(bob("two")).await.unwrap_err();
    assert!(over.message().contains("today"), "{over:?}");
    assert_eq!(over.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1", "trying again within minutes is no use");
    assert_eq!(
        server.chat(bob("one")).await.unwrap().last().unwrap().finish_reason(),
        pb::FinishReason::Stop,
        "a replay costs nothing"
    );
}

#[tokio::test]
async fn a_full_process_turns_calls_away_but_not_those_that_read_along() {
    let server = TestServer::start(&[("MAX_CONCURRENT_STREAMS", "1"), ("DEMO_CHUNK_DELAY_MS", "3600000")]).await;
    let mut first = open(&server, request("one", "s", "hello")).await;
    until(&mut first, "delta").await;
    let full = server.chat(request("two", "t", "hello")).await.unwrap_err();
    assert_eq!(full.code(), Code::Unavailable, "{full:?}");
    assert!(full.get_error_details().retry_info().is_some());
    let mut along = open(&server, request("one", "s", "hello")).await;
    assert_eq!(outline(&until(&mut along, "delta").await).last(), Some(&"delta"));
}

#[tokio::test]
async fn the_profile_is_remembered_where_a_request_brings_none_or_a_part() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let profile = pb::UserProfile {
        nickname: "Zoë".into(),
        language: "zh-CN".into(),
        timezone: "Asia/Shanghai".into(),
        level: 7,
        ..Default::default()
    };
    let partly = pb::UserProfile { nickname: "Zoe".into(), ..Default::default() };
    for (session, profile) in [("a", Some(profile)), ("b", None), ("c", Some(partly))] {
        provider.script(answers("好")).await;
        let frames =
            server.chat(pb::ChatRequest { user_profile: profile, ..request("", session, "hi") }).await.unwrap();
        let Some(Content::StatusUpdate(status)) = &frames[0].content else { panic!("{frames:?}") };
        assert_eq!(status.details, "正在思考…", "{session}");
    }
    let prompts: Vec<String> =
        provider.received().iter().map(|received| received.body["messages"][0]["content"].to_string()).collect();
    assert!(prompts[1].contains("Zoë") && prompts[1].contains("\\\"level\\\": 7"), "{}", prompts[1]);
    assert!(prompts[2].contains("Zoe") && !prompts[2].contains("Zoë") && prompts[2].contains("\\\"level\\\": 7"));
    // Another user's profile is nobody else's.
    provider.script(answers("ok")).await;
    let frames = server.chat(pb::ChatRequest { user_id: "bob".into(), ..request("", "a", "hi") }).await.unwrap();
    let Some(Content::StatusUpdate(status)) = &frames[0].content else { panic!("{frames:?}") };
    assert_eq!(status.details, "Thinking…");
}

#[tokio::test]
async fn conversations_are_listed_renamed_and_deleted() {
    let server = TestServer::start(&[]).await;
    let mut client = conversations(&server);
    for id in ["a", "b", "c"] {
        server.chat(request("", id, &format!("hello {id}"))).await.unwrap();
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
    assert_eq!(session(&server, "a").await.unwrap().session.unwrap().title, "期末复习");

    let delete = |ids: &[&str], everything| pb::DeleteSessionsRequest {
        user_id: "ann".into(),
        session_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        everything,
    };
    assert_eq!(client.delete_sessions(delete(&["a", "z"], false)).await.unwrap().into_inner().deleted, 1);
    assert_eq!(session(&server, "a").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.delete_sessions(delete(&[], true)).await.unwrap().into_inner().deleted, 2);
    assert!(client.list_sessions(list(0, "")).await.unwrap().into_inner().sessions.is_empty());
    let nobody = pb::ListSessionsRequest::default();
    assert_eq!(client.list_sessions(nobody).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn where_nothing_is_kept_nothing_is_resumed_listed_or_in_the_way() {
    let server = TestServer::start(&[("CONVERSATIONS", "off")]).await;
    let frames = server.chat(request("r", "s", "hello")).await.unwrap();
    check_contract(&frames);
    assert_ne!(server.chat(request("r", "s", "hello")).await.unwrap()[0].response_id, frames[0].response_id);
    let refused = server.agent().stream_chat(resuming(request("r", "s", "hello"), &frames[0])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(session(&server, "s").await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_new_conversation_is_answered_without_its_store_and_an_old_one_is_not() {
    let server = TestServer::start_on("postgres://agent@127.0.0.1:1/nowhere", &[("ADMISSION_TIMEOUT_MS", "100")]).await;
    let frames = server.chat(ask("hello")).await.unwrap();
    check_contract(&frames);
    assert_eq!(frames[0].metadata["conversation"], "not-kept");
    assert_eq!(frames.last().unwrap().metadata["conversation"], "not-kept");
    let refused = server.chat(request("", "s", "hello")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}
