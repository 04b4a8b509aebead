//! Runs of this process: each has an owner, which goes on when a client is lost, and any number of readers.

mod driver;
mod follow;
mod log;

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{Instrument as _, Span};

pub(super) use follow::follow;
pub(super) use log::{FrameLog, LogReader};

use super::{
    Drain,
    frames::{Envelope, FrameBuilder},
};
use crate::{
    chat::{TurnEvent, TurnFailure},
    conversation::{ConversationStore, Lease},
    identity::{RequestId, SessionId, UserId},
};
use driver::{Progress, RunDriver};

/// The events of one call.
pub(super) type TurnEvents = Pin<Box<dyn Stream<Item = TurnEvent> + Send>>;

/// Runs that are under way in this process.
#[derive(Clone)]
pub(super) struct RunRegistry {
    pub(super) store: Arc<dyn ConversationStore>,
    grace: Duration,
    drain: Drain,
    here: LiveRuns,
}

type LiveRuns = Arc<Mutex<HashMap<(UserId, RequestId), Arc<FrameLog>>>>;

/// A run that was let in.
pub(super) struct AdmittedRun {
    pub(super) lease: Lease,
    pub(super) envelope: Envelope,
    pub(super) builder: FrameBuilder,
    /// The user's profile, where it changed.
    pub(super) profile: Option<Vec<u8>>,
    /// Its place among the runs of this process.
    pub(super) permit: OwnedSemaphorePermit,
}

impl RunRegistry {
    /// Runs whose clients may be lost for as long as `grace`.
    pub(super) fn new(store: Arc<dyn ConversationStore>, grace: Duration, drain: Drain) -> Self {
        Self { store, grace, drain, here: LiveRuns::default() }
    }

    /// Starts a run. `begin` makes its events, from what ends them.
    pub(super) fn start(
        &self,
        run: AdmittedRun,
        begin: impl FnOnce(oneshot::Receiver<TurnFailure>) -> TurnEvents,
    ) -> LogReader {
        let AdmittedRun { lease, envelope, builder: maker, profile, permit: place } = run;
        let log = FrameLog::new(envelope);
        // Read before it runs, so that it is never deserted at the start.
        let reader = log.read(0);
        let key = (lease.key.user.clone(), lease.key.request.clone());
        lock(&self.here).insert(key.clone(), log.clone());
        let (stop, stopped) = oneshot::channel();
        let owner = RunDriver {
            store: self.store.clone(),
            lease,
            maker,
            grace: self.grace,
            stop: Some(stop),
            profile,
            entry: Entry { log, here: self.here.clone(), key, _place: place },
            progress: Progress::default(),
        };
        self.drain.spawn(owner.run(begin(stopped)).instrument(Span::current()));
        reader
    }

    /// A run that is under way in this process.
    pub(super) fn find(&self, user: &UserId, request: &RequestId) -> Option<Arc<FrameLog>> {
        lock(&self.here).get(&(user.clone(), request.clone())).cloned()
    }

    /// Stops a run of a conversation, if it is under way in this process.
    pub(super) fn cancel(&self, user: &UserId, session: &SessionId, request: &RequestId) {
        if let Some(log) = self.find(user, request).filter(|log| log.envelope.session() == session) {
            log.cancelled.cancel();
        }
    }
}

fn lock(here: &LiveRuns) -> MutexGuard<'_, HashMap<(UserId, RequestId), Arc<FrameLog>>> {
    // A map that was being changed by one call is whole all the same.
    here.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run's place in the list, as long as it runs.
struct Entry {
    log: Arc<FrameLog>,
    here: LiveRuns,
    key: (UserId, RequestId),
    _place: OwnedSemaphorePermit,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut here = lock(&self.here);
        // After a lost lease the same request may run anew.
        if here.get(&self.key).is_some_and(|log| Arc::ptr_eq(log, &self.log)) {
            here.remove(&self.key);
        }
    }
}

/// Events of a turn, where a defect counts as a failure of the turn. A failure is logged under the span of whoever calls this.
pub(super) fn events_or_defect(events: TurnEvents) -> impl Stream<Item = TurnEvent> + Send {
    let span = Span::current();
    // After a panic the turn is never polled again, so that no broken state can be seen.
    stream::unfold(Some((events, span)), |state| async move {
        let (mut events, span) = state?;
        let next = AssertUnwindSafe(events.next()).catch_unwind().instrument(span.clone()).await;
        let event = match next {
            Ok(Some(event)) => event,
            Ok(None) | Err(_) => TurnEvent::Failed(TurnFailure::Internal),
        };
        if let TurnEvent::Failed(failure) = &event {
            span.in_scope(|| tracing::warn!(error = %failure, "the turn failed"));
        }
        let is_last = event.is_last();
        Some((event, (!is_last).then_some((events, span))))
    })
}
