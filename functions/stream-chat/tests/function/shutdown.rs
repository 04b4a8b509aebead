//! SIGTERM, which Lambda sends to functions with an extension.

use std::time::Duration;

use crate::{
    chat, decoded,
    fake_provider::{FakeProvider, Step, delta, head},
    lambda_runtime::FunctionOutput,
    pb::{self, chat_response::Content},
    start_demo, start_with_provider,
};

#[tokio::test]
async fn sigterm_ends_running_stream_with_retryable_error() {
    let mut provider = FakeProvider::start().await;
    let mut function = start_with_provider(&provider).await;
    let first = format!("data: {}\n\n", delta("first"));
    provider
        .script(vec![Step::Send(head(200, "text/event-stream")), Step::Send(first.into_bytes()), Step::AwaitDisconnect])
        .await;
    function.invoke(chat("hello"), Duration::from_mins(5));
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains("first") {
        match function.next().await {
            FunctionOutput::Head(_) => {}
            FunctionOutput::Chunk(chunk) => bytes.extend(chunk),
            other => panic!("the response ended early: {other:?}"),
        }
    }
    function.terminate().await;
    let (frames, trailers) = function.rest(bytes).await.frames();
    assert_eq!(trailers["grpc-status"], "0");
    let frames = decoded(&frames);
    let [.., usage, last] = frames.as_slice() else { panic!("{frames:?}") };
    assert!(matches!(usage.content, Some(Content::Usage(_))), "usage is missing: {usage:?}");
    let Some(Content::Error(error)) = &last.content else { panic!("{last:?}") };
    assert!(error.retryable, "{error:?}");
    assert_eq!(last.finish_reason(), pb::FinishReason::Error);
    assert_eq!(function.wait().await, Some(0));
    provider.disconnects.recv().await.expect("the provider request was not cancelled");
}

#[tokio::test]
async fn sigterm_stops_idle_function_immediately() {
    let mut function = start_demo().await;
    assert_eq!(function.answer(chat("hello")).await.frames().1["grpc-status"], "0");
    function.terminate().await;
    assert_eq!(function.wait().await, Some(0));
}
