//! Processes extraction jobs, in a server's background task or in a function that runs on a schedule.
//!
//! One job of a user at a time, a few users concurrently. Cancellation: dropping `run` leaves the claimed jobs locked until
//! their locks expire; cancelling its token releases them.

use std::{collections::HashSet, future::ready, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    error::LearnError,
    learner::{ExtractionOutcome, TurnLearner},
    queue::{ExtractionJob, ExtractionQueue, JobOutcome, LOCK_DURATION},
};
use crate::{
    conversation::{ConversationStore, StoredTurn, StoredTurns},
    identity::UserId,
    postgres::RolePools,
};

const MAX_CONCURRENT_USERS: usize = 4;
/// Bounds the delay of jobs that another process queued or that wait for a retry: only jobs of this process wake the worker.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Three model answers and the work between them. Ends before the job's lock does.
const JOB_TIMEOUT: Duration = Duration::from_secs(LOCK_DURATION.as_secs() - 60);
const MAX_ATTEMPTS: u32 = 5;
/// Delays of 15 s, 90 s, 9 min and 54 min.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(15);
const RETRY_FACTOR: u32 = 6;
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct ExtractionWorker {
    queue: ExtractionQueue,
    learner: Arc<TurnLearner>,
    conversations: Arc<dyn ConversationStore>,
    stored_turns: Arc<StoredTurns>,
}

/// Turns come before what is learned from them: on a process with more of them, jobs run one at a time with pauses.
const BUSY_TURNS_PER_SECOND: f64 = 150.0;
const LOAD_WINDOW: Duration = Duration::from_millis(500);
/// Relative to the duration of the job before.
const BUSY_PAUSE: u32 = 9;
const MAX_BUSY_PAUSE: Duration = Duration::from_secs(2);

struct TurnLoad {
    count: u64,
    since: Instant,
    is_busy: bool,
}

impl TurnLoad {
    fn new(stored_turns: &StoredTurns) -> Self {
        Self { count: stored_turns.count(), since: Instant::now(), is_busy: false }
    }

    fn is_busy(&mut self, stored_turns: &StoredTurns) -> bool {
        let elapsed = self.since.elapsed();
        if elapsed >= LOAD_WINDOW {
            let count = stored_turns.count();
            let turns = u32::try_from(count - self.count).unwrap_or(u32::MAX);
            let is_busy = f64::from(turns) > BUSY_TURNS_PER_SECOND * elapsed.as_secs_f64();
            *self = Self { count, since: Instant::now(), is_busy };
        }
        self.is_busy
    }
}

impl ExtractionWorker {
    /// `database` holds the queue of `conversations`.
    #[must_use]
    pub fn new(
        database: &RolePools,
        learner: Arc<TurnLearner>,
        conversations: Arc<dyn ConversationStore>,
        stored_turns: Arc<StoredTurns>,
    ) -> Self {
        Self { queue: ExtractionQueue::new(database), learner, conversations, stored_turns }
    }

    /// Processes jobs until `stop` is cancelled, then releases those under way. Waits while the database is not ready.
    pub async fn run(&self, mut is_ready: watch::Receiver<bool>, stop: CancellationToken) {
        let mut running = FuturesUnordered::new();
        let mut busy_users: HashSet<UserId> = HashSet::new();
        let mut is_failure_logged = false;
        let mut paused_until = Instant::now();
        let mut load = TurnLoad::new(&self.stored_turns);
        loop {
            if running.is_empty() {
                tokio::select! {
                    // An error means that the sender is gone and readiness is final.
                    _ = is_ready.wait_for(|ready| *ready) => {}
                    () = stop.cancelled() => break,
                }
            }
            let is_busy = load.is_busy(&self.stored_turns);
            let max_users = if is_busy { 1 } else { MAX_CONCURRENT_USERS };
            if running.len() < max_users && Instant::now() >= paused_until {
                match self.queue.due_users(2 * max_users).await {
                    Ok(due) => {
                        is_failure_logged = false;
                        for user in due {
                            if running.len() < max_users && busy_users.insert(user.clone()) {
                                running.push(self.process_timed(user, &stop));
                            }
                        }
                    }
                    Err(error) if !std::mem::replace(&mut is_failure_logged, true) => {
                        tracing::warn!(%error, "the extraction queue cannot be read; retrying");
                    }
                    Err(_) => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                Some((user, is_settled, duration)) = running.next(), if !running.is_empty() => {
                    busy_users.remove(&user);
                    if is_busy {
                        paused_until = Instant::now() + (duration * BUSY_PAUSE).min(MAX_BUSY_PAUSE);
                    }
                    if !is_settled {
                        // Another worker holds the job, or the database rejects writes: an immediate retry would spin.
                        paused_until = Instant::now() + POLL_INTERVAL;
                    }
                }
                () = self.stored_turns.wait_for_next(), if running.len() < max_users && Instant::now() >= paused_until => {}
                () = sleep_until(paused_until), if Instant::now() < paused_until => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
        let released = async { while running.next().await.is_some() {} };
        if timeout(RELEASE_TIMEOUT, released).await.is_err() {
            tracing::warn!(
                "extraction jobs were not released before the shutdown; they run again when their locks expire"
            );
        }
    }

    /// Processes all due jobs of all users and returns how many were settled. Jobs under way at `deadline` are released.
    pub async fn run_until_idle(&self, deadline: Instant) -> Result<usize, sqlx::Error> {
        let stop = CancellationToken::new();
        let mut total = 0;
        while Instant::now() < deadline {
            let due = self.queue.due_users(MAX_CONCURRENT_USERS).await?;
            let running: FuturesUnordered<_> = due.into_iter().map(|user| self.process_next(user, &stop)).collect();
            let mut settling = pin!(running.filter(|(_, is_settled)| ready(*is_settled)).count());
            let settled = tokio::select! {
                settled = &mut settling => settled,
                () = sleep_until(deadline) => {
                    stop.cancel();
                    settling.await
                }
            };
            // The remaining due jobs are claimed by other workers, or cannot be claimed.
            if settled == 0 {
                break;
            }
            total += settled;
        }
        Ok(total)
    }

    async fn process_timed(&self, user: UserId, stop: &CancellationToken) -> (UserId, bool, Duration) {
        let started = Instant::now();
        let (user, is_settled) = self.process_next(user, stop).await;
        (user, is_settled, started.elapsed())
    }

    /// Processes the user's next job. Returns whether there was one and its outcome was recorded.
    async fn process_next(&self, user: UserId, stop: &CancellationToken) -> (UserId, bool) {
        let is_settled = match self.queue.claim(&user).await {
            Ok(Some(job)) => {
                let outcome = tokio::select! {
                    outcome = self.process(&job) => outcome,
                    () = stop.cancelled() => JobOutcome::Released,
                };
                let settled = self.queue.settle(&job, outcome).await;
                if let Err(error) = &settled {
                    tracing::warn!(%error, "an extraction job's outcome was not recorded; it runs again when its lock expires");
                }
                settled.is_ok()
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "an extraction job cannot be claimed");
                false
            }
        };
        (user, is_settled)
    }

    async fn process(&self, job: &ExtractionJob) -> JobOutcome {
        // Unwind safety: after a panic, nothing that the job touched is used again.
        let result = AssertUnwindSafe(timeout(JOB_TIMEOUT, self.learn(job))).catch_unwind().await;
        let error: &dyn std::fmt::Display = match &result {
            Ok(Ok(Ok(outcome))) => {
                tracing::debug!(user = job.user.digest(), turn = job.turn, ?outcome, "learned from a turn");
                return JobOutcome::Done;
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => &"timed out",
            Err(_) => &"panicked",
        };
        let (user, turn, attempt) = (job.user.digest(), job.turn, job.attempt);
        if attempt >= MAX_ATTEMPTS {
            tracing::warn!(%error, user, turn, attempt, "learning from a turn failed for good");
            return JobOutcome::Failed;
        }
        let after = FIRST_RETRY_DELAY * RETRY_FACTOR.pow(attempt.saturating_sub(1));
        tracing::warn!(%error, user, turn, attempt, retry_seconds = after.as_secs(), "learning from a turn failed, will retry");
        JobOutcome::Retry { after }
    }

    async fn learn(&self, job: &ExtractionJob) -> Result<ExtractionOutcome, LearnError> {
        let before = job.turn.checked_add(1);
        let turns = self.conversations.list_turns(&job.user, &job.session, before, 1).await?;
        let is_job_turn = |turn: &StoredTurn| turn.seq == job.turn && turn.is_complete;
        match turns.into_iter().find(is_job_turn) {
            Some(turn) => self.learner.learn(&job.user, &job.session, &turn).await,
            // The session was deleted meanwhile.
            None => Ok(ExtractionOutcome::default()),
        }
    }
}
