//! Calls are named by digests, because their ids are the provider's. State and results are items that only expire.

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::try_join;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    DynamoConversations, EXPIRY_MARGIN,
    attributes::{
        AWAITED, CALL, CALLS, LEASE_TOKEN, PHASE, REQUEST, RESUMED_AT, RESUMED_BY, RESUMED_REQUEST, RUNNING, STORED_AT,
        TURN,
    },
    item::{Item, ItemExt as _, add, expiry, flag, millis, number, set, text},
    keys::{EXPIRES_AT, ITEM_ID, Key, result_prefix, session_owner},
    lease::{ExpiredLease, LeaseState, has_lease_token, is_alive, renew_lease, require_lease, take_lease},
    parts::{StagedValue, ValueOwner},
    write::{FailedConditions, TransactOutcome, Write},
};
use crate::conversation::{
    error::{Result, StoreError},
    pending::{
        CompletedPendingTurn, MAX_PENDING_TURNS, PENDING_TURN_WINDOW, PendingTurnDisposition, PendingTurnId,
        ToolResultOutcome,
    },
    run::Lease,
};

const ATTEMPTS: u32 = 8;

/// Positions in the transaction. The lease, and the lost run that held it, come last.
const RUN: usize = 0;
const PENDING: usize = 1;
const LEASE: usize = 3;
const LOST_RUN: usize = 4;

struct NewResult<'a> {
    lease: &'a Lease,
    call: &'a str,
    result: &'a [u8],
}

enum ResultAttempt {
    Recorded,
    Busy(LeaseState),
    Retry,
}

impl DynamoConversations {
    pub(super) async fn replace_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<()> {
        let key = &lease.key;
        let now = Timestamp::now();
        let owner = ValueOwner::new(&key.user, session_owner(&key.session));
        let expires = expiry(now, PENDING_TURN_WINDOW + EXPIRY_MARGIN);
        let state = self.table.stage_in_parts(&owner, Uuid::now_v7(), state, &expires);
        let (state, others) = try_join(state, self.table.query_prefix(&key.user, "pending/")).await?;
        let calls: Vec<_> = calls.iter().map(|call| digest(call)).collect();
        let mut attributes = state.attributes.clone();
        attributes.extend([
            (TURN, text(Uuid::now_v7())),
            (CALLS, set(calls.clone())),
            (AWAITED, set(calls)),
            (STORED_AT, millis(now)),
            (EXPIRES_AT, expiry(now, PENDING_TURN_WINDOW)),
        ]);
        let new = Key::pending(&key.user, &key.session);
        let run = require_lease(Write::check(Key::run(&key.user, key.request.as_str())), lease);
        let writes = vec![run, Write::put(new.clone(), attributes)];
        if let TransactOutcome::ConditionsFailed(_) = self.table.transact(writes).await? {
            if let Some(parts) = &state.parts {
                self.table.delete_parts(parts).await;
            }
            return Err(StoreError::LeaseLost);
        }
        self.delete_oldest(lease, others, &new).await
    }

    async fn delete_oldest(&self, lease: &Lease, mut others: Vec<Item>, new: &Key) -> Result<()> {
        others.retain(|other| other.text(ITEM_ID).is_ok_and(|item| item != new.item));
        others.sort_by_key(|other| std::cmp::Reverse(other.number::<i64>(STORED_AT).unwrap_or_default()));
        for old in others.iter().skip(MAX_PENDING_TURNS - 1) {
            let delete = Write::delete(Key::new(&lease.key.user, old.text(ITEM_ID)?));
            let delete = delete.condition("turn_id = :turn").bind(":turn", text(old.text(TURN)?));
            self.table.write(delete).await?;
        }
        Ok(())
    }

    pub(super) async fn record_result(&self, lease: &Lease, call: &str, result: &[u8]) -> Result<ToolResultOutcome> {
        let key = &lease.key;
        let new = NewResult { lease, call, result };
        let mut expired: Option<ExpiredLease> = None;
        for _ in 0..ATTEMPTS {
            let Some(pending) = self.table.get(Key::pending(&key.user, &key.session)).await? else {
                return self.fenced(lease, ToolResultOutcome::UnknownCall).await;
            };
            let Some(awaited) = self.awaited_call(lease, &pending, call).await? else {
                let outcome = match pending.set(CALLS).contains(&digest(call)) {
                    true if self.is_retry(lease, &pending, call).await? => ToolResultOutcome::Pending,
                    true => ToolResultOutcome::Duplicate,
                    false => ToolResultOutcome::UnknownCall,
                };
                return self.fenced(lease, outcome).await;
            };
            let complete = if awaited.is_last { Some(self.complete_turn(&new, &pending).await?) } else { None };
            match self.attempt_result(&new, &awaited, expired.as_ref()).await? {
                ResultAttempt::Recorded => {
                    return Ok(complete.map_or(ToolResultOutcome::Pending, ToolResultOutcome::Complete));
                }
                ResultAttempt::Busy(LeaseState::Active(retry_after)) => {
                    return Ok(ToolResultOutcome::Busy { retry_after });
                }
                ResultAttempt::Busy(LeaseState::Expired(found)) => expired = Some(found),
                ResultAttempt::Retry => expired = None,
            }
        }
        Err(StoreError::Timeout)
    }

    async fn attempt_result(
        &self,
        new: &NewResult<'_>,
        awaited: &AwaitedCall,
        expired: Option<&ExpiredLease>,
    ) -> Result<ResultAttempt> {
        let (lease, key) = (new.lease, &new.lease.key);
        let now = Timestamp::now();
        let owner = ValueOwner::new(&key.user, session_owner(&key.session));
        let expires = expiry(now, PENDING_TURN_WINDOW + EXPIRY_MARGIN);
        let staged = self.table.stage_value(&owner, Uuid::now_v7(), new.result, &expires).await?;
        let heartbeat = renew_lease(lease, now);
        let heartbeat = match awaited.is_last {
            true => heartbeat.append(", holds_session = :yes").bind(":yes", flag(true)),
            false => heartbeat,
        };
        let mut writes = vec![heartbeat, awaited.record(lease, now), new.put(&awaited.turn, &staged, expires)];
        if awaited.is_last {
            writes.extend(take_lease(lease, expired, now));
        }
        let TransactOutcome::ConditionsFailed(failed) = self.table.transact(writes).await? else {
            return Ok(ResultAttempt::Recorded);
        };
        if let Some(parts) = &staged.parts {
            self.table.delete_parts(parts).await;
        }
        self.judge_result(lease, &failed).await
    }

    async fn judge_result(&self, lease: &Lease, failed: &FailedConditions) -> Result<ResultAttempt> {
        if failed.get(RUN).is_some() {
            return Err(StoreError::LeaseLost);
        }
        if failed.get(PENDING).is_some() || failed.get(LOST_RUN).is_some() {
            return Ok(ResultAttempt::Retry);
        }
        let Some(taken) = failed.get(LEASE) else { return Ok(ResultAttempt::Retry) };
        let state = self.table.lease_state(&lease.key.user, lease.key.request.as_str(), taken).await?;
        Ok(ResultAttempt::Busy(state))
    }

    /// True if the same request gave the stored result and its answer was lost.
    async fn is_retry(&self, lease: &Lease, pending: &Item, call: &str) -> Result<bool> {
        let key = &lease.key;
        let stored = self.table.get(Key::result(&key.user, &key.session, pending.text(TURN)?, &digest(call))).await?;
        let is_same =
            stored.is_some_and(|stored| stored.text(REQUEST).is_ok_and(|request| request == key.request.as_str()));
        Ok(is_same && !pending.contains_key(RESUMED_BY))
    }

    /// Returns an outcome that changes nothing, if the run has its lease.
    async fn fenced(&self, lease: &Lease, outcome: ToolResultOutcome) -> Result<ToolResultOutcome> {
        let run = self.table.get(Key::run(&lease.key.user, lease.key.request.as_str())).await?;
        let has_lease = run.is_some_and(|run| {
            has_lease_token(&run, lease.lease_token) && run.text(PHASE).is_ok_and(|phase| phase == RUNNING)
        });
        if has_lease { Ok(outcome) } else { Err(StoreError::LeaseLost) }
    }

    async fn awaited_call(&self, lease: &Lease, pending: &Item, call: &str) -> Result<Option<AwaitedCall>> {
        let digest = digest(call);
        if !pending.set(CALLS).contains(&digest) {
            return Ok(None);
        }
        let turn = pending.text(TURN)?.to_owned();
        let awaited = pending.set(AWAITED);
        let Ok(resumed_by) = pending.text(RESUMED_BY) else {
            let is_last = awaited.len() == 1;
            return Ok(awaited.contains(&digest).then_some(AwaitedCall { turn, digest, is_last, lost: None }));
        };
        // An earlier attempt of this call may have resumed it, and its answer was lost.
        if resumed_by != lease.lease_token.to_string() && self.is_running(lease, pending, resumed_by).await? {
            return Ok(None);
        }
        // Resumed by a run that is lost: a result may be given again.
        Ok(Some(AwaitedCall { turn, digest, is_last: true, lost: Some(resumed_by.to_owned()) }))
    }

    async fn is_running(&self, lease: &Lease, pending: &Item, resumed_by: &str) -> Result<bool> {
        let now = Timestamp::now();
        if add(pending.millis(RESUMED_AT)?, self.max_turn_duration) <= now {
            return Ok(false);
        }
        let run = self.table.get(Key::run(&lease.key.user, pending.text(RESUMED_REQUEST)?)).await?;
        Ok(run.is_some_and(|run| run.text(LEASE_TOKEN).is_ok_and(|token| token == resumed_by) && is_alive(&run, now)))
    }

    async fn complete_turn(&self, new: &NewResult<'_>, pending: &Item) -> Result<CompletedPendingTurn> {
        let key = &new.lease.key;
        let owner = ValueOwner::new(&key.user, session_owner(&key.session));
        let state = self.table.read_value(&owner, pending);
        let turn = pending.text(TURN)?;
        let prefix = result_prefix(&key.session, turn);
        let (state, stored) = try_join(state, self.table.query_prefix(&key.user, &prefix)).await?;
        let mut results = Vec::with_capacity(stored.len() + 1);
        for item in stored {
            let other = item.text(CALL)?;
            if other != new.call {
                results.push((other.to_owned(), self.table.read_value(&owner, &item).await?));
            }
        }
        results.push((new.call.to_owned(), new.result.to_vec()));
        if results.len() != pending.set(CALLS).len() {
            return Err(StoreError::Malformed("results of calls"));
        }
        Ok(CompletedPendingTurn { state, results, id: new.pending_turn(turn.to_owned()) })
    }
}

impl NewResult<'_> {
    fn put(&self, turn: &str, staged: &StagedValue, expires: AttributeValue) -> Write {
        let key = &self.lease.key;
        let mut attributes = staged.attributes.clone();
        attributes.extend([(CALL, text(self.call)), (REQUEST, text(key.request.as_str())), (EXPIRES_AT, expires)]);
        Write::put(Key::result(&key.user, &key.session, turn, &digest(self.call)), attributes)
    }

    fn pending_turn(&self, turn: String) -> PendingTurnId {
        let (user, session) = (self.lease.key.user.clone(), self.lease.key.session.clone());
        PendingTurnId { user, session, turn, last_call: self.call.to_owned() }
    }
}

struct AwaitedCall {
    turn: String,
    digest: String,
    is_last: bool,
    lost: Option<String>,
}

impl AwaitedCall {
    fn record(&self, lease: &Lease, now: Timestamp) -> Write {
        let update = |expression: &str| {
            let key = Key::pending(&lease.key.user, &lease.key.session);
            Write::update(key, expression).bind(":turn", text(&self.turn))
        };
        let resume = |write: Write| {
            write
                .bind(":by", text(lease.lease_token))
                .bind(":request", text(lease.key.request.as_str()))
                .bind(":now", millis(now))
        };
        let resumed = "resumed_by = :by, resumed_request = :request, resumed_at = :now";
        if let Some(lost) = &self.lost {
            let again = update(&format!("SET {resumed}"));
            return resume(again.condition("turn_id = :turn AND resumed_by = :lost").bind(":lost", text(lost)));
        }
        let is_awaited = "turn_id = :turn AND attribute_not_exists(resumed_by) AND contains(awaited, :call)";
        let (change, comparison) = match self.is_last {
            true => (format!("SET {resumed} DELETE awaited :calls"), "="),
            false => ("DELETE awaited :calls".to_owned(), ">"),
        };
        let record = update(&change)
            .condition(format!("{is_awaited} AND size(awaited) {comparison} :one"))
            .bind(":calls", set([self.digest.clone()]))
            .bind(":call", text(&self.digest))
            .bind(":one", number(1));
        if self.is_last { resume(record) } else { record }
    }
}

/// `None`: the turn was replaced, or is of another session.
pub(super) fn dispose(
    lease: &Lease,
    pending: &Item,
    resumed: &PendingTurnId,
    disposition: PendingTurnDisposition,
) -> Option<Write> {
    let (user, session) = (&lease.key.user, &lease.key.session);
    let is_same = resumed.user == *user && resumed.session == *session && pending.text(TURN).ok()? == resumed.turn;
    if !is_same {
        return None;
    }
    let key = Key::pending(user, session);
    let write = match disposition {
        PendingTurnDisposition::Done => Write::delete(key),
        PendingTurnDisposition::Reopened => {
            let awaited = set([digest(&resumed.last_call)]);
            let reopen = "SET awaited = :awaited REMOVE resumed_by, resumed_request, resumed_at";
            Write::update(key, reopen).bind(":awaited", awaited)
        }
    };
    Some(write.condition("turn_id = :turn").bind(":turn", text(&resumed.turn)))
}

fn digest(call: &str) -> String {
    let hash = Sha256::digest(call.as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
