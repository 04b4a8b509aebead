//! A new request of a session whose run nobody reads: the run is asked to end, which stores its partial answer. An owner that
//! does not react loses the session; its lease token fences it off.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::registry::RunRegistry;
use crate::conversation::{AdmitOutcome, NewRun, Preemption, RunKey, StoreError};

/// Between the first two questions to the store. The interval doubles with each.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The end of a connection and the next request of its client race, possibly to different processes.
const READER_TIMEOUT: Duration = Duration::from_millis(500);
/// After this an owner that was asked to end its run counts as dead.
const OWNER_TIMEOUT: Duration = Duration::from_secs(2);

pub(in crate::service) struct SessionWait {
    started: Instant,
    interval: Duration,
}

impl SessionWait {
    pub(in crate::service) fn start() -> Self {
        Self { started: Instant::now(), interval: POLL_INTERVAL }
    }

    async fn pause(&mut self) {
        sleep(self.interval).await;
        self.interval = MAX_POLL_INTERVAL.min(self.interval * 2);
    }
}

impl RunRegistry {
    /// Admits a run. One without a reader that holds its session gives way.
    pub(in crate::service) async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        let mut wait = SessionWait::start();
        loop {
            let outcome = self.store.admit(run).await?;
            let is_busy = matches!(outcome, AdmitOutcome::Busy { .. });
            if !is_busy || !self.wait_for_session(&run.key, &mut wait).await? {
                return Ok(outcome);
            }
        }
    }

    /// False if somebody reads the run that holds the session; otherwise it is worth trying again.
    pub(in crate::service) async fn wait_for_session(
        &self,
        key: &RunKey,
        wait: &mut SessionWait,
    ) -> Result<bool, StoreError> {
        let readers_leave_by = wait.started + READER_TIMEOUT;
        loop {
            let waited = wait.started.elapsed();
            if waited >= OWNER_TIMEOUT + READER_TIMEOUT {
                return Ok(false);
            }
            let (request, is_watched) = match self.store.preempt(key, waited >= OWNER_TIMEOUT).await? {
                Preemption::Free => {
                    wait.pause().await;
                    return Ok(true);
                }
                Preemption::Requested { request } => {
                    if let Some(log) = self.find(&key.user, &request) {
                        log.preempt();
                    }
                    wait.pause().await;
                    return Ok(true);
                }
                Preemption::Refused { request, is_watched } => (request, is_watched),
                Preemption::Deleting => return Ok(false),
            };
            let log = self.find(&key.user, &request).filter(|_| !is_watched);
            // A run of this process need not wait until it has told the store that nobody reads it.
            if log.as_ref().is_some_and(|log| log.preempt()) {
                wait.pause().await;
                return Ok(true);
            }
            if Instant::now() >= readers_leave_by {
                return Ok(false);
            }
            match log {
                Some(log) => drop(timeout_at(readers_leave_by, log.wait_until_unread()).await),
                None => wait.pause().await,
            }
        }
    }
}
