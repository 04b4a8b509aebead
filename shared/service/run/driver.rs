//! The owner of a run: it drives the turn, keeps its frames and ends it, whoever reads along.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    Entry, TurnEvents, events_or_defect,
    log::{FrameCursor, FrameLog},
};
use crate::{
    chat::{TurnClosing, TurnEvent, TurnFailure},
    conversation::{
        ConversationStore, FrameChunk, LEASE_DURATION, Lease, NewTurn, PendingTurnDisposition, RunEnding, RunOutcome,
        RunSignals, StoreError, WATCH_WINDOW,
    },
    service::frames::FrameBuilder,
};

/// Time between two looks at whether there is something to keep.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Longest time between two signs of life. It is also how late a wish of another process to stop may be heard.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Waits between attempts to keep the end of a run: nobody sees the last frame before.
const FINISH_BACKOFF: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Drives one run.
pub(super) struct RunDriver {
    pub(super) store: Arc<dyn ConversationStore>,
    pub(super) lease: Lease,
    pub(super) maker: FrameBuilder,
    /// How long the run goes on without a reader.
    pub(super) grace: Duration,
    /// Stops the turn.
    pub(super) stop: Option<oneshot::Sender<TurnFailure>>,
    /// The user's profile, where it changed.
    pub(super) profile: Option<Vec<u8>>,
    /// In the list of what runs in this process.
    pub(super) entry: Entry,
    pub(super) progress: Progress,
}

/// How far a run has come.
#[derive(Default)]
pub(super) struct Progress {
    /// What is kept of its frames.
    persisted: FrameCursor,
    tokens: u32,
    has_said_something: bool,
    closing: Option<Box<TurnClosing>>,
    /// The store takes no more of this run.
    is_lost: bool,
    is_over: bool,
}

/// Frames on their way to the store, and the place behind them.
type Keeping = BoxFuture<'static, (Result<RunSignals, StoreError>, FrameCursor)>;

impl RunDriver {
    /// Runs the turn to its end.
    pub(super) async fn run(mut self, events: TurnEvents) {
        let mut events = std::pin::pin!(events_or_defect(events));
        let log = self.entry.log.clone();
        let mut beat = interval(FLUSH_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deserted = Box::pin(log.wait_until_abandoned(self.grace));
        let mut watched_until = Instant::now();
        let mut keeping: Option<Keeping> = None;
        let mut last_sign = Instant::now();

        let last = loop {
            tokio::select! {
                biased;
                (kept, place) = join(&mut keeping) => {
                    keeping = None;
                    match kept {
                        Ok(signals) => {
                            self.progress.persisted = place;
                            if signals.is_watched {
                                watched_until = Instant::now() + WATCH_WINDOW;
                            }
                            if signals.is_cancelled {
                                self.stop(TurnFailure::Cancelled);
                            }
                        }
                        Err(StoreError::LeaseLost) => {
                            self.progress.is_lost = true;
                            self.stop(TurnFailure::NotPersisted);
                        }
                        Err(error) => tracing::warn!(%error, "frames are not kept yet"),
                    }
                }
                () = log.cancelled.cancelled(), if self.stop.is_some() => self.stop(TurnFailure::Cancelled),
                () = &mut deserted, if self.stop.is_some() => {
                    let now = Instant::now();
                    if watched_until > now {
                        deserted = Box::pin(log.wait_until_abandoned(watched_until - now));
                    } else {
                        self.stop(TurnFailure::Abandoned);
                    }
                }
                _ = beat.tick() => {
                    let is_due = log.has_more(self.progress.persisted) || last_sign.elapsed() >= HEARTBEAT_INTERVAL;
                    if is_due && keeping.is_none() && !self.progress.is_lost {
                        last_sign = Instant::now();
                        keeping = Some(self.keep(&log));
                    }
                }
                event = events.next() => match event {
                    Some(TurnEvent::Closing(closing)) => self.progress.closing = Some(closing),
                    Some(event) if event.is_last() => break event,
                    Some(event) => {
                        self.note(&event);
                        if let Some(frame) = self.maker.build(event)
                            && !log.push(&frame)
                        {
                            self.stop(TurnFailure::Internal);
                        }
                    }
                    None => break TurnEvent::Failed(TurnFailure::Internal),
                },
            }
        };
        if let Some(keeping) = keeping
            && let (Ok(_), place) = keeping.await
        {
            self.progress.persisted = place;
        }
        self.end(&log, last).await;
    }

    fn note(&mut self, event: &TurnEvent) {
        match event {
            TurnEvent::Delta(_) | TurnEvent::ToolExecuted(_) => self.progress.has_said_something = true,
            TurnEvent::Usage(spent) => {
                self.progress.tokens = spent.usage.prompt.saturating_add(spent.usage.completion);
            }
            _ => {}
        }
    }

    fn stop(&mut self, failure: TurnFailure) {
        if let Some(stop) = self.stop.take() {
            // A turn that has just ended needs none.
            let _ = stop.send(failure);
        }
    }

    /// Keeps the frames that are not kept yet.
    fn keep(&self, log: &FrameLog) -> Keeping {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let (chunk, place) = match log.chunk(self.progress.persisted) {
            Some((chunk, place)) => (Some(chunk), place),
            None => (None, self.progress.persisted),
        };
        async move { (store.checkpoint(&lease, chunk.as_ref()).await, place) }.boxed()
    }

    /// Keeps the end of the run, and only then shows it.
    async fn end(mut self, log: &FrameLog, last: TurnEvent) {
        let failure = match &last {
            TurnEvent::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        let ending = self.ending(failure.as_ref());
        let Some(frame) = self.maker.build(last) else { return };
        match self.finish(log, ending, &frame).await {
            Ok(()) => log.end(&frame),
            Err(error) => {
                tracing::error!(%error, "the end of a turn can not be kept");
                // What was not kept is not shown as if it were.
                let told = if failure.is_some() {
                    Some(frame)
                } else {
                    self.maker.build(TurnEvent::Failed(TurnFailure::NotPersisted))
                };
                if let Some(frame) = told {
                    log.end(&frame);
                }
            }
        }
        self.progress.is_over = true;
    }

    fn ending(&mut self, failure: Option<&TurnFailure>) -> RunEnding {
        let closing = self.progress.closing.take().map_or_else(TurnClosing::default, |closing| *closing);
        // Nothing was said and nothing was spent: a repetition does what this one could not.
        let came_to_nothing = failure.is_some_and(|failure| {
            failure.is_retryable() && !self.progress.has_said_something && self.progress.tokens == 0
        });
        let is_reopened = closing.resumed_turn.is_some() && failure.is_some_and(TurnFailure::is_retryable);
        // What goes on again is kept when it is over, and not by halves before.
        let turn = closing.turn.filter(|_| !is_reopened);
        RunEnding {
            chunk: FrameChunk { first: 0, count: 0, frames: Vec::new() },
            outcome: if came_to_nothing { RunOutcome::Repeatable } else { RunOutcome::Final },
            turn: turn.and_then(|turn| {
                Some(NewTurn {
                    provisional_title: turn.record.provisional_title(),
                    tokens: turn.record.estimate_tokens(),
                    may_be_learned: turn.is_complete,
                    is_complete: turn.is_complete,
                    // Everything in it can be written.
                    record: turn.record.to_bytes().ok()?,
                })
            }),
            tokens: self.progress.tokens,
            resumed_turn: closing.resumed_turn.map(|ticket| {
                (ticket, if is_reopened { PendingTurnDisposition::Reopened } else { PendingTurnDisposition::Done })
            }),
            profile: self.profile.take(),
        }
    }

    /// Keeps everything that is not kept yet, with the last frame.
    async fn finish(
        &mut self,
        log: &FrameLog,
        mut ending: RunEnding,
        last: &crate::proto::agent_v1::ChatResponse,
    ) -> Result<(), StoreError> {
        use prost::Message as _;

        let mut waits = FINISH_BACKOFF.iter();
        // A run that is dead for others must not come back to life.
        let given_up = Instant::now() + LEASE_DURATION;
        loop {
            let tried = loop {
                let next = log.chunk(self.progress.persisted);
                if let Some((chunk, place)) = &next
                    && log.chunk(*place).is_some()
                    && !self.progress.is_lost
                {
                    match self.store.checkpoint(&self.lease, Some(chunk)).await {
                        Ok(_) => self.progress.persisted = *place,
                        // The store takes no end either, but counts what was spent.
                        Err(StoreError::LeaseLost) => self.progress.is_lost = true,
                        Err(error) => break Err(error),
                    }
                    continue;
                }
                let number = self.progress.persisted.number;
                let (chunk, _) = next.unwrap_or((
                    FrameChunk { first: number + 1, count: 0, frames: Vec::new() },
                    self.progress.persisted,
                ));
                ending.chunk = FrameChunk { count: chunk.count + 1, ..chunk };
                ending.chunk.frames.extend(last.encode_length_delimited_to_vec());
                break self.store.finish(&self.lease, &ending).await;
            };
            match (tried, waits.next()) {
                (Ok(()), _) => return Ok(()),
                (Err(StoreError::LeaseLost), _) => return Err(StoreError::LeaseLost),
                (Err(error), Some(wait)) if Instant::now() < given_up => {
                    tracing::warn!(%error, "the end of a turn is not kept yet");
                    sleep(*wait).await;
                }
                (Err(error), _) => return Err(error),
            }
        }
    }
}

impl Drop for RunDriver {
    fn drop(&mut self) {
        if !self.progress.is_over
            && let Some(frame) = self.maker.build(TurnEvent::Failed(TurnFailure::Internal))
        {
            // A defect: whoever reads is told, and the lease ends by itself.
            self.entry.log.end(&frame);
        }
    }
}

/// What is on its way, if anything is.
async fn join(keeping: &mut Option<Keeping>) -> (Result<RunSignals, StoreError>, FrameCursor) {
    match keeping {
        Some(keeping) => Pin::new(keeping).await,
        None => std::future::pending().await,
    }
}
