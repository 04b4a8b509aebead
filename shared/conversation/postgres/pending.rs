use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{PostgresConversations, check_lease, read_seconds};
use crate::{
    conversation::{
        error::Result,
        pending::{CompletedPendingTurn, MAX_PENDING_TURNS, PENDING_TURN_WINDOW, PendingTurnId, ToolResultOutcome},
        run::Lease,
    },
    identity::UserId,
    postgres::RoleTransaction,
};

const DELETE_REPLACED: &str = "
    delete from pending_turns where user_id = $1
        and (session_id = $2 or created_at < now() - make_interval(secs => $3)
             or session_id in (select session_id from pending_turns where user_id = $1
                               order by created_at desc, session_id offset $4))";
const INSERT_TURN: &str = "insert into pending_turns (user_id, session_id, turn_id, state) values ($1, $2, $3, $4)";
const INSERT_CALLS: &str =
    "insert into pending_calls (user_id, session_id, call_id) select $1, $2, call_id from unnest($3::text[]) call_id";

/// `is_running` is null unless the turn was resumed.
const LOCK_TURN: &str = "
    select turn_id,
           case when resumed_at is not null then
               resumed_at > now() - make_interval(secs => $4)
               and (resumed_by is null
                    or exists (select from runs where user_id = $1 and holder = resumed_by and ended_at is null
                                                      and lease_until > clock_timestamp()))
           end as is_running
    from pending_turns
    where user_id = $1 and session_id = $2 and created_at >= now() - make_interval(secs => $3)
    for update";
const SET_RESULT: &str = "
    update pending_calls set result = $4, given_by = $6
    where user_id = $1 and session_id = $2 and call_id = $3 and (result is null or $5)
    returning call_id";
const IS_RETRY: &str = "
    select coalesce(given_by = $4, false) as is_retry from pending_calls
    where user_id = $1 and session_id = $2 and call_id = $3";
const MISSING_RESULT: &str =
    "select from pending_calls where user_id = $1 and session_id = $2 and result is null limit 1";
const RESUME: &str = "
    update pending_turns set resumed_at = now(), resumed_by = $3 where user_id = $1 and session_id = $2
    returning state";
const RESULTS: &str = "select call_id, result from pending_calls where user_id = $1 and session_id = $2";

const ERASE: &str = "delete from pending_turns where user_id = $1";

const OTHER_LEASE: &str = "
    select extract(epoch from lease_until - clock_timestamp())::float8 as remaining from runs
    where user_id = $1 and session_id = $2 and request_id <> $3 and holds_session and lease_until > clock_timestamp()";
const RELEASE_SESSION: &str = "
    update runs set holder = null, holds_session = false
    where user_id = $1 and session_id = $2 and request_id <> $3 and holds_session";
const TAKE_SESSION: &str = "update runs set holds_session = true where user_id = $1 and request_id = $2";

struct NewResult<'a> {
    lease: &'a Lease,
    call: &'a str,
    result: &'a [u8],
    max_turn_duration: Duration,
}

impl PostgresConversations {
    pub(super) async fn replace_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<()> {
        let mut transaction = self.begin_locked(&lease.key.user, self.timeouts.long).await?;
        check_lease(&mut transaction, lease).await?;
        let (user, session) = (lease.key.user.as_str(), lease.key.session.as_str());
        let others = i64::try_from(MAX_PENDING_TURNS - 1).unwrap_or(i64::MAX);
        let replaced = transaction.query(DELETE_REPLACED).bind(user).bind(session);
        let replaced = replaced.bind(PENDING_TURN_WINDOW.as_secs_f64()).bind(others);
        replaced.execute(&mut *transaction).await?;
        let turn = transaction.query(INSERT_TURN).bind(user).bind(session).bind(Uuid::now_v7().to_string()).bind(state);
        turn.execute(&mut *transaction).await?;
        transaction.query(INSERT_CALLS).bind(user).bind(session).bind(calls).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    pub(super) async fn record_result(&self, lease: &Lease, call: &str, result: &[u8]) -> Result<ToolResultOutcome> {
        let mut transaction = self.begin_locked(&lease.key.user, self.timeouts.admit).await?;
        check_lease(&mut transaction, lease).await?;
        let result = NewResult { lease, call, result, max_turn_duration: self.max_turn_duration };
        let outcome = result.record(&mut transaction).await?;
        if matches!(outcome, ToolResultOutcome::Complete { .. })
            && let Some(retry_after) = take_session(&mut transaction, lease).await?
        {
            // The transaction is rolled back: the result may be given again.
            return Ok(ToolResultOutcome::Busy { retry_after });
        }
        transaction.commit().await?;
        Ok(outcome)
    }
}

/// Returns the remaining lease where another run holds the session.
async fn take_session(transaction: &mut RoleTransaction, lease: &Lease) -> Result<Option<Duration>> {
    let (user, request) = (lease.key.user.as_str(), lease.key.request.as_str());
    let session = lease.key.session.as_str();
    let other = transaction.query(OTHER_LEASE).bind(user).bind(session).bind(request);
    if let Some(other) = other.fetch_optional(&mut **transaction).await? {
        return read_seconds(&other, "remaining").map(Some);
    }
    let release = transaction.query(RELEASE_SESSION).bind(user).bind(session).bind(request);
    release.execute(&mut **transaction).await?;
    transaction.query(TAKE_SESSION).bind(user).bind(request).execute(&mut **transaction).await?;
    Ok(None)
}

impl NewResult<'_> {
    async fn record(&self, transaction: &mut RoleTransaction) -> Result<ToolResultOutcome> {
        let key = &self.lease.key;
        let (user, session, request) = (key.user.as_str(), key.session.as_str(), key.request.as_str());
        let turn = transaction.query(LOCK_TURN).bind(user).bind(session);
        let turn = turn.bind(PENDING_TURN_WINDOW.as_secs_f64()).bind(self.max_turn_duration.as_secs_f64());
        let Some(turn) = turn.fetch_optional(&mut **transaction).await? else {
            return Ok(ToolResultOutcome::UnknownCall);
        };
        let is_running = turn.try_get::<Option<bool>, _>("is_running")?;
        // Resumed by a lost run: the last result may be given again.
        let is_lost = is_running == Some(false);
        let set = transaction.query(SET_RESULT).bind(user).bind(session).bind(self.call).bind(self.result);
        let set = set.bind(is_lost).bind(request);
        if set.fetch_optional(&mut **transaction).await?.is_none() {
            let known = transaction.query(IS_RETRY).bind(user).bind(session).bind(self.call).bind(request);
            let Some(known) = known.fetch_optional(&mut **transaction).await? else {
                return Ok(ToolResultOutcome::UnknownCall);
            };
            let is_retry = is_running.is_none() && known.try_get("is_retry")?;
            return Ok(if is_retry { ToolResultOutcome::Pending } else { ToolResultOutcome::Duplicate });
        }
        let missing = transaction.query(MISSING_RESULT).bind(user).bind(session);
        if missing.fetch_optional(&mut **transaction).await?.is_some() {
            return Ok(ToolResultOutcome::Pending);
        }
        self.resume(transaction, &turn).await
    }

    async fn resume(&self, transaction: &mut RoleTransaction, turn: &PgRow) -> Result<ToolResultOutcome> {
        let key = &self.lease.key;
        let (user, session) = (key.user.as_str(), key.session.as_str());
        let resumed = transaction.query(RESUME).bind(user).bind(session).bind(self.lease.lease_token.as_bytes());
        let resumed = resumed.fetch_one(&mut **transaction).await?;
        let results = transaction.query(RESULTS).bind(user).bind(session).fetch_all(&mut **transaction).await?;
        let results = results.iter().map(|row| Ok((row.try_get("call_id")?, row.try_get("result")?)));
        Ok(ToolResultOutcome::Complete(CompletedPendingTurn {
            state: resumed.try_get("state")?,
            results: results.collect::<Result<_, sqlx::Error>>()?,
            id: PendingTurnId {
                user: key.user.clone(),
                session: key.session.clone(),
                turn: turn.try_get("turn_id")?,
                last_call: self.call.to_owned(),
            },
        }))
    }
}

pub(crate) async fn erase_pending_turns(transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
    transaction.query(ERASE).bind(user.as_str()).execute(&mut **transaction).await?;
    Ok(())
}
