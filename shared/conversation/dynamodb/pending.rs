//! Turns that wait for the results of tools that the client runs.
//!
//! A turn's item names its calls by digests, because a call's id is the provider's and may be anything. What is long, the
//! turn's state and the results, is in items of its own. All of it has an expiry and is left to it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::try_join;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    DAY, DynamoConversations,
    item::{Item, ItemExt as _, add, expiry, flag, millis, number, set, text},
    keys::{EXPIRES_AT, ITEM_ID, Key, result_prefix, session_owner},
    lease::{
        ExpiredLease, LeaseState, PHASE, REQUEST, RUNNING, has_lease_token, is_alive, renew_lease, require_lease,
        take_lease,
    },
    parts::StagedValue,
    write::{FailedConditions, TransactOutcome, Write},
};
use crate::conversation::{
    CompletedPendingTurn, Lease, PendingTurnDisposition, PendingTurnId, StoreError, ToolResultOutcome,
};

/// How long results are waited for. A client may have to ask a person first.
const KEPT: Duration = Duration::from_hours(24);
/// Most turns of one user that wait; the oldest are given up.
const MOST: usize = 20;
/// How often a result begins anew, because something changed under it.
const TRIES: u32 = 8;

const TURN: &str = "turn_id";
/// Digests of all calls, and of those whose results are not there.
const CALLS: &str = "calls";
const AWAITED: &str = "awaited";
const KEPT_AT: &str = "kept_at";
/// Who goes on with it, and since when.
const RESUMED_BY: &str = "resumed_by";
const RESUMED_REQUEST: &str = "resumed_request";
const RESUMED_AT: &str = "resumed_at";
/// The id of the call, beside its result.
const CALL: &str = "call_id";

/// Where the writes of a result are in their transaction. The lease, and the run that lost it, come last.
const RUN: usize = 0;
const WAITING: usize = 1;
const TAKEN: usize = 3;
const LOST: usize = 4;

impl DynamoConversations {
    pub(super) async fn keep_pending(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError> {
        let Lease { key, lease_token: holder } = lease;
        let now = Timestamp::now();
        let owner = session_owner(&key.session);
        let expires = expiry(now, KEPT + DAY);
        let state = self.table.stage_in_parts(&key.user, &owner, Uuid::now_v7(), state, &expires);
        let (state, others) = try_join(state, self.table.query_prefix(&key.user, "pending/")).await?;
        let calls: Vec<_> = calls.iter().map(|call| digest(call)).collect();
        let mut attributes = state.attributes.clone();
        attributes.extend([
            (TURN, text(Uuid::now_v7())),
            (CALLS, set(calls.clone())),
            (AWAITED, set(calls)),
            (KEPT_AT, millis(now)),
            (EXPIRES_AT, expiry(now, KEPT)),
        ]);
        let place = Key::pending(&key.user, &key.session);
        let run = require_lease(Write::check(Key::run(&key.user, key.request.as_str())), *holder);
        if let TransactOutcome::Refused(_) =
            self.table.transact(vec![run, Write::put(place.clone(), attributes)]).await?
        {
            if let Some(divided) = &state.parts {
                self.table.delete_parts(divided).await;
            }
            return Err(StoreError::LeaseLost);
        }
        self.give_up(lease, others, &place).await
    }

    /// Gives the oldest turns up, so that few enough are left beside the new one.
    async fn give_up(&self, lease: &Lease, mut others: Vec<Item>, new: &Key) -> Result<(), StoreError> {
        others.retain(|other| other.text(ITEM_ID).is_ok_and(|item| item != new.item));
        others.sort_by_key(|other| std::cmp::Reverse(other.number::<i64>(KEPT_AT).unwrap_or_default()));
        for old in others.iter().skip(MOST - 1) {
            let gone = Write::delete(Key::new(&lease.key.user, old.text(ITEM_ID)?));
            let gone = gone.condition("turn_id = :turn").bind(":turn", text(old.text(TURN)?));
            self.table.write(gone).await?;
        }
        Ok(())
    }

    pub(super) async fn accept_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError> {
        let key = &lease.key;
        let mut dead: Option<ExpiredLease> = None;
        for _ in 0..TRIES {
            let Some(waiting) = self.table.get(Key::pending(&key.user, &key.session)).await? else {
                return self.fenced(lease, ToolResultOutcome::UnknownCall).await;
            };
            let Some(turn) = self.waiting(lease, &waiting, call).await? else {
                let refused = match waiting.set(CALLS).contains(&digest(call)) {
                    true if self.is_given_again(lease, &waiting, call).await? => ToolResultOutcome::Pending,
                    true => ToolResultOutcome::Duplicate,
                    false => ToolResultOutcome::UnknownCall,
                };
                return self.fenced(lease, refused).await;
            };
            let goes_on = if turn.is_last { Some(self.whole(lease, &waiting, call, result).await?) } else { None };
            let now = Timestamp::now();
            let owner = session_owner(&key.session);
            let expires = expiry(now, KEPT + DAY);
            let given = self.table.stage_value(&key.user, &owner, Uuid::now_v7(), result, &expires).await?;
            let sign = renew_lease(key, lease.lease_token, now);
            let sign = match turn.is_last {
                true => sign.append(", holds_session = :yes").bind(":yes", flag(true)),
                false => sign,
            };
            let mut writes =
                vec![sign, turn.take_result(lease, now), put_result(lease, &turn.id, call, &given, expires)];
            if turn.is_last {
                writes.extend(take_lease(key, lease.lease_token, dead.as_ref(), now));
            }
            let refusals = match self.table.transact(writes).await? {
                TransactOutcome::Refused(refusals) => refusals,
                TransactOutcome::Done => {
                    let ticket = || PendingTurnId {
                        user: key.user.clone(),
                        session: key.session.clone(),
                        turn: turn.id.clone(),
                        last_call: call.to_owned(),
                    };
                    return Ok(match goes_on {
                        Some((state, results)) => {
                            ToolResultOutcome::Complete(CompletedPendingTurn { state, results, id: ticket() })
                        }
                        None => ToolResultOutcome::Pending,
                    });
                }
            };
            if let Some(divided) = &given.parts {
                self.table.delete_parts(divided).await;
            }
            match self.refused(lease, &refusals).await? {
                Some(LeaseState::Active(retry_after)) => return Ok(ToolResultOutcome::Busy { retry_after }),
                Some(LeaseState::Expired(found)) => dead = Some(found),
                None => dead = None,
            }
        }
        Err(StoreError::Timeout)
    }

    /// Whether the same request gave the result that is there, and nobody heard that it had succeeded.
    async fn is_given_again(&self, lease: &Lease, waiting: &Item, call: &str) -> Result<bool, StoreError> {
        let key = &lease.key;
        let given = Key::result(&key.user, &key.session, waiting.text(TURN)?, &digest(call));
        let given = self.table.get(given).await?;
        let is_its =
            given.is_some_and(|given| given.text(REQUEST).is_ok_and(|request| request == key.request.as_str()));
        Ok(is_its && !waiting.contains_key(RESUMED_BY))
    }

    /// Who is in the way of a result; `None` = something changed, so that it is to be looked at anew.
    async fn refused(&self, lease: &Lease, refusals: &FailedConditions) -> Result<Option<LeaseState>, StoreError> {
        if refusals.get(RUN).is_some() {
            return Err(StoreError::LeaseLost);
        }
        if refusals.get(WAITING).is_some() || refusals.get(LOST).is_some() {
            return Ok(None);
        }
        let Some(taken) = refusals.get(TAKEN) else { return Ok(None) };
        self.table.lease_state(&lease.key.user, lease.key.request.as_str(), taken).await.map(Some)
    }

    /// An answer that changes nothing, for a run that still has its lease.
    async fn fenced(&self, lease: &Lease, accepted: ToolResultOutcome) -> Result<ToolResultOutcome, StoreError> {
        let run = self.table.get(Key::run(&lease.key.user, lease.key.request.as_str())).await?;
        let is_mine = run.is_some_and(|run| {
            has_lease_token(&run, &lease.lease_token.to_string()) && run.text(PHASE).is_ok_and(|phase| phase == RUNNING)
        });
        if is_mine { Ok(accepted) } else { Err(StoreError::LeaseLost) }
    }

    /// The turn that waits for the result of a call; `None` = it does not.
    async fn waiting(&self, lease: &Lease, waiting: &Item, call: &str) -> Result<Option<Waiting>, StoreError> {
        let call = digest(call);
        if !waiting.set(CALLS).contains(&call) {
            return Ok(None);
        }
        let id = waiting.text(TURN)?.to_owned();
        let awaited = waiting.set(AWAITED);
        let Ok(resumed_by) = waiting.text(RESUMED_BY) else {
            let is_last = awaited.len() == 1;
            return Ok(awaited.contains(&call).then_some(Waiting { id, call, is_last, lost: None }));
        };
        // An earlier try of this one may have gone on with it, and its answer was lost.
        if resumed_by != lease.lease_token.to_string() && self.goes_on(lease, waiting, resumed_by).await? {
            return Ok(None);
        }
        // A turn that went on and was lost with its process: whoever waits for it may give a result again.
        Ok(Some(Waiting { id, call, is_last: true, lost: Some(resumed_by.to_owned()) }))
    }

    /// Whether the run that went on with a turn is still at it.
    async fn goes_on(&self, lease: &Lease, waiting: &Item, resumed_by: &str) -> Result<bool, StoreError> {
        let now = Timestamp::now();
        if add(waiting.millis(RESUMED_AT)?, self.max_turn_duration) <= now {
            return Ok(false);
        }
        let run = self.table.get(Key::run(&lease.key.user, waiting.text(RESUMED_REQUEST)?)).await?;
        Ok(run.is_some_and(|run| has_lease_token(&run, resumed_by) && is_alive(&run, now)))
    }

    /// A turn as it was kept, and all its results, of which the last is given just now.
    async fn whole(
        &self,
        lease: &Lease,
        waiting: &Item,
        call: &str,
        result: &[u8],
    ) -> Result<(Vec<u8>, Vec<(String, Vec<u8>)>), StoreError> {
        let key = &lease.key;
        let owner = session_owner(&key.session);
        let state = self.table.read_value(&key.user, &owner, waiting);
        let given = result_prefix(&key.session, waiting.text(TURN)?);
        let (state, given) = try_join(state, self.table.query_prefix(&key.user, &given)).await?;
        let mut results = Vec::with_capacity(given.len() + 1);
        for item in given {
            let other = item.text(CALL)?;
            if other != call {
                results.push((other.to_owned(), self.table.read_value(&key.user, &owner, &item).await?));
            }
        }
        results.push((call.to_owned(), result.to_vec()));
        if results.len() != waiting.set(CALLS).len() {
            return Err(StoreError::Malformed("results of calls"));
        }
        Ok((state, results))
    }
}

/// A turn that waits for the result of a call.
struct Waiting {
    id: String,
    /// The call's digest.
    call: String,
    is_last: bool,
    /// Who went on with it and is not heard of any more.
    lost: Option<String>,
}

impl Waiting {
    fn take_result(&self, lease: &Lease, now: Timestamp) -> Write {
        let write = |expression: &str| {
            let place = Key::pending(&lease.key.user, &lease.key.session);
            Write::update(place, expression).bind(":turn", text(&self.id))
        };
        let resume = |write: Write| {
            write
                .bind(":by", text(lease.lease_token))
                .bind(":request", text(lease.key.request.as_str()))
                .bind(":now", millis(now))
        };
        let resumed = "resumed_by = :by, resumed_request = :request, resumed_at = :now";
        if let Some(lost) = &self.lost {
            let again = write(&format!("SET {resumed}"));
            return resume(again.condition("turn_id = :turn AND resumed_by = :lost").bind(":lost", text(lost)));
        }
        let awaits = "turn_id = :turn AND attribute_not_exists(resumed_by) AND contains(awaited, :call)";
        let (change, how_many) = match self.is_last {
            true => (format!("SET {resumed} DELETE awaited :calls"), "="),
            false => ("DELETE awaited :calls".to_owned(), ">"),
        };
        let taken = write(&change)
            .condition(format!("{awaits} AND size(awaited) {how_many} :one"))
            .bind(":calls", set([self.call.clone()]))
            .bind(":call", text(&self.call))
            .bind(":one", number(1));
        if self.is_last { resume(taken) } else { taken }
    }
}

fn put_result(lease: &Lease, turn: &str, call: &str, given: &StagedValue, expires: AttributeValue) -> Write {
    let mut attributes = given.attributes.clone();
    attributes.extend([(CALL, text(call)), (REQUEST, text(lease.key.request.as_str())), (EXPIRES_AT, expires)]);
    Write::put(Key::result(&lease.key.user, &lease.key.session, turn, &digest(call)), attributes)
}

/// What becomes of a turn that went on, if it is still the one that waits.
pub(super) fn hand_back(
    key: Key,
    pending: &Item,
    ticket: &PendingTurnId,
    after: PendingTurnDisposition,
) -> Option<Write> {
    if pending.text(TURN).ok()? != ticket.turn {
        return None;
    }
    let write = match after {
        PendingTurnDisposition::Done => Write::delete(key),
        PendingTurnDisposition::Reopened => {
            let awaited = set([digest(&ticket.last_call)]);
            let reopen = "SET awaited = :awaited REMOVE resumed_by, resumed_request, resumed_at";
            Write::update(key, reopen).bind(":awaited", awaited)
        }
    };
    Some(write.condition("turn_id = :turn").bind(":turn", text(&ticket.turn)))
}

fn digest(call: &str) -> String {
    let hash = Sha256::digest(call.as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
