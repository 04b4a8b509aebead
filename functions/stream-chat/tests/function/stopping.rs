//! SIGTERM, by which Lambda ends a function that has an extension.

use std::time::Duration;

use crate::{
    chat, decoded, demo,
    double::Said,
    fake_provider::{FakeProvider, Step, delta, head},
    pb::{self, chat_response::Content},
    with_provider,
};

#[tokio::test]
async fn a_stream_under_way_ends_with_an_error_that_helps_and_the_function_ends_after_its_last_byte() {
    let mut provider = FakeProvider::start().await;
    let mut function = with_provider(&provider).await;
    let first = format!("data: {}\n\n", delta("first"));
    provider
        .script(vec![Step::Send(head(200, "text/event-stream")), Step::Send(first.into_bytes()), Step::AwaitGone])
        .await;
    function.invoke(chat("hello"), Duration::from_mins(5));
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains("first") {
        match function.next().await {
            Said::Head(_) => {}
            Said::Chunk(chunk) => bytes.extend(chunk),
            other => panic!("the answer ended early: {other:?}"),
        }
    }
    function.terminate().await;
    let (frames, trailers) = function.rest(bytes).await.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let frames = decoded(&frames);
    let [.., usage, last] = frames.as_slice() else { panic!("{frames:?}") };
    assert!(matches!(usage.content, Some(Content::Usage(_))), "what was spent is told: {usage:?}");
    let Some(Content::Error(error)) = &last.content else { panic!("{last:?}") };
    assert!(error.retryable, "{error:?}");
    assert_eq!(last.finish_reason(), pb::FinishReason::Error);
    assert_eq!(function.ended().await, Some(0));
    provider.gone.recv().await.expect("the provider is let go");
}

#[tokio::test]
async fn a_function_that_waits_for_an_event_ends_at_once() {
    let mut function = demo().await;
    assert_eq!(function.answer(chat("hello")).await.frames().1["grpc-status"], "0");
    function.terminate().await;
    assert_eq!(function.ended().await, Some(0));
}
