//! Deletes runs that no request may ask for any more, of the users whose runs start. A task of the store deletes them beside the
//! turn, in small transactions, one user at a time, so that it holds at most one connection. On a function it has the time that
//! the turn takes. The admission says from the rows that there is something to delete, so whatever stops a sweep, the user's
//! next turn begins it again.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::{conversation::run::IDEMPOTENCY_WINDOW, identity::UserId, postgres::RolePool};

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
        select request_id from runs where user_id = $1 and ended_at < now() - make_interval(secs => $2)
        order by ended_at limit $3 for update skip locked
    ), lost as (
        select request_id from runs
        where user_id = $1 and ended_at is null and lease_until < now() - make_interval(secs => $2)
        limit $3 for update skip locked
    )
    delete from runs
    where user_id = $1 and request_id in (select request_id from ended union all select request_id from lost)";

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
        let sweep = transaction.query(SWEEP).bind(user.as_str()).bind(IDEMPOTENCY_WINDOW.as_secs_f64()).bind(BATCH);
        let swept = sweep.execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        if swept < BATCH.unsigned_abs() {
            break;
        }
    }
    Ok(())
}
