//! Conversations in Postgres.
//!
//! `infra/migrations/0005_conversations.sql` tells what is kept where, and in which order it is locked.

mod admit;
pub(super) mod pending;
mod run;
mod session;

pub(crate) use pending::erase_pending_turns;

use std::{sync::Arc, time::Duration};

use sqlx::{Row as _, postgres::PgRow};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::{
    AdmitOutcome, ConversationStore, FrameChunk, History, Lease, NewRun, RunEnding, RunSignals, RunSnapshot, Session,
    SessionCursor, SessionSelection, SessionUpdate, StoreError, StoredTurn, ToolResultOutcome,
};
use crate::{
    identity::{RequestId, SessionId, UserId},
    postgres::{RolePool, RoleTransaction},
};

/// Most that a call takes, unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most that the end of a run takes, which may be of many megabytes.
const ENDING_TIMEOUT: Duration = Duration::from_secs(10);
/// Most that it takes to delete conversations, which may be all of a user.
const DELETION_TIMEOUT: Duration = Duration::from_secs(60);
/// Admissions that the database is asked for at the same time.
const ADMISSIONS_AT_ONCE: usize = 4;
/// Longest that an admission waits for others of its process.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a transaction of a frozen process keeps the user's other requests waiting.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Keeps a user's other transactions away from who has which conversation, and from the limits.
const LOCK_USER: &str = "select from user_usage where user_id = $1 for update";
/// Under the lock of the user a run that has its lease keeps it until the transaction ends.
const HAS_LEASE: &str = "select from runs where user_id = $1 and request_id = $2 and holder = $3 and ended_at is null";

/// Conversations of all users in a database.
#[derive(Debug, Clone)]
pub struct PostgresConversations {
    database: RolePool,
    /// Longest that a turn runs: after this, one that was resumed and did not end is taken for lost.
    max_turn_duration: Duration,
    /// Most that an admission takes, once it has its turn.
    admit_timeout: Duration,
    /// Rings when a turn was kept that is to be learned from.
    learning_wakeup: Arc<Notify>,
    /// Admissions wait for each other here, and not for the database: of very many that come at once, each is quick.
    admit_permits: Arc<Semaphore>,
}

impl PostgresConversations {
    /// Conversations in a database of the service's role. Where a turn was resumed longer than `longest_turn` ago and nothing
    /// was heard of it, its last result may be given again; `admission` is how long it may take to let a run in, or to take
    /// a result.
    #[must_use]
    pub fn new(database: RolePool, longest_turn: Duration, admission: Duration) -> Self {
        let queue = Arc::new(Semaphore::new(ADMISSIONS_AT_ONCE));
        let database = database.with_statement_timeout(TIMEOUT).with_idle_timeout(IDLE_LIMIT);
        Self {
            database,
            max_turn_duration: longest_turn,
            admit_timeout: admission,
            learning_wakeup: Arc::default(),
            admit_permits: queue,
        }
    }

    /// Begins a transaction that no other one of the user's runs beside, but for signs of life.
    async fn begin_locked(&self, user: &UserId, limit: Duration) -> Result<RoleTransaction, StoreError> {
        let mut transaction = self.database.with_statement_timeout(limit).begin(user).await?;
        let lock = transaction.query(LOCK_USER).bind(user.as_str());
        lock.execute(&mut *transaction).await?;
        Ok(transaction)
    }
}

/// Makes sure that a lease is good. The user has to be locked.
async fn check_lease(transaction: &mut RoleTransaction, lease: &Lease) -> Result<(), StoreError> {
    let has_lease = transaction.query(HAS_LEASE).bind(lease.key.user.as_str()).bind(lease.key.request.as_str());
    let found = has_lease.bind(lease.lease_token.as_bytes()).fetch_optional(&mut **transaction).await?;
    found.map(drop).ok_or(StoreError::LeaseLost)
}

/// Gives up what takes too long.
pub(super) async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work).await.map_err(|_| StoreError::Timeout)?
}

/// A count, which Postgres knows with a sign only.
fn count(row: &PgRow, column: &str) -> Result<u32, StoreError> {
    u32::try_from(row.try_get::<i64, _>(column)?).map_err(|_| StoreError::Malformed("a count"))
}

fn session_id(row: &PgRow, column: &str) -> Result<SessionId, StoreError> {
    SessionId::parse(column, row.try_get(column)?).map_err(|_| StoreError::Malformed("the id of a conversation"))
}

fn request_id(row: &PgRow, column: &str) -> Result<RequestId, StoreError> {
    RequestId::parse(column, row.try_get(column)?).map_err(|_| StoreError::Malformed("the id of a request"))
}

#[async_trait::async_trait]
impl ConversationStore for PostgresConversations {
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        self.admit_run(run).await
    }

    async fn revoke_admission(&self, lease: &Lease) -> Result<(), StoreError> {
        in_time(TIMEOUT, self.abandon_run(lease)).await
    }

    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals, StoreError> {
        in_time(TIMEOUT, self.checkpoint_run(lease, chunk)).await
    }

    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError> {
        in_time(ENDING_TIMEOUT, self.finish_run(lease, ending)).await?;
        if ending.turn.as_ref().is_some_and(|turn| turn.is_complete && turn.may_be_learned) {
            self.learning_wakeup.notify_one();
        }
        Ok(())
    }

    async fn follow(&self, user: &UserId, request: &RequestId, after: u32) -> Result<Option<RunSnapshot>, StoreError> {
        in_time(TIMEOUT, self.follow_run(user, request, after)).await
    }

    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>, StoreError> {
        in_time(TIMEOUT, self.cancel_run(user, session, request)).await
    }

    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError> {
        in_time(TIMEOUT, self.keep_pending(lease, state, calls)).await
    }

    async fn record_tool_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError> {
        in_time(self.admit_timeout, self.accept_result(lease, call, result)).await
    }

    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History, StoreError> {
        in_time(TIMEOUT, self.last_turns(user, session, max_tokens)).await
    }

    async fn list_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>, StoreError> {
        in_time(TIMEOUT, self.list(user, limit, after)).await
    }

    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>, StoreError> {
        in_time(TIMEOUT, self.one(user, session)).await
    }

    async fn list_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>, StoreError> {
        in_time(TIMEOUT, self.turns_before(user, session, before, limit)).await
    }

    async fn rename_session(
        &self,
        user: &UserId,
        session: &SessionId,
        title: &str,
    ) -> Result<Option<Session>, StoreError> {
        in_time(TIMEOUT, self.give_title(user, session, title)).await
    }

    async fn update_session(
        &self,
        user: &UserId,
        session: &SessionId,
        finding: &SessionUpdate,
    ) -> Result<(), StoreError> {
        in_time(TIMEOUT, self.keep_finding(user, session, finding)).await
    }

    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError> {
        in_time(DELETION_TIMEOUT, self.delete_sessions(user, sessions)).await
    }

    async fn warm_up(&self) {
        if let Ok(Ok(transaction)) = timeout(TIMEOUT, self.database.begin_without_user()).await {
            drop(timeout(TIMEOUT, transaction.commit()).await);
        }
    }

    fn learning_wakeup(&self) -> Option<Arc<Notify>> {
        Some(self.learning_wakeup.clone())
    }
}
