//! Deletes what no request may ask for any more. The retention sweep does it for all users, at most once a day each. Runs of the
//! users whose runs start are deleted as well: a task of the store deletes them beside the
//! turn, in small transactions, one user at a time, so that it holds at most one connection. On a function it has the time that
//! the turn takes. The admission says from the rows that there is something to delete, so whatever stops a sweep, the user's
//! next turn begins it again.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::Row as _;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    conversation::{pending::PENDING_TURN_WINDOW, run::IDEMPOTENCY_WINDOW},
    identity::UserId,
    postgres::{ExpiredRows, RolePool, RoleTransaction},
};

/// More are dropped: a user is queued again by the next turn.
const MAX_QUEUED_USERS: usize = 1_000;
const BATCH: i64 = 200;
/// Bounds the time that one user takes.
const MAX_BATCHES: usize = 500;

/// Nothing waits for a sweep: a crash that forgets it leaves rows for the next one.
const WITHOUT_FLUSH: &str = "set local synchronous_commit = off";
/// Ended runs, and lost ones. Skips rows that another transaction changes, so that no two wait for each other.
const SWEEP: &str = "
    with ended as (
        select request_id from runs where user_id = $1 and ended_at < coalesce($4::timestamptz, now()) - make_interval(secs => $2)
        order by ended_at limit $3 for update skip locked
    ), lost as (
        select request_id from runs
        where user_id = $1 and ended_at is null and lease_until < coalesce($4::timestamptz, now()) - make_interval(secs => $2)
        limit $3 for update skip locked
    )
    delete from runs
    where user_id = $1 and request_id in (select request_id from ended union all select request_id from lost)";

const SWEEP_PENDING: &str = "
    delete from pending_turns where user_id = $1 and session_id in (
        select session_id from pending_turns
        where user_id = $1 and created_at < $2::timestamptz - make_interval(secs => $3) limit $4 for update skip locked)";
/// Rows that have expired and were locked by others count as left.
const LEFT: &str = "
    select exists (select from runs where user_id = $1) or exists (select from pending_turns where user_id = $1) as is_left";
const LOCK_USAGE: &str = "select from user_usage where user_id = $1 for update skip locked";
/// As a deletion of all sessions does: what counts for a quota stays.
const DELETE_USAGE: &str = "
    delete from user_usage
    where user_id = $1 and (requests = 0 or minute < date_trunc('minute', $2::timestamptz, 'UTC'))
          and (tokens = 0 or day < ($2::timestamptz at time zone 'UTC')::date)
          and (embedded_bytes = 0 or embedded_on < ($2::timestamptz at time zone 'UTC')::date)
          and not exists (select from runs where user_id = $1) and not exists (select from pending_turns where user_id = $1)";
const HAS_USAGE: &str = "select exists (select from user_usage where user_id = $1) as has_usage";

/// Dropping it stops the sweep.
#[derive(Debug)]
pub(super) struct RunSweeper {
    queue: mpsc::Sender<UserId>,
    users: QueuedUsers,
    task: Mutex<SweepTask>,
}

/// Users in the queue and the one whose runs are deleted now: each once.
#[derive(Debug, Default, Clone)]
struct QueuedUsers(Arc<Mutex<HashSet<UserId>>>);

impl QueuedUsers {
    fn lock(&self) -> MutexGuard<'_, HashSet<UserId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum SweepTask {
    /// A store is built outside of the runtime.
    NotStarted(RolePool, mpsc::Receiver<UserId>),
    Running {
        _handle: AbortOnDropHandle<()>,
    },
    Starting,
}

impl RunSweeper {
    pub(super) fn new(database: RolePool) -> Self {
        let (queue, queued) = mpsc::channel(MAX_QUEUED_USERS);
        Self { queue, users: QueuedUsers::default(), task: Mutex::new(SweepTask::NotStarted(database, queued)) }
    }

    pub(super) fn sweep_later(&self, user: &UserId) {
        if !self.users.lock().insert(user.clone()) {
            return;
        }
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        *task = match std::mem::replace(&mut *task, SweepTask::Starting) {
            SweepTask::NotStarted(database, queued) => SweepTask::Running {
                _handle: AbortOnDropHandle::new(tokio::spawn(run(database, queued, self.users.clone()))),
            },
            running => running,
        };
        if self.queue.try_send(user.clone()).is_err() {
            self.users.lock().remove(user);
            tracing::debug!("the queue of users with old runs is full");
        }
    }
}

async fn run(database: RolePool, mut queued: mpsc::Receiver<UserId>, users: QueuedUsers) {
    while let Some(user) = queued.recv().await {
        if let Err(error) = sweep(&database, &user).await {
            tracing::warn!(%error, user = user.digest(), "old runs were not deleted; the user's next turn tries again");
        }
        users.lock().remove(&user);
    }
}

async fn sweep(database: &RolePool, user: &UserId) -> Result<(), sqlx::Error> {
    for _ in 0..MAX_BATCHES {
        let mut transaction = database.begin(user).await?;
        transaction.query(WITHOUT_FLUSH).execute(&mut *transaction).await?;
        let swept = delete_runs(&mut transaction, user, None).await?;
        transaction.commit().await?;
        if swept < BATCH.unsigned_abs() {
            break;
        }
    }
    Ok(())
}

/// `now`: the database's clock by default.
async fn delete_runs(
    transaction: &mut RoleTransaction,
    user: &UserId,
    now: Option<Timestamp>,
) -> Result<u64, sqlx::Error> {
    let sweep = transaction.query(SWEEP).bind(user.as_str()).bind(IDEMPOTENCY_WINDOW.as_secs_f64()).bind(BATCH);
    Ok(sweep.bind(now.map(|now| now.to_sqlx())).execute(&mut **transaction).await?.rows_affected())
}

/// Runs with their frames, pending turns, and at last the use of quotas. Waits for no lock.
pub(crate) async fn delete_expired(
    transaction: &mut RoleTransaction,
    user: &UserId,
    now: Timestamp,
) -> Result<ExpiredRows, sqlx::Error> {
    let runs = delete_runs(transaction, user, Some(now)).await?;
    let sweep = transaction.query(SWEEP_PENDING).bind(user.as_str()).bind(now.to_sqlx());
    let sweep = sweep.bind(PENDING_TURN_WINDOW.as_secs_f64()).bind(BATCH);
    let pending = sweep.execute(&mut **transaction).await?.rows_affected();
    let is_partial = runs.max(pending) >= BATCH.unsigned_abs();
    let left = transaction.query(LEFT).bind(user.as_str()).fetch_one(&mut **transaction).await?;
    if is_partial || left.try_get("is_left")? {
        return Ok(ExpiredRows { deleted: runs + pending, is_partial, is_empty: false });
    }
    // An admission that waits for the lock inserts the row again, and the user into the queue.
    let mut usage = 0;
    if transaction.query(LOCK_USAGE).bind(user.as_str()).fetch_optional(&mut **transaction).await?.is_some() {
        let delete = transaction.query(DELETE_USAGE).bind(user.as_str()).bind(now.to_sqlx());
        usage = delete.execute(&mut **transaction).await?.rows_affected();
    }
    let has_usage = transaction.query(HAS_USAGE).bind(user.as_str()).fetch_one(&mut **transaction).await?;
    let is_empty = !has_usage.try_get::<bool, _>("has_usage")?;
    Ok(ExpiredRows { deleted: runs + pending + usage, is_partial: false, is_empty })
}
