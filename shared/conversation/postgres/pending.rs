//! Turns that wait for the results of tools that the client runs, as functions on a transaction.

use std::time::Duration;

use sqlx::Row as _;
use uuid::Uuid;

use super::{PostgresConversations, TIMEOUT, check_lease};
use crate::{
    conversation::{CompletedPendingTurn, Lease, PendingTurnId, StoreError, ToolResultOutcome},
    identity::{SessionId, UserId},
    postgres::RoleTransaction,
};

/// How long results are waited for. A client may have to ask a person first.
const KEPT: Duration = Duration::from_hours(24);
/// Most turns of one user that wait; the oldest are given up.
const MOST: i64 = 20;

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
const RESULT: &str = "
    update pending_calls set result = $4, given_by = $6
    where user_id = $1 and session_id = $2 and call_id = $3 and (result is null or $5)
    returning call_id";
const KNOWN: &str = "
    select coalesce(given_by = $4, false) as is_again from pending_calls
    where user_id = $1 and session_id = $2 and call_id = $3";
const MISSING: &str = "select from pending_calls where user_id = $1 and session_id = $2 and result is null limit 1";
const RESUME: &str = "
    update pending_turns set resumed_at = now(), resumed_by = $3 where user_id = $1 and session_id = $2
    returning state";
const RESULTS: &str = "select call_id, result from pending_calls where user_id = $1 and session_id = $2";

const END: &str = "delete from pending_turns where user_id = $1 and session_id = $2 and turn_id = $3";
const REOPEN: &str = "
    with reopened as (
        update pending_turns set resumed_at = null, resumed_by = null
        where user_id = $1 and session_id = $2 and turn_id = $3
        returning user_id, session_id
    )
    update pending_calls c set result = null from reopened r
    where c.user_id = r.user_id and c.session_id = r.session_id and c.call_id = $4";

const ERASE: &str = "delete from pending_turns where user_id = $1";

/// How long another run has the conversation yet.
const OTHER_HOLDER: &str = "
    select extract(epoch from lease_until - clock_timestamp())::float8 as remaining from runs
    where user_id = $1 and session_id = $2 and request_id <> $3 and holds_session and lease_until > clock_timestamp()";
/// Takes the conversation from a run that died.
const FREE_SESSION: &str = "
    update runs set holder = null, holds_session = false
    where user_id = $1 and session_id = $2 and request_id <> $3 and holds_session";
const TAKE_SESSION: &str = "update runs set holds_session = true where user_id = $1 and request_id = $2";

impl PostgresConversations {
    pub(super) async fn keep_pending(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError> {
        let mut transaction = self.begin_locked(&lease.key.user, TIMEOUT).await?;
        check_lease(&mut transaction, lease).await?;
        keep(&mut transaction, &lease.key.user, &lease.key.session, state, calls).await?;
        Ok(transaction.commit().await?)
    }

    pub(super) async fn accept_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError> {
        let key = &lease.key;
        let mut transaction = self.begin_locked(&key.user, self.admit_timeout).await?;
        check_lease(&mut transaction, lease).await?;
        let accepted = accept(&mut transaction, lease, call, result, self.max_turn_duration).await?;
        if matches!(accepted, ToolResultOutcome::Complete { .. })
            && let Some(retry_after) = take_session(&mut transaction, lease).await?
        {
            // What was done is undone: the result may be given again.
            return Ok(ToolResultOutcome::Busy { retry_after });
        }
        transaction.commit().await?;
        Ok(accepted)
    }
}

/// Takes the conversation for a run, unless another run has it: then it says for how long.
async fn take_session(transaction: &mut RoleTransaction, lease: &Lease) -> Result<Option<Duration>, StoreError> {
    let (user, request) = (lease.key.user.as_str(), lease.key.request.as_str());
    let session = lease.key.session.as_str();
    let other = transaction.query(OTHER_HOLDER).bind(user).bind(session).bind(request);
    if let Some(other) = other.fetch_optional(&mut **transaction).await? {
        let remaining: f64 = other.try_get("remaining")?;
        return Ok(Some(Duration::try_from_secs_f64(remaining.max(0.0)).map_err(|_| StoreError::Malformed("a time"))?));
    }
    let free = transaction.query(FREE_SESSION).bind(user).bind(session).bind(request);
    free.execute(&mut **transaction).await?;
    transaction.query(TAKE_SESSION).bind(user).bind(request).execute(&mut **transaction).await?;
    Ok(None)
}

/// Keeps a turn until the results of these calls are in. It takes the place of another one of its session.
pub(in crate::conversation) async fn keep(
    transaction: &mut RoleTransaction,
    user: &UserId,
    session: &SessionId,
    state: &[u8],
    calls: &[&str],
) -> Result<(), StoreError> {
    let (user, session) = (user.as_str(), session.as_str());
    let others = transaction.query(GIVE_UP).bind(user).bind(session).bind(KEPT.as_secs_f64()).bind(MOST - 1);
    others.execute(&mut **transaction).await?;
    let turn = transaction.query(KEEP).bind(user).bind(session).bind(Uuid::now_v7().to_string()).bind(state);
    turn.execute(&mut **transaction).await?;
    transaction.query(KEEP_CALLS).bind(user).bind(session).bind(calls).execute(&mut **transaction).await?;
    Ok(())
}

/// Takes the result of a call. Of several calls that answer at once exactly one is the last.
async fn accept(
    transaction: &mut RoleTransaction,
    lease: &Lease,
    call: &str,
    result: &[u8],
    longest_turn: Duration,
) -> Result<ToolResultOutcome, StoreError> {
    let key = &lease.key;
    let (user_id, session_id, request_id) = (key.user.as_str(), key.session.as_str(), key.request.as_str());
    let turn = transaction.query(LOCK).bind(user_id).bind(session_id);
    let turn = turn.bind(KEPT.as_secs_f64()).bind(longest_turn.as_secs_f64());
    let Some(turn) = turn.fetch_optional(&mut **transaction).await? else { return Ok(ToolResultOutcome::UnknownCall) };
    // A turn that went on and was lost with its process: whoever waits for it may give the last result again.
    let is_running = turn.try_get::<Option<bool>, _>("is_running")?;
    let taken = transaction.query(RESULT).bind(user_id).bind(session_id).bind(call).bind(result);
    let taken = taken.bind(is_running == Some(false)).bind(request_id);
    if taken.fetch_optional(&mut **transaction).await?.is_none() {
        let known = transaction.query(KNOWN).bind(user_id).bind(session_id).bind(call).bind(request_id);
        let Some(known) = known.fetch_optional(&mut **transaction).await? else {
            return Ok(ToolResultOutcome::UnknownCall);
        };
        // The same request again, of which nobody heard that it had succeeded.
        let is_again = is_running.is_none() && known.try_get("is_again")?;
        return Ok(if is_again { ToolResultOutcome::Pending } else { ToolResultOutcome::Duplicate });
    }
    let missing = transaction.query(MISSING).bind(user_id).bind(session_id);
    if missing.fetch_optional(&mut **transaction).await?.is_some() {
        return Ok(ToolResultOutcome::Pending);
    }
    let resumed = transaction.query(RESUME).bind(user_id).bind(session_id).bind(lease.lease_token.as_bytes());
    let resumed = resumed.fetch_one(&mut **transaction).await?;
    let results = transaction.query(RESULTS).bind(user_id).bind(session_id).fetch_all(&mut **transaction).await?;
    let results = results.iter().map(|row| Ok((row.try_get("call_id")?, row.try_get("result")?)));
    Ok(ToolResultOutcome::Complete(CompletedPendingTurn {
        state: resumed.try_get("state")?,
        results: results.collect::<Result<_, sqlx::Error>>()?,
        id: PendingTurnId {
            user: key.user.clone(),
            session: key.session.clone(),
            turn: turn.try_get("turn_id")?,
            last_call: call.to_owned(),
        },
    }))
}

/// Ends a turn that went on: nothing of it is kept.
pub(in crate::conversation) async fn end(
    transaction: &mut RoleTransaction,
    ticket: &PendingTurnId,
) -> Result<(), StoreError> {
    let end = transaction.query(END).bind(ticket.user.as_str()).bind(ticket.session.as_str()).bind(&ticket.turn);
    end.execute(&mut **transaction).await?;
    Ok(())
}

/// Takes back that a turn went on, because it failed in a way that may pass: its last result may be given again.
pub(in crate::conversation) async fn reopen(
    transaction: &mut RoleTransaction,
    ticket: &PendingTurnId,
) -> Result<(), StoreError> {
    let reopen = transaction.query(REOPEN).bind(ticket.user.as_str()).bind(ticket.session.as_str());
    reopen.bind(&ticket.turn).bind(&ticket.last_call).execute(&mut **transaction).await?;
    Ok(())
}

/// Deletes the pending turns of a user with their calls, in a transaction of that user.
pub(crate) async fn erase_pending_turns(transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
    transaction.query(ERASE).bind(user.as_str()).execute(&mut **transaction).await?;
    Ok(())
}
