//! The function that learns from turns: from the stream of the table of conversations or, on a schedule, from the queue in the
//! database.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use lambda_runtime::{LambdaEvent, Runtime, layers::TracingLayer};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::util::service_fn;

use super::run;
use crate::{composition::App, learning::learn_from_records};

/// Time that is left for the answer.
const RESERVE: Duration = Duration::from_secs(3);

/// An event that nothing can be learned from. Lambda tries it again, and then tells of it.
#[derive(Debug, thiserror::Error)]
enum NothingToLearn {
    #[error("conversations are not kept: CONVERSATIONS is off")]
    NoConversations,
    #[error("the event has no Records and is none of a schedule")]
    OtherEvent,
    #[error("the queue can not be worked on: {0}")]
    Queue(#[from] sqlx::Error),
}

/// Runs the function that learns from turns, until Lambda ends it.
#[must_use]
pub fn learn() -> ExitCode {
    run(async |app| {
        let app = &app;
        let handler = service_fn(async |event: LambdaEvent<Value>| {
            let until = deadline(event.context.deadline);
            handle(app, &event.payload, until).await.map_err(lambda_runtime::Error::from)
        });
        Runtime::new(handler).layer(TracingLayer::new()).run().await
    })
}

async fn handle(app: &App, event: &Value, until: Instant) -> Result<Value, NothingToLearn> {
    let (Some(learner), Some(conversations)) = (&app.learner, &app.conversations) else {
        return Err(NothingToLearn::NoConversations);
    };
    if let Some(records) = event.get("Records").and_then(Value::as_array) {
        return Ok(json!(learn_from_records(learner, conversations, records, until).await));
    }
    // The schedule of EventBridge, old and new.
    let is_scheduled = matches!(event.get("source").and_then(Value::as_str), Some("aws.events" | "aws.scheduler"));
    match &app.extraction_worker {
        Some(learning) if is_scheduled => Ok(json!({ "settled": learning.run_until_idle(until).await? })),
        _ => Err(NothingToLearn::OtherEvent),
    }
}

/// When the function must have answered, by what Lambda tells in milliseconds since 1970.
fn deadline(millis: u64) -> Instant {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    let left = then.duration_since(SystemTime::now()).unwrap_or_default();
    Instant::now() + left.saturating_sub(RESERVE)
}
