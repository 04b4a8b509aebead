//! Gives every call of a conversation store a deadline. Dropping a late operation rolls its transaction back, but an
//! admission may be committed although its answer is lost. So it runs in its own task, which owns the lease until a driver
//! takes it, and revokes it otherwise: if it is late, and if its caller is dropped before or after the hand-over. The
//! session would be busy until the lease expires.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Semaphore, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    AdmitOutcome, AdmittedLease, ConversationStore, FrameChunk, FramePage, History, Lease, NewRun, Preemption,
    ReaderSignals, RunEnding, RunKey, RunSignals, RunSnapshot, Session, SessionCursor, SessionSelection, SessionUpdate,
    StoredTurn, StoredTurns, ToolResultOutcome,
    error::{Result, StoreError},
    user_queue::{CallPermit, UserQueues},
};
use crate::identity::{RequestId, SessionId, UserId};

const ADMIT_QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// An admission that takes longer asks whether the store is down: the pool of a database that refuses connections only waits.
const PROBE_AFTER: Duration = Duration::from_millis(200);
/// Admissions share what one of them has found out.
const PROBE_VALIDITY: Duration = Duration::from_secs(1);
/// Of a user, that lock only rows of runs or sessions.
const CONCURRENT_ROW_WRITES: usize = 2;
/// Of a user. They wait for no other call of the process, because a lease is lost without them.
const CONCURRENT_HEARTBEATS: usize = 2;
/// A deletion lets other calls of the user in after that many sessions.
const DELETED_AT_ONCE: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreTimeouts {
    /// Counted from an admission's permit. Also for tool results.
    pub admit: Duration,
    /// How much longer than its caller an admission waits for the store, and the timeout of its revocation.
    pub late_admission: Duration,
    pub short: Duration,
    /// Calls with frames, records or pending turns, which may be megabytes.
    pub long: Duration,
    pub finish: Duration,
    pub delete: Duration,
}

#[derive(Debug)]
pub struct WithDeadlines<S> {
    store: Arc<S>,
    timeouts: StoreTimeouts,
    /// Backpressure: few admissions of a burst are in the store at a time, so that each is quick.
    admit_permits: Semaphore,
    locks: Option<UserLocks>,
    /// When the store was last asked, and whether it was down.
    probe: Mutex<Option<(Instant, bool)>>,
}

/// For stores whose transactions lock a user: calls of a user that would wait for each other's locks, wait here.
#[derive(Debug)]
struct UserLocks {
    /// For calls that lock the user. They are one at a time in the store as well.
    user: Arc<UserQueues>,
    heartbeats: Arc<UserQueues>,
    /// For other writes, which may wait for a deletion.
    rows: Arc<UserQueues>,
}

/// A place in a queue of the user.
enum Place<'a> {
    /// For calls that hold a lease.
    WithLease(&'a Arc<UserQueues>),
    WithoutLease(&'a Arc<UserQueues>),
}

impl<S: ConversationStore + 'static> WithDeadlines<S> {
    pub fn new(store: S, timeouts: StoreTimeouts, concurrent_admissions: usize) -> Self {
        let admit_permits = Semaphore::new(concurrent_admissions);
        Self { store: Arc::new(store), timeouts, admit_permits, locks: None, probe: Mutex::new(None) }
    }

    pub(super) fn with_user_locks(self) -> Self {
        let locks = UserLocks {
            user: UserQueues::new(1),
            heartbeats: UserQueues::new(CONCURRENT_HEARTBEATS),
            rows: UserQueues::new(CONCURRENT_ROW_WRITES),
        };
        Self { locks: Some(locks), ..self }
    }

    /// In its turn among the calls that lock the user.
    async fn locking_user<T>(
        &self,
        limit: Duration,
        user: &UserId,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        in_turn(limit, self.locks.as_ref().map(|locks| Place::WithoutLease(&locks.user)), user, call).await
    }

    async fn locking_user_with_lease<T>(
        &self,
        limit: Duration,
        lease: &Lease,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        in_turn(limit, self.locks.as_ref().map(|locks| Place::WithLease(&locks.user)), &lease.key.user, call).await
    }

    /// In its turn among the user's other writes.
    async fn locking_rows<T>(
        &self,
        limit: Duration,
        user: &UserId,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        in_turn(limit, self.locks.as_ref().map(|locks| Place::WithoutLease(&locks.rows)), user, call).await
    }

    /// Some sessions at a time, in the order of the list, and what belongs to no session at the end. Sessions that arise
    /// meanwhile are deleted at the end, as if they had arisen before.
    async fn delete_in_batches(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32> {
        let mut deleted = 0;
        match sessions {
            SessionSelection::Listed(ids) => {
                for ids in ids.chunks(DELETED_AT_ONCE) {
                    deleted += self.delete_batch(user, &SessionSelection::Listed(ids.to_vec())).await?;
                }
                Ok(deleted)
            }
            SessionSelection::All => {
                let mut after = None;
                loop {
                    let batch = self.store.list_sessions(user, DELETED_AT_ONCE, after.as_ref()).await?;
                    let Some(last) = batch.last().filter(|_| batch.len() == DELETED_AT_ONCE) else { break };
                    after = Some(SessionCursor { updated_at: last.updated_at, id: last.id.clone() });
                    let ids = batch.into_iter().map(|session| session.id).collect();
                    deleted += self.delete_batch(user, &SessionSelection::Listed(ids)).await?;
                }
                Ok(deleted + self.delete_batch(user, &SessionSelection::All).await?)
            }
        }
    }

    async fn delete_batch(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32> {
        self.locking_user(self.timeouts.delete, user, self.store.delete_sessions(user, sessions)).await
    }

    /// Waits for the user's earlier admissions: the store would do so with a connection.
    async fn enter_user(&self, run: &NewRun) -> Result<Option<CallPermit>> {
        // A resuming run locks nothing.
        let Some(locks) = self.locks.as_ref().filter(|_| !run.resumes) else { return Ok(None) };
        let user = &run.key.user;
        let limit = if locks.user.is_stuck(user) { self.timeouts.admit } else { ADMIT_QUEUE_TIMEOUT };
        in_time(limit, locks.user.enter(user)).await.map(Some)
    }

    async fn admit_in_turn(&self, run: &NewRun) -> Result<AdmitOutcome> {
        let call_permit = self.enter_user(run).await?;
        let permit = timeout(ADMIT_QUEUE_TIMEOUT, self.admit_permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(StoreError::Timeout) };
        self.admit_or_revoke(run, call_permit).await
    }

    async fn wait_until_down(&self) {
        sleep(PROBE_AFTER).await;
        while !self.is_down().await {
            sleep(PROBE_VALIDITY).await;
        }
    }

    async fn is_down(&self) -> bool {
        let mut probe = self.probe.lock().await;
        match *probe {
            Some((asked, is_down)) if asked.elapsed() < PROBE_VALIDITY => is_down,
            _ => {
                let is_down = self.store.is_unreachable().await;
                *probe = Some((Instant::now(), is_down));
                is_down
            }
        }
    }

    /// The task holds the permit of the user until the store has answered.
    async fn admit_or_revoke(&self, run: &NewRun, permit: Option<CallPermit>) -> Result<AdmitOutcome> {
        let (sender, receiver) = oneshot::channel();
        let (store, admitted_run) = (self.store.clone(), run.clone());
        let StoreTimeouts { admit, late_admission, .. } = self.timeouts;
        drop(tokio::spawn(async move {
            let admitted = in_time(admit + late_admission, store.admit(&admitted_run)).await;
            drop(permit);
            let Ok(AdmitOutcome::Started { lease, profile, history }) = admitted else {
                // Without a receiver nobody waits for the refusal.
                let _ = sender.send(admitted);
                return;
            };
            let lease = lease.take();
            let (guarded, is_taken) = AdmittedLease::guarded(lease.clone());
            // Not sent, it is dropped here; sent to a caller that is dropped, it is dropped with the channel.
            drop(sender.send(Ok(AdmitOutcome::Started { lease: guarded, profile, history })));
            if is_taken.await.is_err()
                && let Err(error) = in_time(late_admission, store.revoke_admission(&lease)).await
            {
                tracing::warn!(%error, "an admission was not revoked: its session is busy until the lease expires");
            }
        }));
        match timeout(admit, receiver).await {
            Ok(Ok(admitted)) => admitted,
            // The inner error: the runtime shuts down and has dropped the task.
            Ok(Err(_)) | Err(_) => {
                if let Some(locks) = &self.locks {
                    locks.user.set_stuck(&run.key.user);
                }
                Err(StoreError::Timeout)
            }
        }
    }
}

async fn in_turn<T>(
    limit: Duration,
    place: Option<Place<'_>>,
    user: &UserId,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(place) = place else { return in_time(limit, call).await };
    let in_turn = async {
        let _permit = match place {
            Place::WithLease(queues) => queues.enter_with_lease(user).await?,
            Place::WithoutLease(queues) => queues.enter(user).await?,
        };
        call.await
    };
    in_time(limit, in_turn).await
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, work).await.map_err(|_| StoreError::Timeout)?
}

#[async_trait::async_trait]
impl<S: ConversationStore + 'static> ConversationStore for WithDeadlines<S> {
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome> {
        tokio::select! {
            biased;
            admitted = self.admit_in_turn(run) => match admitted {
                Err(error) if error.is_timeout() && self.is_down().await => Err(StoreError::Unreachable),
                admitted => admitted,
            },
            () = self.wait_until_down() => Err(StoreError::Unreachable),
        }
    }

    async fn revoke_admission(&self, lease: &Lease) -> Result<()> {
        self.locking_user_with_lease(self.timeouts.short, lease, self.store.revoke_admission(lease)).await
    }

    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals> {
        // One that hangs is given up in time for another one: it renews the lease.
        let place = self.locks.as_ref().map(|locks| Place::WithLease(&locks.heartbeats));
        in_turn(self.timeouts.short, place, &lease.key.user, self.store.checkpoint(lease, chunk)).await
    }

    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        self.locking_user_with_lease(self.timeouts.finish, lease, self.store.finish(lease, ending)).await
    }

    async fn follow(&self, user: &UserId, request: &RequestId, page: &FramePage) -> Result<Option<RunSnapshot>> {
        self.locking_rows(self.timeouts.long, user, self.store.follow(user, request, page)).await
    }

    async fn unwatch(&self, user: &UserId, request: &RequestId) -> Result<()> {
        self.locking_rows(self.timeouts.short, user, self.store.unwatch(user, request)).await
    }

    async fn set_read(&self, lease: &Lease, is_read: bool) -> Result<ReaderSignals> {
        let place = self.locks.as_ref().map(|locks| Place::WithLease(&locks.rows));
        in_turn(self.timeouts.short, place, &lease.key.user, self.store.set_read(lease, is_read)).await
    }

    async fn preempt(&self, key: &RunKey, takes_over: bool) -> Result<Preemption> {
        self.locking_user(self.timeouts.short, &key.user, self.store.preempt(key, takes_over)).await
    }

    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>> {
        self.locking_rows(self.timeouts.short, user, self.store.cancel(user, session, request)).await
    }

    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<()> {
        let call = self.store.store_pending_turn(lease, state, calls);
        self.locking_user_with_lease(self.timeouts.long, lease, call).await
    }

    async fn record_tool_result(&self, lease: &Lease, call: &str, result: &[u8]) -> Result<ToolResultOutcome> {
        let recording = self.store.record_tool_result(lease, call, result);
        self.locking_user_with_lease(self.timeouts.admit, lease, recording).await
    }

    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History> {
        in_time(self.timeouts.long, self.store.load_history(user, session, max_tokens)).await
    }

    async fn list_sessions(&self, user: &UserId, limit: usize, after: Option<&SessionCursor>) -> Result<Vec<Session>> {
        in_time(self.timeouts.short, self.store.list_sessions(user, limit, after)).await
    }

    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>> {
        in_time(self.timeouts.short, self.store.get_session(user, session)).await
    }

    async fn list_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>> {
        in_time(self.timeouts.long, self.store.list_turns(user, session, before, limit)).await
    }

    async fn rename_session(&self, user: &UserId, session: &SessionId, title: &str) -> Result<Option<Session>> {
        self.locking_rows(self.timeouts.short, user, self.store.rename_session(user, session, title)).await
    }

    async fn load_profile(&self, user: &UserId) -> Result<Option<Vec<u8>>> {
        in_time(self.timeouts.short, self.store.load_profile(user)).await
    }

    async fn update_session(&self, user: &UserId, session: &SessionId, update: &SessionUpdate) -> Result<()> {
        self.locking_rows(self.timeouts.short, user, self.store.update_session(user, session, update)).await
    }

    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32> {
        let deletion = async {
            match self.locks {
                Some(_) => self.delete_in_batches(user, sessions).await,
                None => self.store.delete_sessions(user, sessions).await,
            }
        };
        in_time(self.timeouts.delete, deletion).await
    }

    async fn warm_up(&self) {
        let _connected = timeout(self.timeouts.short, self.store.warm_up()).await;
    }

    async fn is_unreachable(&self) -> bool {
        self.store.is_unreachable().await
    }

    fn stored_turns(&self) -> Option<Arc<StoredTurns>> {
        self.store.stored_turns()
    }
}

#[cfg(test)]
#[path = "deadline_tests.rs"]
mod tests;
