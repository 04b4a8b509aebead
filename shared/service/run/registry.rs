//! Starts runs, and finds those of this process.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{Instrument as _, Span};

use super::{
    driver::{DrivenRun, RunDriver},
    events::TurnEvents,
    live::LiveRuns,
    log::{FrameLog, LogReader},
};
use crate::{
    chat::TurnFailure,
    conversation::{ConversationStore, Lease},
    identity::{RequestId, SessionId, UserId},
    service::{drain::Drain, envelope::Envelope, frame::FrameBuilder},
};

#[derive(Clone)]
pub(in crate::service) struct RunRegistry {
    pub(in crate::service) store: Arc<dyn ConversationStore>,
    grace: Duration,
    drain: Drain,
    live: LiveRuns,
}

/// A run that was admitted and has not started.
pub(in crate::service) struct AdmittedRun {
    pub(in crate::service) lease: Lease,
    pub(in crate::service) envelope: Envelope,
    pub(in crate::service) builder: FrameBuilder,
    /// The user's profile as JSON, if the request changed it.
    pub(in crate::service) changed_profile: Option<Vec<u8>>,
    pub(in crate::service) permit: OwnedSemaphorePermit,
}

impl RunRegistry {
    /// `grace` is the time that a run goes on without a reader.
    pub(in crate::service) fn new(store: Arc<dyn ConversationStore>, grace: Duration, drain: Drain) -> Self {
        Self { store, grace, drain, live: LiveRuns::default() }
    }

    /// Starts the driver task of a run. `begin` makes the turn's events; its argument stops the turn.
    pub(in crate::service) fn start(
        &self,
        run: AdmittedRun,
        begin: impl FnOnce(oneshot::Receiver<TurnFailure>) -> TurnEvents,
    ) -> LogReader {
        let AdmittedRun { lease, envelope, builder, changed_profile, permit } = run;
        let log = FrameLog::new(envelope);
        // Created before the driver, so that the run is never abandoned at its start.
        let reader = log.read(0);
        let key = (lease.key.user.clone(), lease.key.request.clone());
        let (stop, stopped) = oneshot::channel();
        let driven = DrivenRun {
            store: self.store.clone(),
            lease,
            builder,
            changed_profile,
            live: self.live.insert(key, log, permit),
            grace: self.grace,
        };
        let driver = RunDriver::new(driven, stop);
        self.drain.spawn(driver.run(begin(stopped)).instrument(Span::current()));
        reader
    }

    pub(in crate::service) fn find(&self, user: &UserId, request: &RequestId) -> Option<Arc<FrameLog>> {
        self.live.get(&(user.clone(), request.clone()))
    }

    /// Stops a run of a session, if it is in this process.
    pub(in crate::service) fn cancel(&self, user: &UserId, session: &SessionId, request: &RequestId) {
        if let Some(log) = self.find(user, request).filter(|log| log.envelope.session() == session) {
            log.cancelled.cancel();
        }
    }
}
