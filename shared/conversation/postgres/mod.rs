//! Conversations in Postgres. `infra/migrations/0005_conversations.sql` documents the tables.
//!
//! Locks, in the order that [`postgres`](crate::postgres) documents. Transactions that admit, end or revoke a run, record a tool
//! result, store a pending turn or delete sessions first lock the user's row of `user_usage`, which serializes them for a user. A
//! run that has its lease then has it until the commit. Other transactions lock one row: heartbeats, readers and cancellation one
//! of `runs`, titles and summaries one of `sessions`. The sweep skips locked rows.
//!
//! Cancellation: a dropped call rolls its transaction back, but `admit`, `checkpoint` and `finish`, one function call
//! each, may commit. The column `runs.holder` is the lease token.

mod admit;
mod pending;
mod readers;
mod run;
mod session;
mod sweep;

pub(crate) use pending::erase_pending_turns;
pub(crate) use sweep::delete_expired;

use std::{sync::Arc, time::Duration};

use sqlx::{Row as _, postgres::PgRow};

use self::sweep::RunSweeper;
use super::{
    deadline::{StoreTimeouts, WithDeadlines},
    error::{Result, StoreError},
    pending::ToolResultOutcome,
    run::{
        AdmitOutcome, FrameChunk, FramePage, Lease, NewRun, Preemption, ReaderSignals, RunEnding, RunKey, RunSignals,
        RunSnapshot,
    },
    session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn},
    store::{ConversationStore, impl_conversation_store},
    stored_turns::StoredTurns,
};
use crate::{
    identity::{RequestId, SessionId, UserId},
    postgres::{RolePool, RoleTransaction},
};

/// Of the 16 connections, so that a burst leaves some to the turns that end.
const CONCURRENT_ADMISSIONS: usize = 12;
/// Longest that a frozen process (a suspended Lambda function) holds the user lock.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

const LOCK_USER: &str = "select from user_usage where user_id = $1 for update";
/// Returns a row where it inserts one. `on conflict`: another transaction inserted it meanwhile.
const LOCK_OR_INSERT_USER: &str = "
    with locked as materialized (select from user_usage where user_id = $1 for update)
    insert into user_usage (user_id) select $1 where not exists (select from locked)
    on conflict (user_id) do update set requests = user_usage.requests
    returning xmax = 0 as is_new";
/// Removes the row that [`LOCK_OR_INSERT_USER`] inserted, and that of the queue, which the trigger inserted.
const REMOVE_USER: [&str; 2] = [
    "delete from user_usage where user_id = $1",
    "delete from retention_queue where owner_id = $1 and not exists (select from learned_turns where user_id = $1)
        and not exists (select from runs where user_id = $1)",
];
const HAS_LEASE: &str = "select from runs where user_id = $1 and request_id = $2 and holder = $3 and ended_at is null";

#[derive(Debug)]
pub struct PostgresConversations {
    database: RolePool,
    /// After this a resumed turn that has not ended counts as lost.
    max_turn_duration: Duration,
    /// Statement timeouts of the server: a dropped call does not stop its statement.
    timeouts: StoreTimeouts,
    stored_turns: Arc<StoredTurns>,
    sweeper: RunSweeper,
}

impl PostgresConversations {
    #[must_use]
    pub fn with_deadlines(
        database: &RolePool,
        max_turn_duration: Duration,
        admit_timeout: Duration,
    ) -> WithDeadlines<Self> {
        let timeouts = StoreTimeouts {
            admit: admit_timeout,
            late_admission: Duration::from_secs(30),
            short: Duration::from_secs(5),
            long: Duration::from_secs(5),
            finish: Duration::from_secs(10),
            delete: Duration::from_secs(60),
        };
        let database = database.with_statement_timeout(timeouts.short).with_idle_timeout(IDLE_TIMEOUT);
        let sweeper = RunSweeper::new(database.clone());
        let store = Self { database, max_turn_duration, timeouts, stored_turns: Arc::default(), sweeper };
        WithDeadlines::new(store, timeouts, CONCURRENT_ADMISSIONS).with_user_locks()
    }

    async fn begin_locked(&self, user: &UserId, statement_timeout: Duration) -> Result<RoleTransaction> {
        let mut transaction = self.database.with_statement_timeout(statement_timeout).begin(user).await?;
        lock_user(&mut transaction, user).await?;
        Ok(transaction)
    }
}

/// A user without a row has nothing to lock, and no runs. They may have sessions: see [`UserRow`].
async fn lock_user(transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
    transaction.query(LOCK_USER).bind(user.as_str()).execute(&mut **transaction).await?;
    Ok(())
}

/// Locks a user while data is deleted that the row does not belong to: sessions, jobs. The retention sweep deletes the row
/// of a user without recent calls. Without a row, one is inserted and must be removed before the commit.
#[derive(Debug)]
#[must_use = "what it has inserted must be removed"]
pub(crate) struct UserRow<'u> {
    user: &'u UserId,
    is_new: bool,
}

impl<'u> UserRow<'u> {
    pub(crate) async fn lock(transaction: &mut RoleTransaction, user: &'u UserId) -> Result<Self, sqlx::Error> {
        let query = transaction.query(LOCK_OR_INSERT_USER).bind(user.as_str());
        let row = query.fetch_optional(&mut **transaction).await?;
        let is_new = row.map(|row| row.try_get("is_new")).transpose()?.unwrap_or_default();
        Ok(Self { user, is_new })
    }

    /// Before the commit: an erasure must leave no row of the user.
    pub(crate) async fn remove_if_new(self, transaction: &mut RoleTransaction) -> Result<(), sqlx::Error> {
        if self.is_new {
            for statement in REMOVE_USER {
                transaction.query(statement).bind(self.user.as_str()).execute(&mut **transaction).await?;
            }
        }
        Ok(())
    }
}

async fn check_lease(transaction: &mut RoleTransaction, lease: &Lease) -> Result<()> {
    let has_lease = transaction.query(HAS_LEASE).bind(lease.key.user.as_str()).bind(lease.key.request.as_str());
    let found = has_lease.bind(lease.lease_token.as_bytes()).fetch_optional(&mut **transaction).await?;
    found.map(drop).ok_or(StoreError::LeaseLost)
}

fn read_count(row: &PgRow, column: &str) -> Result<u32> {
    u32::try_from(row.try_get::<i64, _>(column)?).map_err(|_| StoreError::Malformed("a count"))
}

fn read_seconds(row: &PgRow, column: &str) -> Result<Duration> {
    let seconds: f64 = row.try_get(column)?;
    Duration::try_from_secs_f64(seconds.max(0.0)).map_err(|_| StoreError::Malformed("a time"))
}

fn read_request_id(row: &PgRow, column: &str) -> Result<RequestId> {
    RequestId::parse(column, row.try_get(column)?).map_err(|_| StoreError::Malformed("a request id"))
}

impl_conversation_store! {
    PostgresConversations:

    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        self.finish_run(lease, ending).await?;
        if ending.turn.as_ref().is_some_and(|turn| turn.is_complete && turn.may_be_learned) {
            self.stored_turns.add();
        }
        Ok(())
    }

    async fn warm_up(&self) {
        if let Ok(transaction) = self.database.begin_without_user().await {
            let _committed = transaction.commit().await;
        }
    }

    async fn is_unreachable(&self) -> bool {
        self.database.is_unreachable().await
    }

    fn stored_turns(&self) -> Option<Arc<StoredTurns>> {
        Some(self.stored_turns.clone())
    }
}
