//! The events of one turn.

use std::{panic::AssertUnwindSafe, pin::Pin};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use tracing::{Instrument as _, Span};

use crate::chat::{TurnEvent, TurnFailure};

pub(in crate::service) type TurnEvents = Pin<Box<dyn Stream<Item = TurnEvent> + Send>>;

/// Turns a panic, and an end without a last event, into a failure of the turn. Failures are logged under the current span.
pub(in crate::service) fn events_or_defect(events: TurnEvents) -> impl Stream<Item = TurnEvent> + Send {
    let span = Span::current();
    // After a panic the turn is never polled again, so that no broken state is seen.
    stream::unfold(Some((events, span)), |state| async move {
        let (mut events, span) = state?;
        let next = AssertUnwindSafe(events.next()).catch_unwind().instrument(span.clone()).await;
        let event = match next {
            Ok(Some(event)) => event,
            Ok(None) | Err(_) => TurnEvent::Failed(TurnFailure::Internal),
        };
        if let TurnEvent::Failed(failure) = &event {
            span.in_scope(|| tracing::warn!(error = %failure, "turn failed"));
        }
        let is_last = event.is_last();
        Some((event, (!is_last).then_some((events, span))))
    })
}
