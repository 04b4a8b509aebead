//! Learning from the turns of the queue, in a process that lives as long as a server does.

use std::{collections::HashSet, future::ready, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ExtractionOutcome, LearnError, TurnLearner,
    jobs::{ExtractionJob, ExtractionQueue, JobOutcome, LOCKED},
};
use crate::{
    conversation::{ConversationStore, StoredTurn},
    identity::UserId,
    postgres::RolePools,
};

/// Users whose turns are learned from at the same time.
const AT_ONCE: usize = 4;
/// Longest time between two looks. Turns of other processes, and those that wait, are heard of no sooner.
const LOOK: Duration = Duration::from_secs(5);
/// Longest that one turn takes: three answers of a model, and what is between them. It has to end while the job is locked.
const JOB: Duration = Duration::from_secs(LOCKED.as_secs() - 60);
/// How often a turn is tried; then it is given up.
const ATTEMPTS: u32 = 5;
/// Waits after failures: a quarter of a minute, then six times as long each time, nearly an hour at last.
const FIRST_WAIT: Duration = Duration::from_secs(15);
const LONGER: u32 = 6;
/// Longest that jobs are put back when the process stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What learns from the turns of the queue.
pub struct ExtractionWorker {
    jobs: ExtractionQueue,
    learner: Arc<TurnLearner>,
    conversations: Arc<dyn ConversationStore>,
    /// Rings when a turn was kept in this process.
    bell: Arc<Notify>,
}

impl ExtractionWorker {
    /// One that learns from the turns of these conversations, whose queue is in this database. It looks when `bell` rings, and
    /// every few seconds.
    #[must_use]
    pub fn new(
        database: &RolePools,
        learner: Arc<TurnLearner>,
        conversations: Arc<dyn ConversationStore>,
        bell: Arc<Notify>,
    ) -> Self {
        Self { jobs: ExtractionQueue::new(database), learner, conversations, bell }
    }

    /// Learns until it is to stop: one turn of a user at a time, and a few users at once. What is under way then is put back.
    /// As long as the database is not ready, nothing is done.
    pub async fn run(&self, mut is_ready: watch::Receiver<bool>, stop: CancellationToken) {
        let mut under_way = FuturesUnordered::new();
        let mut users: HashSet<UserId> = HashSet::new();
        let mut is_reported = false;
        let mut rests_until = Instant::now();
        loop {
            if under_way.is_empty() {
                tokio::select! {
                    // Without a sender it is as ready as it will ever be.
                    _ = is_ready.wait_for(|ready| *ready) => {}
                    () = stop.cancelled() => break,
                }
            }
            if under_way.len() < AT_ONCE && Instant::now() >= rests_until {
                match self.jobs.users_due(2 * AT_ONCE).await {
                    Ok(due) => {
                        is_reported = false;
                        for user in due {
                            if under_way.len() < AT_ONCE && users.insert(user.clone()) {
                                under_way.push(self.next_of(user, &stop));
                            }
                        }
                    }
                    Err(error) if !std::mem::replace(&mut is_reported, true) => {
                        tracing::warn!(%error, "it can not be found out what is to be learned; trying again until it can");
                    }
                    Err(_) => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                Some((user, is_settled)) = under_way.next(), if !under_way.is_empty() => {
                    users.remove(&user);
                    if !is_settled {
                        // Somebody else is at it, or the database can be read and not written: at once it would be the same again.
                        rests_until = Instant::now() + LOOK;
                    }
                }
                () = self.bell.notified(), if under_way.len() < AT_ONCE => {}
                () = sleep(LOOK) => {}
            }
        }
        let put_back = async { while under_way.next().await.is_some() {} };
        if timeout(LAST_WORDS, put_back).await.is_err() {
            tracing::warn!("turns that were being learned from are tried again when their locks have ended");
        }
    }

    /// Learns from all turns that are due, of all users, and tells how many jobs were settled: for a process that does not live
    /// on. What is under way at `until` is put back.
    ///
    /// # Errors
    /// The database failed.
    pub async fn run_until_idle(&self, until: Instant) -> Result<usize, sqlx::Error> {
        let stop = CancellationToken::new();
        let mut settled = 0;
        while Instant::now() < until {
            let due = self.jobs.users_due(AT_ONCE).await?;
            let under_way: FuturesUnordered<_> = due.into_iter().map(|user| self.next_of(user, &stop)).collect();
            let mut settling = pin!(under_way.filter(|(_, is_settled)| ready(*is_settled)).count());
            let now = tokio::select! {
                now = &mut settling => now,
                () = sleep_until(until) => {
                    stop.cancel();
                    settling.await
                }
            };
            // Whatever is still due somebody else is at, or it can not be taken.
            if now == 0 {
                break;
            }
            settled += now;
        }
        Ok(settled)
    }

    /// Learns from the next turn of a user, and says whether there was one of which it is noted what became of it.
    async fn next_of(&self, user: UserId, stop: &CancellationToken) -> (UserId, bool) {
        let is_settled = match self.jobs.claim(&user).await {
            Ok(Some(job)) => {
                let outcome = tokio::select! {
                    outcome = self.outcome(&job) => outcome,
                    () = stop.cancelled() => JobOutcome::PutBack,
                };
                let settled = self.jobs.settle(&job, outcome).await;
                if let Err(error) = &settled {
                    tracing::warn!(%error, "what became of a turn is not noted; it is tried again when its lock has ended");
                }
                settled.is_ok()
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "a turn can not be taken to be learned from");
                false
            }
        };
        (user, is_settled)
    }

    /// What becomes of a job.
    async fn outcome(&self, job: &ExtractionJob) -> JobOutcome {
        // After a panic nothing of what it was at is used again.
        let tried = AssertUnwindSafe(timeout(JOB, self.learn(job))).catch_unwind().await;
        let error: &dyn std::fmt::Display = match &tried {
            Ok(Ok(Ok(learned))) => {
                tracing::debug!(user = job.user.digest(), turn = job.turn, ?learned, "learned from a turn");
                return JobOutcome::Done;
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => &"it took too long",
            Err(_) => &"an internal defect",
        };
        let (user, attempt) = (job.user.digest(), job.attempt);
        if job.attempt >= ATTEMPTS {
            tracing::warn!(%error, user, turn = job.turn, attempt, "learning from a turn is given up");
            return JobOutcome::GivenUp;
        }
        let wait = FIRST_WAIT * LONGER.pow(job.attempt.saturating_sub(1));
        tracing::warn!(%error, user, turn = job.turn, attempt, wait_seconds = wait.as_secs(), "a turn is not learned from yet");
        JobOutcome::Again(wait)
    }

    async fn learn(&self, job: &ExtractionJob) -> Result<ExtractionOutcome, LearnError> {
        let before = job.turn.checked_add(1);
        let turns = self.conversations.list_turns(&job.user, &job.session, before, 1).await?;
        // The conversation may have been deleted.
        let is_it = |turn: &StoredTurn| turn.seq == job.turn && turn.is_complete;
        match turns.into_iter().find(is_it) {
            Some(turn) => self.learner.learn(&job.user, &job.session, &turn).await,
            None => Ok(ExtractionOutcome::default()),
        }
    }
}
