//! The function that learns from turns: from records of the DynamoDB stream or, on a schedule, from the extraction queue. On a
//! schedule it also deletes what has expired in the memory's database.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use lambda_runtime::{LambdaEvent, Runtime, layers::TracingLayer};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tower::util::service_fn;

use super::runtime::run;
use crate::{composition::App, learning::learn_from_records, retention::RetentionSweep};

/// Reserved for the function's response.
const RESPONSE_MARGIN: Duration = Duration::from_secs(3);

/// The function is billed for the time, and goes on at the next event.
const MAX_SWEEP: Duration = Duration::from_mins(3);

/// Lambda retries records of the stream, and then sends them to the dead letter queue. It does not retry the schedule.
#[derive(Debug, thiserror::Error)]
enum LearnEventError {
    #[error("conversations are not stored: CONVERSATIONS is off")]
    NoConversations,
    #[error("the event is neither of a DynamoDB stream nor of a schedule")]
    OtherEvent,
    #[error("expired rows cannot be deleted: {0}")]
    Retention(#[source] sqlx::Error),
    #[error("the extraction queue cannot be read: {0}")]
    Queue(#[from] sqlx::Error),
}

/// Runs the function that learns from turns, until Lambda ends it.
#[must_use]
pub fn learn() -> ExitCode {
    run(async |app| {
        let app = &app;
        let handler = service_fn(async |event: LambdaEvent<Value>| {
            let deadline = deadline(event.context.deadline);
            handle(app, &event.payload, deadline).await.map_err(lambda_runtime::Error::from)
        });
        Box::pin(Runtime::new(handler).layer(TracingLayer::new()).run()).await
    })
}

async fn handle(app: &App, event: &Value, deadline: Instant) -> Result<Value, LearnEventError> {
    let (Some(learner), Some(conversations)) = (&app.learner, &app.conversations) else {
        return Err(LearnEventError::NoConversations);
    };
    if let Some(records) = event.get("Records").and_then(Value::as_array) {
        return Ok(json!(learn_from_records(learner, conversations, records, deadline).await));
    }
    // EventBridge rules and EventBridge Scheduler.
    let is_scheduled = matches!(event.get("source").and_then(Value::as_str), Some("aws.events" | "aws.scheduler"));
    if !is_scheduled {
        return Err(LearnEventError::OtherEvent);
    }
    let settled = match &app.extraction_worker {
        Some(worker) => Box::pin(worker.run_until_idle(deadline)).await,
        None => Ok(0),
    };
    if app.retention.is_configured() {
        Box::pin(delete_expired_rows(&app.retention, deadline.min(Instant::now() + MAX_SWEEP))).await?;
    }
    Ok(json!({ "settled": settled? }))
}

/// Goes on at the next event where the time is too short.
async fn delete_expired_rows(retention: &RetentionSweep, deadline: Instant) -> Result<(), LearnEventError> {
    while let Ok(swept) = timeout_at(deadline, retention.sweep()).await {
        let swept = swept.map_err(LearnEventError::Retention)?;
        tracing::debug!(rows = swept.rows, "deleted expired rows");
        if !swept.is_partial {
            break;
        }
    }
    Ok(())
}

/// `deadline_ms` is Lambda's, in milliseconds since 1970.
fn deadline(deadline_ms: u64) -> Instant {
    let deadline = SystemTime::UNIX_EPOCH + Duration::from_millis(deadline_ms);
    let left = deadline.duration_since(SystemTime::now()).unwrap_or_default();
    Instant::now() + left.saturating_sub(RESPONSE_MARGIN)
}
