//! Turns that are still to be learned from, in Postgres: a queue that outlives its processes and is shared by them.
//!
//! A job is locked for whoever is at it, and counts how often somebody began with it. Whoever began last may say what became
//! of it; one who was taken for dead changes nothing.

use std::time::Duration;

use sqlx::Row as _;

use crate::{
    identity::{SessionId, UserId},
    postgres::{RolePool, RolePools, RoleTransaction},
};

/// Most that one call to the database may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a job is locked: longer than anybody may be at it.
pub(super) const LOCKED: Duration = Duration::from_mins(5);

/// Users for whom something is to be done and nobody is at anything, the one who has waited longest first.
const USERS_DUE: &str = "
    select user_id from learning_jobs jobs
    where failed_at is null and due_at <= now() and (locked_until is null or locked_until <= now())
          and not exists (select from learning_jobs busy where busy.user_id = jobs.user_id and busy.locked_until > now())
    group by user_id order by min(due_at) limit $1";
/// One claim of a user at a time, so that no two see nobody at anything.
const LOCK_USER: &str = "select pg_advisory_xact_lock(hashtextextended('learning ' || $1, 0))";
/// What was given up long ago nobody looks at any more.
const SWEEP: &str = "delete from learning_jobs where user_id = $1 and failed_at < now() - interval '90 days'";
const CLAIM: &str = "
    update learning_jobs set locked_until = now() + make_interval(secs => $2), attempts = attempts + 1
    where user_id = $1 and (session_id, turn) = (
        select session_id, turn from learning_jobs
        where user_id = $1 and failed_at is null and due_at <= now() and (locked_until is null or locked_until <= now())
              and not exists (select from learning_jobs where user_id = $1 and locked_until > now())
        order by due_at, session_id, turn limit 1)
    returning session_id, turn, attempts";
const DONE: &str = "
    delete from learning_jobs where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";
const AGAIN: &str = "
    update learning_jobs set locked_until = null, due_at = now() + make_interval(secs => $5)
    where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";
const GIVE_UP: &str = "
    update learning_jobs set locked_until = null, failed_at = now()
    where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";
const PUT_BACK: &str = "
    update learning_jobs set locked_until = null, attempts = attempts - 1
    where user_id = $1 and session_id = $2 and turn = $3 and attempts = $4";

const ERASE: &str = "delete from learning_jobs where user_id = $1";

/// A turn that this process is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtractionJob {
    pub(super) user: UserId,
    pub(super) session: SessionId,
    /// Its place in the conversation.
    pub(super) turn: u32,
    /// How often somebody began with it, this time included.
    pub(super) attempt: u32,
}

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobOutcome {
    /// There is nothing more to do.
    Done,
    /// It failed, and is to be tried again after a while.
    Again(Duration),
    /// It failed once too often.
    GivenUp,
    /// It was not finished, through no fault of its own.
    PutBack,
}

/// The queue.
#[derive(Debug, Clone)]
pub(super) struct ExtractionQueue {
    service: RolePool,
    maintenance: RolePool,
}

impl ExtractionQueue {
    pub(super) fn new(database: &RolePools) -> Self {
        Self {
            service: database.service.with_statement_timeout(TIMEOUT),
            maintenance: database.maintenance.with_statement_timeout(TIMEOUT),
        }
    }

    /// Users for whom something is to be done.
    pub(super) async fn users_due(&self, limit: usize) -> Result<Vec<UserId>, sqlx::Error> {
        let mut transaction = self.maintenance.begin_without_user().await?;
        let query = transaction.query(USERS_DUE).bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        let ids = rows.iter().map(|row| row.try_get::<String, _>("user_id")).collect::<Result<Vec<_>, _>>()?;
        Ok(ids.iter().filter_map(|id| UserId::parse("user_id", id).ok()).collect())
    }

    /// Takes the next job of a user, unless somebody is at one of theirs.
    pub(super) async fn claim(&self, user: &UserId) -> Result<Option<ExtractionJob>, sqlx::Error> {
        let mut transaction = self.service.begin(user).await?;
        for statement in [LOCK_USER, SWEEP] {
            transaction.query(statement).bind(user.as_str()).execute(&mut *transaction).await?;
        }
        let query = transaction.query(CLAIM).bind(user.as_str()).bind(LOCKED.as_secs_f64());
        let row = query.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        let Some(row) = row else { return Ok(None) };
        let whole = |column| Ok::<_, sqlx::Error>(u32::try_from(row.try_get::<i32, _>(column)?).unwrap_or_default());
        let session = SessionId::parse("session_id", row.try_get("session_id")?);
        let session = session.map_err(|_| sqlx::Error::Decode("the id of a conversation is none".into()))?;
        Ok(Some(ExtractionJob { user: user.clone(), session, turn: whole("turn")?, attempt: whole("attempts")? }))
    }

    /// Says what became of a job, unless somebody else has begun with it since, or it is gone.
    pub(super) async fn settle(&self, job: &ExtractionJob, outcome: JobOutcome) -> Result<(), sqlx::Error> {
        let (statement, wait) = match outcome {
            JobOutcome::Done => (DONE, None),
            JobOutcome::Again(wait) => (AGAIN, Some(wait)),
            JobOutcome::GivenUp => (GIVE_UP, None),
            JobOutcome::PutBack => (PUT_BACK, None),
        };
        let mut transaction = self.service.begin(&job.user).await?;
        let whole = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let query = transaction.query(statement).bind(job.user.as_str()).bind(job.session.as_str());
        let mut query = query.bind(whole(job.turn)).bind(whole(job.attempt));
        if let Some(wait) = wait {
            query = query.bind(wait.as_secs_f64());
        }
        query.execute(&mut *transaction).await?;
        transaction.commit().await
    }
}

pub(crate) async fn erase_jobs(transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
    transaction.query(ERASE).bind(user.as_str()).execute(&mut **transaction).await?;
    Ok(())
}
