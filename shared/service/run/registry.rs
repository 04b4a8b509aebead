//! Starts runs, and finds those of this process.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

use super::{
    driver::{AdmittedRun, RunDriver},
    events::TurnEvents,
    live::LiveRuns,
    log::FrameLog,
    reader::RunReader,
    stored::RunAddress,
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
    ) -> RunReader {
        let address = self.address(&run.lease.key.user, &run.lease.key.request);
        let (stop, stopped) = oneshot::channel();
        let driver = RunDriver::new(self.store.clone(), run, self.grace, &self.live, stop);
        // Read before the driver starts, so that the run is never abandoned at its start.
        let reader = RunReader::new(driver.log().read_from_start(), address);
        self.drain.spawn(driver.run(begin(stopped)).instrument(Span::current()));
        reader
    }

    pub(in crate::service) fn address(&self, user: &UserId, request: &RequestId) -> RunAddress {
        let (store, drain) = (self.store.clone(), self.drain.clone());
        RunAddress { store, drain, user: user.clone(), request: request.clone() }
    }

    /// Reads a run of this process after a frame. `None`: the frame does not exist.
    pub(in crate::service) fn read(&self, log: &Arc<FrameLog>, address: RunAddress, after: u32) -> Option<RunReader> {
        Some(RunReader::new(log.read(after)?, address))
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
