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
const MAX_USERS: usize = 500;
/// Transactions of one user in a round.
const MAX_BATCHES: usize = 20;

const DATABASE_TIME: &str = "select now() as now";
const DUE_USERS: &str = "
    select owner_id, due_at::text as due_at from retention_queue
    where due_at <= $1 and ($3::text is null or (due_at, owner_id) > ($3::timestamptz, $4 collate \"C\"))
    order by due_at, owner_id limit $2";
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

#[derive(Debug)]
struct DueUser {
    user: String,
    /// As the database writes it, which knows infinite times.
    due_at: String,
}

#[derive(Debug, Default)]
struct Round {
    swept: SweptRows,
    /// The first one.
    error: Option<sqlx::Error>,
}

impl Round {
    fn keep(&mut self, deleted: Result<u64, sqlx::Error>) {
        match deleted {
            Ok(rows) => self.swept.rows += rows,
            Err(error) => self.error = self.error.take().or(Some(error)),
        }
    }
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

    /// One round: deletes what has expired by the database's clock. Can be cancelled between any two transactions.
    ///
    /// # Errors
    /// The first one. A user whose rows cannot be deleted is postponed, and keeps no other one from being swept. What was
    /// deleted stays deleted.
    pub async fn sweep(&self) -> Result<SweptRows, sqlx::Error> {
        let mut transaction = self.maintenance.begin_without_user().await?;
        let row = transaction.query(DATABASE_TIME).fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        let now = row.try_get::<jiff_sqlx::Timestamp, _>("now")?.to_jiff();
        self.sweep_at(now).await
    }

    /// As [`Self::sweep`], at another time than the database's.
    ///
    /// # Errors
    /// As there.
    pub async fn sweep_at(&self, now: Timestamp) -> Result<SweptRows, sqlx::Error> {
        let mut round = Round::default();
        round.keep(self.delete_erasure_marks(now).await);
        let users = self.sweep_due_users(now, &mut round).await;
        round.keep(users.map(|()| 0));
        let jobs = self.delete_failed_jobs(now, &mut round).await;
        round.keep(jobs.map(|()| 0));
        match round.error {
            Some(error) => Err(error),
            None => Ok(round.swept),
        }
    }

    async fn sweep_due_users(&self, now: Timestamp, round: &mut Round) -> Result<(), sqlx::Error> {
        let (mut after, mut visited, mut is_progress) = (None, 0, false);
        loop {
            let due = self.due_users(now, after.as_ref()).await?;
            // Nobody can have an id that is not valid.
            for user in due.iter().filter_map(|due| UserId::parse("user_id", &due.user).ok()) {
                visited += 1;
                is_progress |= match Box::pin(self.sweep_batches(&user, now, &mut round.swept)).await {
                    Ok(is_claimed) => is_claimed,
                    Err(error) => {
                        tracing::warn!(%error, user = user.digest(), "expired rows of a user were not deleted");
                        let is_of_user = matches!(error, sqlx::Error::Database(_));
                        round.keep(Err(error));
                        let is_postponed = is_of_user && self.postpone(&user, now).await.is_ok();
                        if !is_of_user {
                            return Ok(());
                        }
                        is_postponed
                    }
                };
            }
            let is_end = due.len() < MAX_USERS;
            if is_end || visited >= MAX_USERS {
                round.swept.is_partial |= !is_end && is_progress;
                return Ok(());
            }
            after = due.into_iter().next_back();
        }
    }

    async fn due_users(&self, now: Timestamp, after: Option<&DueUser>) -> Result<Vec<DueUser>, sqlx::Error> {
        let mut transaction = self.maintenance.begin_without_user().await?;
        let query = transaction.query(DUE_USERS).bind(now.to_sqlx()).bind(i64::try_from(MAX_USERS).unwrap_or(i64::MAX));
        let query = query.bind(after.map(|after| after.due_at.as_str())).bind(after.map(|after| after.user.as_str()));
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(|row| Ok(DueUser { user: row.try_get("owner_id")?, due_at: row.try_get("due_at")? })).collect()
    }

    /// False if another process sweeps the user.
    async fn sweep_batches(&self, user: &UserId, now: Timestamp, swept: &mut SweptRows) -> Result<bool, sqlx::Error> {
        for batch in 0..MAX_BATCHES {
            let Some(deleted) = Box::pin(self.sweep_user(user, now)).await? else { return Ok(batch > 0) };
            swept.rows += deleted.rows;
            if !deleted.is_partial {
                return Ok(true);
            }
        }
        swept.is_partial = true;
        Ok(true)
    }

    async fn postpone(&self, user: &UserId, now: Timestamp) -> Result<(), sqlx::Error> {
        let mut transaction = self.begin(user).await?;
        let claim = transaction.query(CLAIM).bind(user.as_str()).bind(now.to_sqlx());
        if claim.fetch_optional(&mut *transaction).await?.is_some() {
            let postpone = transaction.query(POSTPONE).bind(user.as_str()).bind(now.to_sqlx());
            postpone.execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// One transaction. Inserting something that expires locks the user's row of the queue, too.
    async fn sweep_user(&self, user: &UserId, now: Timestamp) -> Result<Option<SweptRows>, sqlx::Error> {
        let mut transaction = self.begin(user).await?;
        let claim = transaction.query(CLAIM).bind(user.as_str()).bind(now.to_sqlx());
        if claim.fetch_optional(&mut *transaction).await?.is_none() {
            return Ok(None);
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
        Ok(Some(SweptRows { rows: conversations.deleted + marks.deleted, is_partial }))
    }

    async fn delete_failed_jobs(&self, now: Timestamp, round: &mut Round) -> Result<(), sqlx::Error> {
        let (mut after, mut visited) = (String::new(), 0);
        while visited < MAX_USERS {
            let mut transaction = self.maintenance.begin_without_user().await?;
            let users = learning::users_with_old_failed_jobs(&mut transaction, now, &after).await?;
            transaction.commit().await?;
            let Some(last) = users.last() else { break };
            after.clone_from(last);
            for user in users.iter().filter_map(|user| UserId::parse("user_id", user).ok()) {
                visited += 1;
                let deleted = self.delete_failed_jobs_of(&user, now).await;
                if let Err(error) = &deleted {
                    tracing::warn!(%error, user = user.digest(), "failed jobs of a user were not deleted");
                }
                round.keep(deleted);
            }
        }
        Ok(())
    }

    async fn delete_failed_jobs_of(&self, user: &UserId, now: Timestamp) -> Result<u64, sqlx::Error> {
        let mut transaction = self.begin(user).await?;
        let rows = learning::delete_old_failed_jobs(&mut transaction, user, Some(now)).await?;
        transaction.commit().await?;
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
