//! Idempotency and resumption: replay of a repeated request, attaching to a live run, resuming after a lost connection, cancellation.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Code;

use crate::{
    fake_provider::{FakeProvider, Step, partial_answer},
    harness::{
        TEST_TIMEOUT, TestServer, assert_contract, chat_request, complete_answer, endless_answer, error_of,
        joined_deltas, latch, open_stream, paused_answer, read_to_end, read_until, resume_after, resume_after_id,
    },
};

#[tokio::test]
async fn repeated_request_is_replayed_frame_by_frame() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    provider.script(complete_answer("once and for all")).await;
    let first = server.chat(chat_request("r", "s", "hi")).await.unwrap();
    let again = server.chat(chat_request("r", "s", "hi")).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(provider.take_requests().len(), 1);

    let resumed = read_to_end(open_stream(&server, resume_after(chat_request("r", "s", "hi"), &first[3])).await).await;
    assert_eq!(resumed, first[4..]);

    let rejected = server.chat(chat_request("r", "s", "ho")).await.unwrap_err();
    assert_eq!(rejected.code(), Code::InvalidArgument);
    assert!(rejected.message().contains("request_id"), "{rejected:?}");
    assert_eq!(server.get_session("s").await.unwrap().turns.len(), 1);
}

#[tokio::test]
async fn generated_session_is_found_again_by_request_id() {
    let server = TestServer::start(&[]).await;
    let first = server.chat(chat_request("r", "", "hello")).await.unwrap();
    assert_eq!(server.chat(chat_request("r", "", "hello")).await.unwrap(), first);
}

#[tokio::test]
async fn lost_stream_resumes_on_same_and_other_instance() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    let other = server.start_second(&provider.variables()).await;
    for (id, instance) in [("same", &server), ("other", &other)] {
        let (release, latch) = latch();
        provider.script(paused_answer(latch)).await;
        let mut stream = open_stream(&server, chat_request(id, id, "count")).await;
        let mut frames = read_until(&mut stream, "delta").await;
        drop(stream);
        let resumed = open_stream(instance, resume_after(chat_request(id, id, "count"), frames.last().unwrap())).await;
        release.send(()).unwrap();
        frames.extend(read_to_end(resumed).await);
        assert_contract(&frames);
        assert_eq!(joined_deltas(&frames), "one two three", "{id}");
    }
    assert_eq!(provider.take_requests().len(), 2, "the provider was called more than once for an answer");
}

#[tokio::test]
async fn second_call_attaches_to_running_answer() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    let (release, latch) = latch();
    provider.script(paused_answer(latch)).await;
    let mut first = open_stream(&server, chat_request("r", "s", "hi")).await;
    let mut frames = read_until(&mut first, "delta").await;
    let second = open_stream(&server, chat_request("r", "s", "hi")).await;
    release.send(()).unwrap();
    frames.extend(read_to_end(first).await);
    assert_eq!(read_to_end(second).await, frames);
    assert_eq!(provider.take_requests().len(), 1);
}

/// Frames that are stored and read leave the memory of the process; a call that attaches later gets them from the store.
#[tokio::test]
async fn attached_call_gets_frames_that_are_only_in_the_store() {
    let (provider, server) = TestServer::start_with_provider().await;
    let (release, latch) = latch();
    provider.script(paused_answer(latch)).await;
    let mut first = open_stream(&server, chat_request("r", "s", "hi")).await;
    let mut frames = read_until(&mut first, "delta").await;
    wait_until_discarded(&server, frames.len()).await;
    let whole = open_stream(&server, chat_request("r", "s", "hi")).await;
    let rest = open_stream(&server, resume_after(chat_request("r", "s", "hi"), &frames[0])).await;
    release.send(()).unwrap();
    frames.extend(read_to_end(first).await);
    assert_eq!(read_to_end(whole).await, frames);
    assert_eq!(read_to_end(rest).await, frames[1..]);
}

/// Waits for the flush of these frames, and for the heartbeat after it: a driver does not begin it before it has discarded
/// the frames that were flushed.
async fn wait_until_discarded(server: &TestServer, frames: usize) {
    let mut owner = server.connect_as_owner().await;
    let mut lease_at_flush = None;
    timeout(TEST_TIMEOUT, async {
        loop {
            let (stored, lease): (i64, f64) = sqlx::query_as(
                "select coalesce((select sum(frame_count) from run_chunks), 0)::int8,
                        extract(epoch from lease_until)::float8 from runs",
            )
            .fetch_one(&mut owner)
            .await
            .unwrap();
            if usize::try_from(stored).unwrap() >= frames && lease > *lease_at_flush.get_or_insert(lease) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the frames were not flushed");
}

#[tokio::test]
async fn cancel_from_any_instance_persists_the_partial_answer() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    let other = server.start_second(&provider.variables()).await;
    for (id, instance, is_named) in [("one", &server, true), ("two", &other, true), ("three", &other, false)] {
        provider.script(endless_answer("half an")).await;
        let mut stream = open_stream(&server, chat_request(id, id, "hi")).await;
        let mut frames = read_until(&mut stream, "delta").await;
        let cancelled = instance.cancel_turn(id, if is_named { id } else { "" }).await;
        assert_eq!((cancelled.cancelled, cancelled.request_id.as_str()), (true, id));
        frames.extend(read_to_end(stream).await);
        assert_contract(&frames);
        let error = error_of(&frames);
        assert_eq!((error.code.as_str(), error.retryable), ("CANCELLED", false));
        timeout(TEST_TIMEOUT, provider.disconnects.recv())
            .await
            .expect("the provider request was not cancelled")
            .unwrap();
        let session = server.get_session(id).await.unwrap();
        assert!(session.turns[0].interrupted);
        assert_eq!(session.turns[0].messages[1].content, "half an");
        assert!(!instance.cancel_turn(id, "").await.cancelled, "the run has ended");
        let replayed = server.chat(chat_request(id, id, "hi")).await.unwrap();
        assert_eq!(replayed, frames, "a cancelled run is final");
    }
}

#[tokio::test]
async fn answer_is_abandoned_with_its_client_without_grace() {
    let mut provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.push(("RESUME_GRACE_SECONDS", "0"));
    let server = TestServer::start(&variables).await;
    provider.script(endless_answer("half")).await;
    let mut stream = open_stream(&server, chat_request("r", "s", "hi")).await;
    read_until(&mut stream, "delta").await;
    drop(stream);
    timeout(TEST_TIMEOUT, provider.disconnects.recv()).await.expect("the provider request was not cancelled").unwrap();
    let replayed = server.chat(chat_request("r", "s", "hi")).await.unwrap();
    assert_eq!(error_of(&replayed).code, "ABANDONED");
    assert_eq!(joined_deltas(&replayed), "half");
    assert!(server.get_session("s").await.unwrap().turns[0].interrupted);
}

#[tokio::test]
async fn failed_request_without_output_can_be_repeated() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    provider.respond(503, "{}").await;
    let failed = server.chat(chat_request("r", "s", "hi")).await.unwrap();
    assert!(error_of(&failed).retryable);
    provider.script(complete_answer("at last")).await;
    assert_eq!(joined_deltas(&server.chat(chat_request("r", "s", "hi")).await.unwrap()), "at last");
    assert_eq!(provider.take_requests().len(), 2);
    assert_eq!(server.get_session("s").await.unwrap().turns.len(), 1);
}

#[tokio::test]
async fn failure_after_output_is_replayed_without_new_call() {
    let (mut provider, server) = TestServer::start_with_provider().await;
    provider.script([partial_answer("half"), vec![Step::Reset]].concat()).await;
    let failed = server.chat(chat_request("r", "s", "hi")).await.unwrap();
    assert_eq!(error_of(&failed).code, "PROVIDER_STREAM_CUT");
    assert_eq!(server.chat(chat_request("r", "s", "hi")).await.unwrap(), failed);
    assert_eq!(provider.take_requests().len(), 1);
}

#[tokio::test]
async fn unknown_last_response_id_is_rejected() {
    let server = TestServer::start(&[]).await;
    let frames = server.chat(chat_request("r", "s", "hello")).await.unwrap();
    for (id, last) in [("r", "nonsense"), ("never", frames[0].response_id.as_str())] {
        let call = resume_after_id(chat_request(id, "s", "hello"), last);
        let rejected = server.agent().stream_chat(call).await.unwrap_err();
        assert_eq!(rejected.code(), Code::InvalidArgument, "{rejected:?}");
        assert!(rejected.message().contains("x-last-response-id"));
    }
}
