//! Conversations in DynamoDB behind two instances: the cases of `conversations.rs` and `resume.rs` that pass through the store.
//!
//! Skipped without the DynamoDB emulator of `infra/dynamodb.sh`. All tests share its table, so each has its own user.

use agent_service::proto::agent_v1 as pb;
use tonic::Code;

use crate::{
    fake_provider::FakeProvider,
    harness::{
        TestServer, assert_contract, chat_request, complete_answer, endless_answer, error_of, joined_deltas, latch,
        open_stream, paused_answer, read_to_end, read_until, resume_after,
    },
};

/// Two instances on one table; `None` without the emulator.
async fn start_instances(provider: &FakeProvider) -> Option<[TestServer; 2]> {
    std::env::var_os("TEST_DYNAMODB_URL")?;
    let mut variables = provider.variables();
    // The emulator is slow under concurrent tests.
    variables.extend([("CONVERSATIONS", "dynamodb://agent-conversations"), ("ADMISSION_TIMEOUT_MS", "10000")]);
    let first = TestServer::start(&variables).await;
    let second = first.start_second(&variables).await;
    Some([first, second])
}

fn request_of(user: &str, id: &str, message: &str) -> pb::ChatRequest {
    pb::ChatRequest { user_id: user.into(), ..chat_request(id, "s", message) }
}

#[tokio::test]
async fn lost_stream_resumes_elsewhere_and_replays_after_end() {
    let mut provider = FakeProvider::start().await;
    let Some([first, second]) = start_instances(&provider).await else { return };
    let (release, latch) = latch();
    provider.script(paused_answer(latch)).await;
    let question = || request_of("resuming", "r", "count");
    let mut lost = open_stream(&first, question()).await;
    let mut frames = read_until(&mut lost, "delta").await;
    drop(lost);
    let resumed = open_stream(&second, resume_after(question(), frames.last().unwrap())).await;
    release.send(()).unwrap();
    frames.extend(read_to_end(resumed).await);
    assert_contract(&frames);
    assert_eq!(joined_deltas(&frames), "one two three");
    assert_eq!(second.chat(question()).await.unwrap(), frames);
    assert_eq!(provider.take_requests().len(), 1, "the provider was called more than once");
}

#[tokio::test]
async fn conversation_is_busy_cancelled_and_deleted_across_instances() {
    let provider = FakeProvider::start().await;
    let Some([first, second]) = start_instances(&provider).await else { return };
    provider.script(endless_answer("half")).await;
    let mut stream = open_stream(&first, request_of("stopping", "one", "hi")).await;
    read_until(&mut stream, "delta").await;
    let busy = second.chat(request_of("stopping", "two", "hi")).await.unwrap_err();
    assert_eq!(busy.code(), Code::Aborted, "{busy:?}");
    let (user_id, session_id) = ("stopping".to_owned(), "s".to_owned());
    let stop = pb::CancelTurnRequest { user_id: user_id.clone(), session_id: session_id.clone(), ..Default::default() };
    assert!(second.conversations().cancel_turn(stop).await.unwrap().into_inner().cancelled);
    assert_eq!(error_of(&read_to_end(stream).await).code, "CANCELLED");
    provider.script(complete_answer("free")).await;
    assert_eq!(joined_deltas(&second.chat(request_of("stopping", "two", "hi")).await.unwrap()), "free");
    let session =
        pb::GetSessionRequest { user_id: user_id.clone(), session_id: session_id.clone(), ..Default::default() };
    let found = first.conversations().get_session(session.clone()).await.unwrap().into_inner();
    assert_eq!(found.turns.iter().filter(|turn| turn.interrupted).count(), 1);
    assert_eq!(found.turns.len(), 2);
    let session_ids = vec![session_id, "never".to_owned()];
    let deletion = pb::DeleteSessionsRequest { user_id, session_ids, ..Default::default() };
    assert_eq!(second.conversations().delete_sessions(deletion).await.unwrap().into_inner().deleted, 1);
    assert_eq!(first.conversations().get_session(session).await.unwrap_err().code(), Code::NotFound);
}
