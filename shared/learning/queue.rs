//! The queue of extraction jobs in Postgres (`learning_jobs`), shared by all processes and filled by the transaction that
//! stores a turn.
//!
//! A job is claimed by a lock with an expiry. `attempts` is its fencing token: a worker whose lock expired and whose job was
//! claimed again can no longer settle it. At most one job of a user is claimed at a time, so facts are learned in order.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{Row as _, postgres::PgRow};

use crate::{
    identity::{SessionId, UserId},
    postgres::{RolePool, RolePools, RoleTransaction},
};

const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any job may run, see the worker's `JOB_TIMEOUT`.
pub(super) const LOCK_DURATION: Duration = Duration::from_mins(5);

/// Users after `$1` and up to `$3` in the order of their ids, of which `is_due` have due jobs and none claimed. None if no job of
/// any user is due. Steps from user to user in the index, so that it reads no more where users have many jobs.
const NEXT_USERS: &str = "
    with recursive users as (
        (select user_id, 1::bigint as number from learning_jobs
         where failed_at is null and user_id > $1 and ($3::text is null or user_id <= $3)
               and exists (select from learning_jobs where failed_at is null and due_at <= now())
         order by user_id limit 1)
        union all
        select next.user_id, users.number + 1
        from users, lateral (select jobs.user_id from learning_jobs jobs
                             where jobs.failed_at is null and jobs.user_id > users.user_id
                                   and ($3::text is null or jobs.user_id <= $3)
                             order by jobs.user_id limit 1) next
        where users.number < $2
    )
    select user_id,
           (select jobs.due_at <= now() from learning_jobs jobs
            where jobs.failed_at is null and jobs.user_id = users.user_id order by jobs.due_at limit 1)
           and not exists (select from learning_jobs busy
                           where busy.user_id = users.user_id and busy.locked_until is not null
                                 and busy.locked_until > now()) as is_due
    from users order by user_id";
/// Users that one query visits. The first one finds enough mostly.
const FIRST_VISITED_USERS: usize = 20;
const VISITED_USERS: usize = 200;
/// Serializes the claims of a user: two at once would each see no claimed job. By SHA-256, so that nobody finds a name with the
/// lock of another user.
/// The first lock is the one of version 0.1, whose workers run beside these during a deployment. It can go in the release after.
const LOCK_USER: &str = "
    select pg_advisory_xact_lock(hashtextextended('learning ' || $1, 0)),
           pg_advisory_xact_lock(
               ('x' || encode(substr(sha256(convert_to('learning ' || $1, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint)";
/// A claim waits for no row: it locks failed jobs and then another one, which a deletion locks in any order.
const DELETE_OLD_FAILED: &str = "
    delete from learning_jobs
    where user_id = $1 and (session_id, turn) in (
        select session_id, turn from learning_jobs
        where user_id = $1 and failed_at is not null and failed_at < coalesce($2::timestamptz, now()) - interval '90 days'
        limit 100
        for update skip locked)";
const USERS_WITH_OLD_FAILED: &str = "
    select distinct user_id from learning_jobs
    where failed_at is not null and failed_at < $1::timestamptz - interval '90 days' and user_id > $2
    order by user_id limit 100";
const CLAIM: &str = "
    update learning_jobs set locked_until = now() + make_interval(secs => $2), attempts = attempts + 1
    where user_id = $1 and (session_id, turn) = (
        select session_id, turn from learning_jobs
        where user_id = $1 and failed_at is null and due_at <= now() and (locked_until is null or locked_until <= now())
              and not exists (select from learning_jobs
                              where user_id = $1 and locked_until is not null and locked_until > now())
        order by due_at, session_id, turn limit 1 for update skip locked)
    returning session_id, turn, attempts";
const DELETE: &str = "
    delete from learning_jobs where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";
const RETRY: &str = "
    update learning_jobs set locked_until = null, due_at = now() + make_interval(secs => $5)
    where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";
const FAIL: &str = "
    update learning_jobs set locked_until = null, failed_at = now()
    where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";
const RELEASE: &str = "
    update learning_jobs set locked_until = null, attempts = attempts - 1
    where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";
const ERASE: &str = "delete from learning_jobs where user_id = $1";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtractionJob {
    pub(super) user: UserId,
    pub(super) session: SessionId,
    pub(super) turn: u32,
    /// This attempt included.
    pub(super) attempt: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobOutcome {
    Done,
    Retry {
        after: Duration,
    },
    /// Stays in the table as a dead letter.
    Failed,
    /// Cancelled by the worker's shutdown; does not count as an attempt.
    Released,
}

#[derive(Debug, Clone)]
pub(super) struct ExtractionQueue {
    service: RolePool,
    maintenance: RolePool,
    /// The user whom the last query visited last: the users take turns.
    last_visited: Arc<Mutex<String>>,
}

/// Users after `after` and, if the walk has started over, up to where it began.
struct Walk {
    after: String,
    through: Option<String>,
    most: usize,
}

impl ExtractionQueue {
    pub(super) fn new(database: &RolePools) -> Self {
        Self {
            service: database.service.with_statement_timeout(QUERY_TIMEOUT),
            maintenance: database.maintenance.with_statement_timeout(QUERY_TIMEOUT),
            last_visited: Arc::default(),
        }
    }

    /// Users with due jobs and none claimed, each in turn. Empty if there are none.
    pub(super) async fn due_users(&self, limit: usize) -> Result<Vec<UserId>, sqlx::Error> {
        let begin = self.lock_last_visited().clone();
        let mut walk = Walk { after: begin.clone(), through: None, most: FIRST_VISITED_USERS };
        let mut due = Vec::new();
        while due.len() < limit {
            let visited = self.next_users(&walk).await?;
            let is_end = visited.len() < walk.most;
            for (user, is_due) in visited {
                if due.len() == limit {
                    break;
                }
                due.extend(UserId::parse("user_id", &user).ok().filter(|_| is_due));
                walk.after = user;
            }
            walk.most = VISITED_USERS;
            if is_end && due.len() < limit {
                if walk.through.is_some() || begin.is_empty() {
                    // All users were visited.
                    walk.after.clone_from(&begin);
                    break;
                }
                walk = Walk { after: String::new(), through: Some(begin.clone()), ..walk };
            }
        }
        *self.lock_last_visited() = walk.after;
        Ok(due)
    }

    async fn next_users(&self, walk: &Walk) -> Result<Vec<(String, bool)>, sqlx::Error> {
        let mut transaction = self.maintenance.begin_without_user().await?;
        let query = transaction.query(NEXT_USERS).bind(&walk.after);
        let query = query.bind(i64::try_from(walk.most).unwrap_or(i64::MAX)).bind(&walk.through);
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        let read =
            |row: &PgRow| Ok((row.try_get("user_id")?, row.try_get::<Option<bool>, _>("is_due")?.unwrap_or_default()));
        rows.iter().map(read).collect()
    }

    fn lock_last_visited(&self) -> MutexGuard<'_, String> {
        self.last_visited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if no job is due or another worker has claimed one of this user.
    pub(super) async fn claim(&self, user: &UserId) -> Result<Option<ExtractionJob>, sqlx::Error> {
        let mut transaction = self.service.begin(user).await?;
        transaction.query(LOCK_USER).bind(user.as_str()).execute(&mut *transaction).await?;
        delete_old_failed_jobs(&mut transaction, user, None).await?;
        let query = transaction.query(CLAIM).bind(user.as_str()).bind(LOCK_DURATION.as_secs_f64());
        let row = query.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        let Some(row) = row else { return Ok(None) };
        let number = |column| Ok::<_, sqlx::Error>(u32::try_from(row.try_get::<i32, _>(column)?).unwrap_or_default());
        let session = SessionId::parse("session_id", row.try_get("session_id")?);
        let session = session.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(Some(ExtractionJob { user: user.clone(), session, turn: number("turn")?, attempt: number("attempts")? }))
    }

    /// Changes nothing if the job was claimed again meanwhile or deleted.
    pub(super) async fn settle(&self, job: &ExtractionJob, outcome: JobOutcome) -> Result<(), sqlx::Error> {
        let (statement, delay) = match outcome {
            JobOutcome::Done => (DELETE, None),
            JobOutcome::Retry { after } => (RETRY, Some(after)),
            JobOutcome::Failed => (FAIL, None),
            JobOutcome::Released => (RELEASE, None),
        };
        let mut transaction = self.service.begin(&job.user).await?;
        let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        let query = transaction.query(statement).bind(job.user.as_str()).bind(job.session.as_str());
        let mut query = query.bind(number(job.turn)).bind(number(job.attempt));
        if let Some(delay) = delay {
            query = query.bind(delay.as_secs_f64());
        }
        query.execute(&mut *transaction).await?;
        transaction.commit().await
    }
}

/// At most 100, in the order of their ids, after `after`. The maintenance role sees them.
pub(crate) async fn users_with_old_failed_jobs(
    transaction: &mut RoleTransaction,
    now: Timestamp,
    after: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let query = transaction.query(USERS_WITH_OLD_FAILED).bind(now.to_sqlx()).bind(after);
    let rows = query.fetch_all(&mut **transaction).await?;
    rows.iter().map(|row| row.try_get("user_id")).collect()
}

/// At most 100. Waits for no lock. `None`: those that are old by the database's clock.
pub(crate) async fn delete_old_failed_jobs(
    transaction: &mut RoleTransaction,
    user: &UserId,
    now: Option<Timestamp>,
) -> Result<u64, sqlx::Error> {
    let query = transaction.query(DELETE_OLD_FAILED).bind(user.as_str()).bind(now.map(|now| now.to_sqlx()));
    Ok(query.execute(&mut **transaction).await?.rows_affected())
}

/// Part of the transaction that erases a user.
pub(crate) async fn erase_jobs(transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
    transaction.query(ERASE).bind(user.as_str()).execute(&mut **transaction).await?;
    Ok(())
}
