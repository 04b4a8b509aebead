//! A new request of a session whose run nobody reads: the run is asked to end, which stores its partial answer. An owner that
//! does not react loses the session; its lease token fences it off.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::registry::RunRegistry;
use crate::conversation::{AdmitOutcome, NewRun, Preemption, RunKey, StoreError};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The end of a connection and the next request of its client race, possibly to different processes.
const READER_TIMEOUT: Duration = Duration::from_millis(500);
/// After this an owner that was asked to end its run counts as dead.
const OWNER_TIMEOUT: Duration = Duration::from_secs(2);

pub(in crate::service) struct SessionWait(Instant);

impl SessionWait {
    pub(in crate::service) fn start() -> Self {
        Self(Instant::now())
    }
}

impl RunRegistry {
    /// Admits a run. One without a reader that holds its session gives way.
    pub(in crate::service) async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        let wait = SessionWait::start();
        loop {
            let outcome = self.store.admit(run).await?;
            let is_busy = matches!(outcome, AdmitOutcome::Busy { .. });
            if !is_busy || !self.wait_for_session(&run.key, &wait).await? {
                return Ok(outcome);
            }
        }
    }

    /// False if somebody reads the run that holds the session; otherwise it is worth trying again.
    pub(in crate::service) async fn wait_for_session(
        &self,
        key: &RunKey,
        SessionWait(started): &SessionWait,
    ) -> Result<bool, StoreError> {
        let waited = started.elapsed();
        if waited >= OWNER_TIMEOUT + READER_TIMEOUT {
            return Ok(false);
        }
        let (may_wait, request) = match self.store.preempt(key, waited >= OWNER_TIMEOUT).await? {
            Preemption::Free => (true, None),
            Preemption::Requested { request } => (true, Some(request)),
            Preemption::Refused { request, is_watched } => {
                (waited < READER_TIMEOUT, Some(request).filter(|_| !is_watched))
            }
            Preemption::Deleting => (false, None),
        };
        // A run of this process need not wait until it has told the store that nobody reads it.
        let log = request.and_then(|request| self.find(&key.user, &request));
        let is_preempted = log.is_some_and(|log| log.preempt());
        if !may_wait && !is_preempted {
            return Ok(false);
        }
        sleep(POLL_INTERVAL).await;
        Ok(true)
    }
}
