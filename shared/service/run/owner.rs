//! The owner of a run: it drives the turn, keeps its frames and ends it, whoever reads along.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    Entry, Events, events_or_defect,
    log::{FrameLog, Place},
};
use crate::{
    chat::{Closing, Event, Failure},
    conversation::{
        AfterResumption, Chunk, ConversationStore, Ending, LEASE, Lease, NewTurn, Outcome, Signals, StoreError, WATCHED,
    },
    service::frames::FrameMaker,
};

/// Time between two looks at whether there is something to keep.
const BEAT: Duration = Duration::from_millis(500);
/// Longest time between two signs of life. It is also how late a wish of another process to stop may be heard.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// Waits between attempts to keep the end of a run: nobody sees the last frame before.
const PATIENCE: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Drives one run.
pub(super) struct Owner {
    pub(super) store: Arc<dyn ConversationStore>,
    pub(super) lease: Lease,
    pub(super) maker: FrameMaker,
    /// How long the run goes on without a reader.
    pub(super) grace: Duration,
    /// Stops the turn.
    pub(super) stop: Option<oneshot::Sender<Failure>>,
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
    kept: Place,
    tokens: u32,
    has_said_something: bool,
    closing: Option<Box<Closing>>,
    /// The store takes no more of this run.
    is_lost: bool,
    is_over: bool,
}

/// Frames on their way to the store, and the place behind them.
type Keeping = BoxFuture<'static, (Result<Signals, StoreError>, Place)>;

impl Owner {
    /// Runs the turn to its end.
    pub(super) async fn run(mut self, events: Events) {
        let mut events = std::pin::pin!(events_or_defect(events));
        let log = self.entry.log.clone();
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deserted = Box::pin(log.deserted(self.grace));
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
                            self.progress.kept = place;
                            if signals.is_watched {
                                watched_until = Instant::now() + WATCHED;
                            }
                            if signals.is_cancelled {
                                self.stop(Failure::Cancelled);
                            }
                        }
                        Err(StoreError::LeaseLost) => {
                            self.progress.is_lost = true;
                            self.stop(Failure::NotKept);
                        }
                        Err(error) => tracing::warn!(%error, "frames are not kept yet"),
                    }
                }
                () = log.cancelled.cancelled(), if self.stop.is_some() => self.stop(Failure::Cancelled),
                () = &mut deserted, if self.stop.is_some() => {
                    let now = Instant::now();
                    if watched_until > now {
                        deserted = Box::pin(log.deserted(watched_until - now));
                    } else {
                        self.stop(Failure::Abandoned);
                    }
                }
                _ = beat.tick() => {
                    let is_due = log.has_more(self.progress.kept) || last_sign.elapsed() >= SIGN_OF_LIFE;
                    if is_due && keeping.is_none() && !self.progress.is_lost {
                        last_sign = Instant::now();
                        keeping = Some(self.keep(&log));
                    }
                }
                event = events.next() => match event {
                    Some(Event::Closing(closing)) => self.progress.closing = Some(closing),
                    Some(event) if event.is_last() => break event,
                    Some(event) => {
                        self.note(&event);
                        if let Some(frame) = self.maker.frame(event)
                            && !log.push(&frame)
                        {
                            self.stop(Failure::Internal);
                        }
                    }
                    None => break Event::Failed(Failure::Internal),
                },
            }
        };
        if let Some(keeping) = keeping
            && let (Ok(_), place) = keeping.await
        {
            self.progress.kept = place;
        }
        self.end(&log, last).await;
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Delta(_) | Event::Ran(_) => self.progress.has_said_something = true,
            Event::Spent(spent) => {
                self.progress.tokens = spent.usage.prompt.saturating_add(spent.usage.completion);
            }
            _ => {}
        }
    }

    fn stop(&mut self, failure: Failure) {
        if let Some(stop) = self.stop.take() {
            // A turn that has just ended needs none.
            let _ = stop.send(failure);
        }
    }

    /// Keeps the frames that are not kept yet.
    fn keep(&self, log: &FrameLog) -> Keeping {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let (chunk, place) = match log.chunk(self.progress.kept) {
            Some((chunk, place)) => (Some(chunk), place),
            None => (None, self.progress.kept),
        };
        async move { (store.checkpoint(&lease, chunk.as_ref()).await, place) }.boxed()
    }

    /// Keeps the end of the run, and only then shows it.
    async fn end(mut self, log: &FrameLog, last: Event) {
        let failure = match &last {
            Event::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        let ending = self.ending(failure.as_ref());
        let Some(frame) = self.maker.frame(last) else { return };
        match self.finish(log, ending, &frame).await {
            Ok(()) => log.end(&frame),
            Err(error) => {
                tracing::error!(%error, "the end of a turn can not be kept");
                // What was not kept is not shown as if it were.
                let told =
                    if failure.is_some() { Some(frame) } else { self.maker.frame(Event::Failed(Failure::NotKept)) };
                if let Some(frame) = told {
                    log.end(&frame);
                }
            }
        }
        self.progress.is_over = true;
    }

    fn ending(&mut self, failure: Option<&Failure>) -> Ending {
        let closing = self.progress.closing.take().map_or_else(Closing::default, |closing| *closing);
        // Nothing was said and nothing was spent: a repetition does what this one could not.
        let came_to_nothing = failure.is_some_and(|failure| {
            failure.is_retryable() && !self.progress.has_said_something && self.progress.tokens == 0
        });
        let is_reopened = closing.resumed.is_some() && failure.is_some_and(Failure::is_retryable);
        // What goes on again is kept when it is over, and not by halves before.
        let turn = closing.turn.filter(|_| !is_reopened);
        Ending {
            chunk: Chunk { first: 0, count: 0, frames: Vec::new() },
            outcome: if came_to_nothing { Outcome::Repeatable } else { Outcome::Final },
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
            resumed: closing
                .resumed
                .map(|ticket| (ticket, if is_reopened { AfterResumption::Reopened } else { AfterResumption::Over })),
            profile: self.profile.take(),
        }
    }

    /// Keeps everything that is not kept yet, with the last frame.
    async fn finish(
        &mut self,
        log: &FrameLog,
        mut ending: Ending,
        last: &crate::proto::agent_v1::ChatResponse,
    ) -> Result<(), StoreError> {
        use prost::Message as _;

        let mut waits = PATIENCE.iter();
        // A run that is dead for others must not come back to life.
        let given_up = Instant::now() + LEASE;
        loop {
            let tried = loop {
                let next = log.chunk(self.progress.kept);
                if let Some((chunk, place)) = &next
                    && log.chunk(*place).is_some()
                    && !self.progress.is_lost
                {
                    match self.store.checkpoint(&self.lease, Some(chunk)).await {
                        Ok(_) => self.progress.kept = *place,
                        // The store takes no end either, but counts what was spent.
                        Err(StoreError::LeaseLost) => self.progress.is_lost = true,
                        Err(error) => break Err(error),
                    }
                    continue;
                }
                let number = self.progress.kept.number;
                let (chunk, _) =
                    next.unwrap_or((Chunk { first: number + 1, count: 0, frames: Vec::new() }, self.progress.kept));
                ending.chunk = Chunk { count: chunk.count + 1, ..chunk };
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

impl Drop for Owner {
    fn drop(&mut self) {
        if !self.progress.is_over
            && let Some(frame) = self.maker.frame(Event::Failed(Failure::Internal))
        {
            // A defect: whoever reads is told, and the lease ends by itself.
            self.entry.log.end(&frame);
        }
    }
}

/// What is on its way, if anything is.
async fn join(keeping: &mut Option<Keeping>) -> (Result<Signals, StoreError>, Place) {
    match keeping {
        Some(keeping) => Pin::new(keeping).await,
        None => std::future::pending().await,
    }
}
