//! Extraction jobs of turns that this process ends, in the Postgres of the memory, whose queue a server works off.
//!
//! Turn and job are in two databases, so the job is prepared first, with a delay, and made due after the turn is stored. A
//! process that dies in between leaves a job that becomes due by itself. A job whose turn was not stored does nothing.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    attributes::{PHASE, RUNNING, TURNS},
    item::ItemExt as _,
    keys::Key,
    lease::has_lease_token,
    table::Table,
};
use crate::{
    conversation::{
        error::Result,
        run::{Lease, RunEnding},
        stored_turns::StoredTurns,
    },
    identity::{SessionId, UserId},
    postgres::{RolePool, RolePools},
};

/// Longer than a turn may take to be stored.
const PREPARED_DELAY: Duration = Duration::from_secs(60);
/// The end of a turn does not wait longer for the memory's database.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);

/// A job of the same number is of a turn that was deleted with its session. Another attempt number keeps a worker that
/// processes it from deleting this job.
const SET_DUE: &str = "
    insert into learning_jobs as job (user_id, session_id, turn, due_at)
    values ($1, $2, $3, now() + make_interval(secs => $4))
    on conflict (user_id, session_id, turn) do update set
        due_at = excluded.due_at, failed_at = null, locked_until = null,
        attempts = case when job.failed_at is not null then 0
                        when job.locked_until is not null then job.attempts + 1
                        else job.attempts end";

#[derive(Debug, Clone)]
pub struct ExtractionJobs {
    database: RolePool,
    stored_turns: Arc<StoredTurns>,
}

impl ExtractionJobs {
    #[must_use]
    pub fn new(database: &RolePools) -> Self {
        Self { database: database.service.with_statement_timeout(QUERY_TIMEOUT), stored_turns: Arc::default() }
    }

    pub(super) fn stored_turns(&self) -> Arc<StoredTurns> {
        self.stored_turns.clone()
    }

    /// The number that the turn will have, unless nothing is to be learned from it, or its job cannot be queued.
    pub(super) async fn prepare(&self, table: &Table, lease: &Lease, ending: &RunEnding) -> Option<u32> {
        ending.turn.as_ref().filter(|turn| turn.is_complete && turn.may_be_learned)?;
        // An error: then the end fails too.
        let turn = Box::pin(next_turn(table, lease)).await.ok().flatten()?;
        self.set_due(&lease.key.user, &lease.key.session, turn, PREPARED_DELAY).await.then_some(turn)
    }

    /// `turn` is what `prepare` returned.
    pub(super) async fn release(&self, lease: &Lease, turn: Option<u32>) {
        let Some(turn) = turn else { return };
        if self.set_due(&lease.key.user, &lease.key.session, turn, Duration::ZERO).await {
            self.stored_turns.add();
        }
    }

    /// False if it failed, which is only logged: the answer does not depend on the memory's database.
    async fn set_due(&self, user: &UserId, session: &SessionId, turn: u32, delay: Duration) -> bool {
        let insert = async {
            let mut transaction = self.database.begin(user).await?;
            let query = transaction.query(SET_DUE).bind(user.as_str()).bind(session.as_str());
            let query = query.bind(i32::try_from(turn).unwrap_or(i32::MAX)).bind(delay.as_secs_f64());
            query.execute(&mut *transaction).await?;
            transaction.commit().await
        };
        let inserted = timeout(QUERY_TIMEOUT, Box::pin(insert)).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        inserted
            .inspect_err(|error| {
                tracing::warn!(%error, user = user.digest(), turn, "an extraction job was not queued");
            })
            .is_ok()
    }
}

/// Only a run that has the session's lease stores a turn, so the number is certain. `None`: the run has ended; its job was
/// prepared by the attempt that ended it.
async fn next_turn(table: &Table, lease: &Lease) -> Result<Option<u32>> {
    let key = &lease.key;
    let (run, session) = (Key::run(&key.user, key.request.as_str()), Key::session(&key.user, &key.session));
    let items = table.batch_get(vec![run.clone(), session.clone()]).await?;
    let is_running = items.get(&run.item).is_some_and(|run| {
        has_lease_token(run, lease.lease_token) && run.text(PHASE).is_ok_and(|phase| phase == RUNNING)
    });
    if !is_running {
        return Ok(None);
    }
    let turns: u32 = items.get(&session.item).map_or(Ok(0), |session| session.number(TURNS))?;
    Ok(Some(turns + 1))
}
