//! The driver of a run: it polls the turn, appends its frames to the log, persists them under the lease, and finishes the run.
//! It does not end with the call that started it, but when the turn ends or is stopped.
//!
//! The last frame becomes visible only after the store has committed the end of the run, so that no client sees an answer that
//! is lost. A driver that loses its lease stops its turn.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, Stream, future::BoxFuture};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    task::consume_budget,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep},
};

use super::{
    events::{TurnEvents, events_or_defect},
    live::{LiveRun, LiveRuns},
    log::{FrameCursor, FrameLog, push_delimited},
    presence::wait_until_unwanted,
};
use crate::{
    chat::{TurnClosing, TurnEvent, TurnFailure},
    conversation::{
        ConversationStore, FrameChunk, Lease, NewTurn, PendingTurnDisposition, RunEnding, RunOutcome, RunSignals,
        StoreError,
    },
    service::{
        envelope::Envelope,
        frame::{EncodedFrame, FrameBuilder},
    },
};

/// Longest time that a frame waits before it is flushed to the store.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Longest time between two heartbeats, and how late a cancellation by another process may be seen.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Ready events of a turn after which everything else has its turn.
const MAX_CONSECUTIVE_EVENTS: u8 = 32;
/// Delays between attempts to commit the end of a run; its client waits for the last frame meanwhile.
const FINISH_BACKOFF: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// After this no further attempt begins.
const FINISH_WINDOW: Duration = Duration::from_secs(30);

pub(in crate::service) struct AdmittedRun {
    pub(in crate::service) lease: Lease,
    pub(in crate::service) envelope: Envelope,
    pub(in crate::service) builder: FrameBuilder,
    /// The user's profile as JSON, if the request changed it.
    pub(in crate::service) changed_profile: Option<Vec<u8>>,
    pub(in crate::service) permit: OwnedSemaphorePermit,
}

pub(super) struct RunDriver {
    store: Arc<dyn ConversationStore>,
    lease: Lease,
    builder: FrameBuilder,
    changed_profile: Option<Vec<u8>>,
    live: LiveRun,
    /// Stops the turn; `None` = it was stopped.
    stop: Option<oneshot::Sender<TurnFailure>>,
    ticker: Interval,
    consecutive_events: u8,
    /// A reason to stop the turn; polled only until it is stopped.
    stop_reason: BoxFuture<'static, DriverStep>,
    flush: Option<Flush>,
    last_heartbeat: Instant,
    /// Frames before it are persisted.
    persisted: FrameCursor,
    lease_is_lost: bool,
    progress: RunProgress,
    has_finished: bool,
}

#[derive(Default)]
struct RunProgress {
    tokens: u32,
    /// The client saw text or a tool's result.
    has_output: bool,
    closing: Option<Box<TurnClosing>>,
}

impl RunProgress {
    /// Without output and cost, such a failure leaves nothing: the same request may run again.
    fn outcome(&self, may_be_repeated: bool) -> RunOutcome {
        let came_to_nothing = !self.has_output && self.tokens == 0;
        if may_be_repeated && came_to_nothing { RunOutcome::Repeatable } else { RunOutcome::Final }
    }
}

type Flush = BoxFuture<'static, (Result<RunSignals, StoreError>, FrameCursor)>;

enum DriverStep {
    Flushed(Result<RunSignals, StoreError>, FrameCursor),
    CancelRequested,
    Unwanted(TurnFailure),
    Tick,
    Event(TurnEvent),
}

impl RunDriver {
    /// `grace` is the time that the run goes on without a reader; `stop` stops its turn.
    pub(super) fn new(
        store: Arc<dyn ConversationStore>,
        run: AdmittedRun,
        grace: Duration,
        runs: &LiveRuns,
        stop: oneshot::Sender<TurnFailure>,
    ) -> Self {
        let AdmittedRun { lease, envelope, builder, changed_profile, permit } = run;
        let live = runs.insert((lease.key.user.clone(), lease.key.request.clone()), FrameLog::new(envelope), permit);
        // Not at once: a turn that ends before stores its frames with its end.
        let mut ticker = interval_at(Instant::now() + FLUSH_INTERVAL, FLUSH_INTERVAL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let cancelled = live.log.cancelled.clone().cancelled_owned();
        let owner = (store.clone(), lease.clone());
        let set_read = move |is_read| {
            let (store, lease) = owner.clone();
            async move { store.set_read(&lease, is_read).await }
        };
        let unwanted = wait_until_unwanted(set_read, live.log.clone(), grace);
        Self {
            store,
            lease,
            builder,
            changed_profile,
            stop_reason: stop_reason(cancelled, unwanted),
            live,
            stop: Some(stop),
            ticker,
            consecutive_events: 0,
            flush: None,
            last_heartbeat: Instant::now(),
            persisted: FrameCursor::default(),
            lease_is_lost: false,
            progress: RunProgress::default(),
            has_finished: false,
        }
    }

    pub(super) fn log(&self) -> &Arc<FrameLog> {
        &self.live.log
    }

    pub(super) async fn run(mut self, events: TurnEvents) {
        let mut events = pin!(events_or_defect(events));
        let last = loop {
            match self.next_step(events.as_mut()).await {
                DriverStep::Flushed(result, cursor) => self.on_flushed(result, cursor),
                DriverStep::CancelRequested => self.stop(TurnFailure::Cancelled),
                DriverStep::Unwanted(failure) => self.stop(failure),
                DriverStep::Tick => self.on_tick(),
                DriverStep::Event(event) if event.is_last() => break event,
                DriverStep::Event(event) => {
                    self.on_event(event);
                    // A turn that always has an event ready lets other tasks run.
                    consume_budget().await;
                }
            }
        };
        // At most one write of a run is in flight.
        if let Some(flush) = self.flush.take()
            && let (Ok(_), cursor) = flush.await
        {
            self.persisted = cursor;
        }
        self.finish(last).await;
    }

    /// The turn's events come first, because nearly all steps are deltas. A fast turn starves no other step:
    /// [`MAX_CONSECUTIVE_EVENTS`].
    async fn next_step(&mut self, mut events: Pin<&mut (impl Stream<Item = TurnEvent> + Send)>) -> DriverStep {
        let event_step =
            |event: Option<TurnEvent>| DriverStep::Event(event.unwrap_or(TurnEvent::Failed(TurnFailure::Internal)));
        poll_fn(|context| {
            let is_other_turn = self.consecutive_events >= MAX_CONSECUTIVE_EVENTS;
            if is_other_turn && let Poll::Ready(step) = self.poll_other_step(context) {
                return Poll::Ready(step);
            }
            if let Poll::Ready(event) = events.as_mut().poll_next(context) {
                self.consecutive_events = if is_other_turn { 0 } else { self.consecutive_events + 1 };
                return Poll::Ready(event_step(event));
            }
            self.consecutive_events = 0;
            if is_other_turn { Poll::Pending } else { self.poll_other_step(context) }
        })
        .await
    }

    fn poll_other_step(&mut self, context: &mut Context<'_>) -> Poll<DriverStep> {
        if let Some(flush) = &mut self.flush
            && let Poll::Ready((result, cursor)) = flush.as_mut().poll(context)
        {
            return Poll::Ready(DriverStep::Flushed(result, cursor));
        }
        if self.stop.is_some()
            && let Poll::Ready(step) = self.stop_reason.as_mut().poll(context)
        {
            return Poll::Ready(step);
        }
        self.ticker.poll_tick(context).map(|_| DriverStep::Tick)
    }

    fn on_flushed(&mut self, result: Result<RunSignals, StoreError>, cursor: FrameCursor) {
        self.flush = None;
        match result {
            Ok(signals) => {
                self.persisted = cursor;
                self.log().discard(cursor);
                if signals.is_cancelled {
                    self.stop(TurnFailure::Cancelled);
                }
            }
            Err(StoreError::LeaseLost) => {
                self.lease_is_lost = true;
                self.stop(TurnFailure::NotPersisted);
            }
            Err(error) => tracing::warn!(%error, "flush of frames failed; it is retried"),
        }
    }

    /// Flushes new frames. Without any, an empty checkpoint is the heartbeat that extends the lease.
    fn on_tick(&mut self) {
        let is_due = self.log().has_more(self.persisted) || self.last_heartbeat.elapsed() >= HEARTBEAT_INTERVAL;
        if is_due && self.flush.is_none() && !self.lease_is_lost {
            self.last_heartbeat = Instant::now();
            self.flush = Some(self.checkpoint());
        }
    }

    fn on_event(&mut self, event: TurnEvent) {
        match &event {
            TurnEvent::Delta(_) | TurnEvent::ToolExecuted(_) => self.progress.has_output = true,
            TurnEvent::Usage(report) => {
                self.progress.tokens = report.usage.prompt.saturating_add(report.usage.completion);
            }
            _ => {}
        }
        if let TurnEvent::Closing(closing) = event {
            self.progress.closing = Some(closing);
        } else if let Some(frame) = self.builder.build(event)
            && !self.log().push(&frame)
        {
            self.stop(TurnFailure::Internal);
        }
    }

    /// Only the first request counts.
    fn stop(&mut self, failure: TurnFailure) {
        if let Some(stop) = self.stop.take() {
            // A turn that has just ended receives nothing.
            let _ = stop.send(failure);
        }
    }

    fn checkpoint(&self) -> Flush {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let (chunk, cursor) = match self.log().chunk(self.persisted) {
            Some((chunk, cursor)) => (Some(chunk), cursor),
            None => (None, self.persisted),
        };
        async move { (store.checkpoint(&lease, chunk.as_ref()).await, cursor) }.boxed()
    }

    async fn finish(mut self, last: TurnEvent) {
        let failure = match &last {
            TurnEvent::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        let Some(frame) = self.builder.build(last) else { return };
        let ending = self.ending(failure.as_ref());
        let (frame, is_stored) = match self.commit(ending, &frame).await {
            Ok(()) => (frame, true),
            Err(error) => {
                tracing::error!(%error, "the end of a turn could not be persisted");
                // An answer that was not persisted is not shown as if it were.
                (if failure.is_some() { frame } else { self.builder.failure(&TurnFailure::NotPersisted) }, false)
            }
        };
        self.log().push_last(&frame, is_stored);
        self.has_finished = true;
    }

    fn ending(&mut self, failure: Option<&TurnFailure>) -> RunEnding {
        let closing = self.progress.closing.take().map_or_else(TurnClosing::default, |closing| *closing);
        let may_be_repeated = failure.is_some_and(TurnFailure::leaves_request_repeatable);
        let outcome = self.progress.outcome(may_be_repeated);
        let is_reopened = closing.resumed_turn.is_some() && may_be_repeated;
        let disposition = if is_reopened { PendingTurnDisposition::Reopened } else { PendingTurnDisposition::Done };
        // A turn that may run again is stored when it finishes, not in part before: otherwise the session would hold its
        // question twice.
        let turn = closing.turn.filter(|_| !is_reopened && outcome == RunOutcome::Final);
        RunEnding {
            chunk: FrameChunk { first: 0, count: 0, frames: Vec::new() },
            outcome,
            turn: turn.and_then(|turn| {
                Some(NewTurn {
                    provisional_title: turn.record.provisional_title(),
                    tokens: turn.record.estimate_tokens(),
                    may_be_learned: turn.is_complete,
                    is_complete: turn.is_complete,
                    // A record holds nothing that cannot be serialized.
                    record: turn.record.to_bytes().ok()?,
                })
            }),
            tokens: self.progress.tokens,
            resumed_turn: closing.resumed_turn.map(|pending_turn| (pending_turn, disposition)),
            profile: self.changed_profile.take(),
        }
    }

    /// Persists all frames and the last one, with retries, also after the lease has expired: if another run has taken the
    /// session, the lease token is refused.
    async fn commit(&mut self, mut ending: RunEnding, last: &EncodedFrame) -> Result<(), StoreError> {
        let mut delays = FINISH_BACKOFF.iter();
        let window_end = Instant::now() + FINISH_WINDOW;
        loop {
            match (self.try_commit(&mut ending, last).await, delays.next()) {
                (Ok(()), _) => return Ok(()),
                (Err(StoreError::LeaseLost), _) => return Err(StoreError::LeaseLost),
                (Err(error), Some(delay)) if Instant::now() < window_end => {
                    tracing::warn!(%error, ?delay, "persisting the end of a turn failed; it is retried");
                    sleep(*delay).await;
                }
                (Err(error), _) => return Err(error),
            }
        }
    }

    async fn try_commit(&mut self, ending: &mut RunEnding, last: &EncodedFrame) -> Result<(), StoreError> {
        // All chunks but the final one, which is committed with the ending.
        while !self.lease_is_lost
            && let Some((chunk, cursor)) = self.log().chunk(self.persisted)
            && self.log().has_more(cursor)
        {
            match self.store.checkpoint(&self.lease, Some(&chunk)).await {
                Ok(_) => self.persisted = cursor,
                // The store refuses the ending too, but counts the tokens.
                Err(StoreError::LeaseLost) => self.lease_is_lost = true,
                Err(error) => return Err(error),
            }
        }
        let chunk = self.log().chunk(self.persisted).map(|(chunk, _)| chunk);
        let empty = FrameChunk { first: self.persisted.number + 1, count: 0, frames: Vec::new() };
        ending.chunk = chunk.unwrap_or(empty);
        ending.chunk.count += 1;
        push_delimited(&mut ending.chunk.frames, last);
        self.store.finish(&self.lease, ending).await
    }
}

/// Waits until a client cancels the run, or nobody wants it.
fn stop_reason(
    cancelled: impl Future<Output = ()> + Send + 'static,
    unwanted: impl Future<Output = TurnFailure> + Send + 'static,
) -> BoxFuture<'static, DriverStep> {
    async move {
        tokio::select! {
            biased;
            () = cancelled => DriverStep::CancelRequested,
            failure = unwanted => DriverStep::Unwanted(failure),
        }
    }
    .boxed()
}

impl Drop for RunDriver {
    fn drop(&mut self) {
        // After a panic the readers still get a last frame; the lease expires by itself.
        if !self.has_finished {
            self.log().push(&self.builder.failure(&TurnFailure::Internal));
        }
    }
}
