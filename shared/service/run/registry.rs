//! Starts runs, and finds those of this process.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

use super::{
    driver::{AdmittedRun, RunDriver},
    events::TurnEvents,
    live::LiveRuns,
    log::{FrameLog, LogReader},
};
use crate::{
    chat::TurnFailure,
    conversation::ConversationStore,
    identity::{RequestId, SessionId, UserId},
    service::drain::Drain,
};

#[derive(Clone)]
pub(in crate::service) struct RunRegistry {
    pub(in crate::service) store: Arc<dyn ConversationStore>,
    grace: Duration,
    pub(in crate::service) drain: Drain,
    live: LiveRuns,
}

impl RunRegistry {
    pub(in crate::service) fn new(store: Arc<dyn ConversationStore>, grace: Duration, drain: Drain) -> Self {
        Self { store, grace, drain, live: LiveRuns::default() }
    }

    /// Starts the driver task of a run. `begin` makes the turn's events; its argument stops the turn.
    pub(in crate::service) fn start(
        &self,
        run: AdmittedRun,
        begin: impl FnOnce(oneshot::Receiver<TurnFailure>) -> TurnEvents,
    ) -> LogReader {
        let (stop, stopped) = oneshot::channel();
        let driver = RunDriver::new(self.store.clone(), run, self.grace, &self.live, stop);
        // Read before the driver starts, so that the run is never abandoned at its start.
        let reader = driver.log().read_from_start();
        self.drain.spawn(driver.run(begin(stopped)).instrument(Span::current()));
        reader
    }

    pub(in crate::service) fn find(&self, user: &UserId, request: &RequestId) -> Option<Arc<FrameLog>> {
        self.live.get(&(user.clone(), request.clone()))
    }

    /// Stops a run of a session. False if it is not in this process.
    pub(in crate::service) fn cancel(&self, user: &UserId, session: &SessionId, request: &RequestId) -> bool {
        let log = self.find(user, request).filter(|log| log.envelope.session() == session);
        log.inspect(|log| log.cancelled.cancel()).is_some()
    }
}
