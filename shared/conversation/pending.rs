//! Turns that wait for the results of tools that the client runs, in Postgres.

use std::time::Duration;

use sqlx::Row as _;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    identity::{SessionId, UserId},
    postgres::{RoleDatabase, RoleTransaction},
};

/// How long results are waited for. A client may have to ask a person first.
const KEPT: Duration = Duration::from_hours(24);
/// Most turns of one user that wait; the oldest are given up.
const MOST: i64 = 20;
/// Most that keeping a turn, or ending one, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

const GIVE_UP: &str = "
    delete from pending_turns where user_id = $1
        and (session_id = $2 or created_at < now() - make_interval(secs => $3)
             or session_id in (select session_id from pending_turns where user_id = $1
                               order by created_at desc, session_id offset $4))";
const KEEP: &str = "insert into pending_turns (user_id, session_id, turn_id, state) values ($1, $2, $3, $4)";
const KEEP_CALLS: &str =
    "insert into pending_calls (user_id, session_id, call_id) select $1, $2, call_id from unnest($3::text[]) call_id";

/// Locks the turn, so that of two results that come at once only one is the last.
const LOCK: &str = "
    select turn_id, resumed_at > now() - make_interval(secs => $4) as is_running
    from pending_turns
    where user_id = $1 and session_id = $2 and created_at >= now() - make_interval(secs => $3)
    for update";
const RESULT: &str = "
    update pending_calls set result = $4
    where user_id = $1 and session_id = $2 and call_id = $3 and (result is null or $5)
    returning call_id";
const KNOWN: &str = "select from pending_calls where user_id = $1 and session_id = $2 and call_id = $3";
const MISSING: &str = "select from pending_calls where user_id = $1 and session_id = $2 and result is null limit 1";
const RESUME: &str =
    "update pending_turns set resumed_at = now() where user_id = $1 and session_id = $2 returning state";
const RESULTS: &str = "select call_id, result from pending_calls where user_id = $1 and session_id = $2";

const END: &str = "delete from pending_turns where user_id = $1 and session_id = $2 and turn_id = $3";
const REOPEN: &str = "
    with reopened as (
        update pending_turns set resumed_at = null where user_id = $1 and session_id = $2 and turn_id = $3
        returning user_id, session_id
    )
    update pending_calls c set result = null from reopened r
    where c.user_id = r.user_id and c.session_id = r.session_id and c.call_id = $4";

/// Why a turn can not be kept or found. It holds no text of the user.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The database took too long.
    #[error("the database took too long")]
    Timeout,
}

/// What becomes of a result.
#[derive(Debug)]
pub enum Accepted {
    /// No turn waits for it: the call was never made in this session, is over, or belongs to somebody else.
    Unknown,
    /// It was given already.
    Duplicate,
    /// Others are still missing.
    Waiting,
    /// It was the last: the turn goes on.
    Complete {
        /// The turn as it was kept.
        state: Vec<u8>,
        /// The results by the ids of their calls.
        results: Vec<(String, Vec<u8>)>,
        /// To be handed back when the turn has ended.
        ticket: Ticket,
    },
}

/// A turn that goes on. Until it is handed back the turn is not over; after a while without a word its last result may be
/// given again.
#[derive(Debug, Clone)]
pub struct Ticket {
    user: UserId,
    session: SessionId,
    turn: String,
    last_call: String,
}

/// The turns of all users that wait.
#[derive(Debug, Clone)]
pub struct PendingTurns {
    database: RoleDatabase,
    /// Longest that a turn runs: after this, one that was resumed and did not end is taken for lost.
    longest_turn: Duration,
    /// Most that taking a result may take.
    admission: Duration,
}

impl PendingTurns {
    /// Turns in a database. Where a turn was resumed longer than `longest_turn` ago and nothing was heard of it, its last
    /// result may be given again; `admission` is how long taking a result may take.
    #[must_use]
    pub fn new(database: RoleDatabase, longest_turn: Duration, admission: Duration) -> Self {
        Self { database: database.within(TIMEOUT), longest_turn, admission }
    }

    /// Whether there is a place to keep them.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.database.is_there()
    }

    /// Keeps a turn until the results of these calls are in. It takes the place of another one of its session.
    ///
    /// # Errors
    /// The database failed; then nothing is kept.
    pub async fn keep(
        &self,
        user: &UserId,
        session: &SessionId,
        state: &[u8],
        calls: &[&str],
    ) -> Result<(), StoreError> {
        in_time(TIMEOUT, async {
            let mut transaction = self.database.begin(user).await?;
            let others = transaction.query(GIVE_UP).bind(user.as_str()).bind(session.as_str());
            others.bind(KEPT.as_secs_f64()).bind(MOST - 1).execute(&mut *transaction).await?;
            let turn = transaction.query(KEEP).bind(user.as_str()).bind(session.as_str());
            turn.bind(Uuid::now_v7().to_string()).bind(state).execute(&mut *transaction).await?;
            let calls = transaction.query(KEEP_CALLS).bind(user.as_str()).bind(session.as_str()).bind(calls);
            calls.execute(&mut *transaction).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// Takes the result of a call. Of several calls that answer at once exactly one is the last.
    ///
    /// # Errors
    /// The database failed or took too long; then the result is not taken.
    pub async fn accept(
        &self,
        user: &UserId,
        session: &SessionId,
        call: &str,
        result: &[u8],
    ) -> Result<Accepted, StoreError> {
        in_time(self.admission, async {
            let mut transaction = self.database.begin(user).await?;
            let accepted = self.accept_in(&mut transaction, user, session, call, result).await?;
            transaction.commit().await?;
            Ok(accepted)
        })
        .await
    }

    async fn accept_in(
        &self,
        transaction: &mut RoleTransaction,
        user: &UserId,
        session: &SessionId,
        call: &str,
        result: &[u8],
    ) -> Result<Accepted, StoreError> {
        let (user_id, session_id) = (user.as_str(), session.as_str());
        let turn = transaction.query(LOCK).bind(user_id).bind(session_id);
        let turn = turn.bind(KEPT.as_secs_f64()).bind(self.longest_turn.as_secs_f64());
        let Some(turn) = turn.fetch_optional(&mut **transaction).await? else { return Ok(Accepted::Unknown) };
        // A turn that went on and was lost with its process: whoever waits for it may give the last result again.
        let is_lost = turn.try_get::<Option<bool>, _>("is_running")? == Some(false);
        let taken = transaction.query(RESULT).bind(user_id).bind(session_id).bind(call).bind(result).bind(is_lost);
        if taken.fetch_optional(&mut **transaction).await?.is_none() {
            let known = transaction.query(KNOWN).bind(user_id).bind(session_id).bind(call);
            let is_known = known.fetch_optional(&mut **transaction).await?.is_some();
            return Ok(if is_known { Accepted::Duplicate } else { Accepted::Unknown });
        }
        let missing = transaction.query(MISSING).bind(user_id).bind(session_id);
        if missing.fetch_optional(&mut **transaction).await?.is_some() {
            return Ok(Accepted::Waiting);
        }
        let resumed = transaction.query(RESUME).bind(user_id).bind(session_id).fetch_one(&mut **transaction).await?;
        let results = transaction.query(RESULTS).bind(user_id).bind(session_id).fetch_all(&mut **transaction).await?;
        let results = results.iter().map(|row| Ok((row.try_get("call_id")?, row.try_get("result")?)));
        Ok(Accepted::Complete {
            state: resumed.try_get("state")?,
            results: results.collect::<Result<_, sqlx::Error>>()?,
            ticket: Ticket {
                user: user.clone(),
                session: session.clone(),
                turn: turn.try_get("turn_id")?,
                last_call: call.to_owned(),
            },
        })
    }

    /// Ends a turn that went on: nothing of it is kept.
    ///
    /// # Errors
    /// The database failed; then the turn is given up after a day.
    pub async fn end(&self, ticket: &Ticket) -> Result<(), StoreError> {
        in_time(TIMEOUT, async {
            let mut transaction = self.database.begin(&ticket.user).await?;
            let end = transaction.query(END).bind(ticket.user.as_str()).bind(ticket.session.as_str());
            end.bind(&ticket.turn).execute(&mut *transaction).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// Takes back that a turn went on, because it failed in a way that may pass: its last result may be given again.
    ///
    /// # Errors
    /// The database failed; then that is so after the longest time of a turn.
    pub async fn reopen(&self, ticket: &Ticket) -> Result<(), StoreError> {
        in_time(TIMEOUT, async {
            let mut transaction = self.database.begin(&ticket.user).await?;
            let reopen = transaction.query(REOPEN).bind(ticket.user.as_str()).bind(ticket.session.as_str());
            reopen.bind(&ticket.turn).bind(&ticket.last_call).execute(&mut *transaction).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(limit, work).await.map_err(|_| StoreError::Timeout)?
}
