//! The events of one turn.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::Stream;
use tracing::Span;

use crate::chat::{TurnEvent, TurnFailure};

pub(in crate::service) type TurnEvents = Pin<Box<dyn Stream<Item = TurnEvent> + Send>>;

/// Turns a panic, and an end without a last event, into a failure of the turn. Failures are logged under the current span.
pub(in crate::service) fn events_or_defect(events: TurnEvents) -> EventsOrDefect {
    EventsOrDefect { events: Some(events), span: Span::current() }
}

pub(in crate::service) struct EventsOrDefect {
    /// `None` after the last event. After a panic the turn is never polled again, so that no broken state is seen.
    events: Option<TurnEvents>,
    span: Span,
}

impl Stream for EventsOrDefect {
    type Item = TurnEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TurnEvent>> {
        let this = self.get_mut();
        let Some(events) = &mut this.events else { return Poll::Ready(None) };
        let event = match catch_unwind(AssertUnwindSafe(|| events.as_mut().poll_next(context))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Some(event))) => event,
            Ok(Poll::Ready(None)) | Err(_) => TurnEvent::Failed(TurnFailure::Internal),
        };
        if event.is_last() {
            this.events = None;
        }
        if let TurnEvent::Failed(failure) = &event {
            this.span.in_scope(|| match failure.is_caused_by_client() {
                true => tracing::info!(error = %failure, "turn ended by its client"),
                false => tracing::warn!(error = %failure, "turn failed"),
            });
        }
        Poll::Ready(Some(event))
    }
}
