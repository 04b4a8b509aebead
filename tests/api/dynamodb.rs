//! Conversations in DynamoDB behind two servers: what `conversations.rs` tries with Postgres, where it passes through the store.
//!
//! Without what stands in for DynamoDB (`infra/dynamodb.sh`) nothing is tried. All tests share its table, so each has a user.

use agent_service::proto::agent_v1 as pb;
use tonic::Code;

use crate::{
    conversations::{answers, begins, conversations, gate, open, request, rest, resuming, until},
    fake_provider::{FakeProvider, Step, delta, finish, head, usage},
    harness::{TestServer, check_contract, error_of, joined_deltas},
};

/// Two servers on one table; `None` where there is none.
async fn servers(provider: &FakeProvider) -> Option<[TestServer; 2]> {
    std::env::var_os("TEST_DYNAMODB_URL")?;
    let mut variables = provider.variables();
    // What stands in for it is slow where many tests ask it at once.
    variables.extend([("CONVERSATIONS", "dynamodb://agent-conversations"), ("ADMISSION_TIMEOUT_MS", "10000")]);
    let first = TestServer::start(&variables).await;
    let second = TestServer::start_on(&first.database.as_ref()?.service_url(), &variables).await;
    Some([first, second])
}

fn asked(user: &str, id: &str, message: &str) -> pb::ChatRequest {
    pb::ChatRequest { user_id: user.into(), ..request(id, "s", message) }
}

#[tokio::test]
async fn a_lost_connection_is_taken_up_again_on_another_instance_and_replayed_after_the_end() {
    let mut provider = FakeProvider::start().await;
    let Some([here, elsewhere]) = servers(&provider).await else { return };
    let (go_on, gate) = gate();
    let body = |text: &str| Step::Send(format!("data: {}\n\n", delta(text)).into_bytes());
    let end = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", finish("stop"), usage(3, 4));
    let stream = Step::Send(head(200, "text/event-stream"));
    let steps =
        [stream, body("one "), Step::AwaitGate(gate), body("two "), body("three"), Step::Send(end.into_bytes())];
    provider.script(steps.into()).await;
    let question = || asked("resuming", "r", "count");
    let mut lost = open(&here, question()).await;
    let mut frames = until(&mut lost, "delta").await;
    drop(lost);
    let resumed = open(&elsewhere, resuming(question(), frames.last().unwrap())).await;
    go_on.send(()).unwrap();
    frames.extend(rest(resumed).await);
    check_contract(&frames);
    assert_eq!(joined_deltas(&frames), "one two three");
    assert_eq!(elsewhere.chat(question()).await.unwrap(), frames);
    assert_eq!(provider.received().len(), 1, "the provider was asked once");
}

#[tokio::test]
async fn a_conversation_answers_one_request_at_a_time_and_can_be_stopped_and_deleted_from_anywhere() {
    let provider = FakeProvider::start().await;
    let Some([here, elsewhere]) = servers(&provider).await else { return };
    provider.script(begins("half")).await;
    let mut first = open(&here, asked("stopping", "one", "hi")).await;
    until(&mut first, "delta").await;
    let busy = elsewhere.chat(asked("stopping", "two", "hi")).await.unwrap_err();
    assert_eq!(busy.code(), Code::Aborted, "{busy:?}");
    let (user_id, session_id) = ("stopping".to_owned(), "s".to_owned());
    let stop = pb::CancelTurnRequest { user_id: user_id.clone(), session_id: session_id.clone(), ..Default::default() };
    assert!(conversations(&elsewhere).cancel_turn(stop).await.unwrap().into_inner().cancelled);
    assert_eq!(error_of(&rest(first).await).code, "CANCELLED");
    provider.script(answers("free")).await;
    assert_eq!(joined_deltas(&elsewhere.chat(asked("stopping", "two", "hi")).await.unwrap()), "free");
    let wanted =
        pb::GetSessionRequest { user_id: user_id.clone(), session_id: session_id.clone(), ..Default::default() };
    let kept = conversations(&here).get_session(wanted.clone()).await.unwrap().into_inner();
    assert_eq!(kept.turns.iter().filter(|turn| turn.interrupted).count(), 1);
    assert_eq!(kept.turns.len(), 2);
    let session_ids = vec![session_id, "never".to_owned()];
    let deletion = pb::DeleteSessionsRequest { user_id, session_ids, ..Default::default() };
    assert_eq!(conversations(&elsewhere).delete_sessions(deletion).await.unwrap().into_inner().deleted, 1);
    assert_eq!(conversations(&here).get_session(wanted).await.unwrap_err().code(), Code::NotFound);
}
