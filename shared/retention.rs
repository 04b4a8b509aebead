//! Deletes rows that are kept for a time only, also of users who never come back: runs with their frames, pending turns, the use
//! of quotas, marks of learned turns and of erasures, and extraction jobs that failed for good.
//!
//! The maintenance role sees which users are due (`retention_queue`), and the rows are deleted as each of them. Rounds and
//! transactions are bounded. Several processes may sweep at once: no sweep waits for a lock, and what another one has locked
//! is left to it.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::Row as _;

use crate::{
    conversation,
    identity::UserId,
    learning,
    postgres::{RolePool, RolePools, RoleTransaction},
    turn_ledger,
};

/// Users of a round.
const MAX_USERS: i32 = 500;
/// Transactions of one user in a round.
const MAX_BATCHES: usize = 20;

const DUE_USERS: &str = "select owner_id from retention_queue where due_at <= $1 order by due_at limit $2";
const CLAIM: &str = "select from retention_queue where owner_id = $1 and due_at <= $2 for update skip locked";
const REMOVE: &str = "delete from retention_queue where owner_id = $1";
const POSTPONE: &str = "update retention_queue set due_at = $2::timestamptz + interval '1 day' where owner_id = $1";
/// Nothing waits for a sweep: a crash that forgets it leaves rows for the next one.
const WITHOUT_FLUSH: &str = "set local synchronous_commit = off";

#[derive(Debug, Clone)]
pub struct RetentionSweep {
    service: RolePool,
    maintenance: RolePool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweptRows {
    pub rows: u64,
    /// More users are due.
    pub is_partial: bool,
}

impl RetentionSweep {
    #[must_use]
    pub fn new(database: &RolePools) -> Self {
        Self { service: database.service.clone(), maintenance: database.maintenance.clone() }
    }

    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.maintenance.is_configured()
    }

    /// One round: deletes what has expired at `now`. Can be cancelled between any two transactions.
    ///
    /// # Errors
    /// The database failed. What was deleted before stays deleted.
    pub async fn sweep(&self, now: Timestamp) -> Result<SweptRows, sqlx::Error> {
        let mut swept = SweptRows { rows: self.delete_erasure_marks(now).await?, is_partial: false };
        let due = self.due_users(now).await?;
        swept.is_partial = i32::try_from(due.len()).is_ok_and(|due| due == MAX_USERS);
        for user in due.iter().filter_map(|user| UserId::parse("user_id", user).ok()) {
            for batch in 1.. {
                let deleted = Box::pin(self.sweep_user(&user, now)).await?;
                swept.rows += deleted.rows;
                if !deleted.is_partial {
                    break;
                }
                if batch == MAX_BATCHES {
                    swept.is_partial = true;
                    break;
                }
            }
        }
        swept.rows += self.delete_failed_jobs(now).await?;
        Ok(swept)
    }

    async fn due_users(&self, now: Timestamp) -> Result<Vec<String>, sqlx::Error> {
        let mut transaction = self.maintenance.begin_without_user().await?;
        let query = transaction.query(DUE_USERS).bind(now.to_sqlx()).bind(MAX_USERS);
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(|row| row.try_get("owner_id")).collect()
    }

    /// One transaction. Inserting something that expires locks the user's row of the queue, too.
    async fn sweep_user(&self, user: &UserId, now: Timestamp) -> Result<SweptRows, sqlx::Error> {
        let mut transaction = self.begin(user).await?;
        let claim = transaction.query(CLAIM).bind(user.as_str()).bind(now.to_sqlx());
        if claim.fetch_optional(&mut *transaction).await?.is_none() {
            return Ok(SweptRows::default());
        }
        let conversations = conversation::delete_expired(&mut transaction, user, now).await?;
        let marks = turn_ledger::delete_expired(&mut transaction, user, now).await?;
        let is_partial = conversations.is_partial || marks.is_partial;
        if !is_partial {
            let statement = if conversations.is_empty && marks.is_empty { REMOVE } else { POSTPONE };
            let mut update = transaction.query(statement).bind(user.as_str());
            if statement == POSTPONE {
                update = update.bind(now.to_sqlx());
            }
            update.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(SweptRows { rows: conversations.deleted + marks.deleted, is_partial })
    }

    async fn delete_failed_jobs(&self, now: Timestamp) -> Result<u64, sqlx::Error> {
        let mut transaction = self.maintenance.begin_without_user().await?;
        let users = learning::users_with_old_failed_jobs(&mut transaction, now).await?;
        transaction.commit().await?;
        let mut rows = 0;
        for user in users {
            let mut transaction = self.begin(&user).await?;
            rows += learning::delete_old_failed_jobs(&mut transaction, &user, now).await?;
            transaction.commit().await?;
        }
        Ok(rows)
    }

    async fn delete_erasure_marks(&self, now: Timestamp) -> Result<u64, sqlx::Error> {
        let mut transaction = self.service.begin_without_user().await?;
        let rows = turn_ledger::delete_old_erasures(&mut transaction, now).await?;
        transaction.commit().await?;
        Ok(rows)
    }

    async fn begin(&self, user: &UserId) -> Result<RoleTransaction, sqlx::Error> {
        let mut transaction = self.service.begin(user).await?;
        transaction.query(WITHOUT_FLUSH).execute(&mut *transaction).await?;
        Ok(transaction)
    }
}
