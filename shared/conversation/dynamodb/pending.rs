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
    item::{Item, Read as _, expiry, flag, later, moment, number, set, text},
    keys::{EXPIRES, ITEM, Key, results_of, session_owner},
    parts::Prepared,
    runs::{Dead, Holding, PHASE, REQUEST, RUNNING, is_alive, is_held_by, of_mine, renew, take},
    write::{Refusals, Transacted, Write},
};
use crate::conversation::{Accepted, AfterResumption, Lease, StoreError, Ticket};

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
        let Lease { key, holder } = lease;
        let now = Timestamp::now();
        let owner = session_owner(&key.session);
        let expires = expiry(now, KEPT + DAY);
        let state = self.table.prepare_apart(&key.user, &owner, Uuid::now_v7(), state, &expires);
        let (state, others) = try_join(state, self.table.all(&key.user, "pending/")).await?;
        let calls: Vec<_> = calls.iter().map(|call| digest(call)).collect();
        let mut attributes = state.attributes.clone();
        attributes.extend([
            (TURN, text(Uuid::now_v7())),
            (CALLS, set(calls.clone())),
            (AWAITED, set(calls)),
            (KEPT_AT, moment(now)),
            (EXPIRES, expiry(now, KEPT)),
        ]);
        let place = Key::pending(&key.user, &key.session);
        let run = of_mine(Write::check(Key::run(&key.user, key.request.as_str())), *holder);
        if let Transacted::Refused(_) = self.table.transact(vec![run, Write::put(place.clone(), attributes)]).await? {
            if let Some(divided) = &state.divided {
                self.table.discard(divided).await;
            }
            return Err(StoreError::LeaseLost);
        }
        self.give_up(lease, others, &place).await
    }

    /// Gives the oldest turns up, so that few enough are left beside the new one.
    async fn give_up(&self, lease: &Lease, mut others: Vec<Item>, new: &Key) -> Result<(), StoreError> {
        others.retain(|other| other.text(ITEM).is_ok_and(|item| item != new.item));
        others.sort_by_key(|other| std::cmp::Reverse(other.number::<i64>(KEPT_AT).unwrap_or_default()));
        for old in others.iter().skip(MOST - 1) {
            let gone = Write::delete(Key::new(&lease.key.user, old.text(ITEM)?));
            let gone = gone.when("turn_id = :turn").value(":turn", text(old.text(TURN)?));
            self.table.apply(gone).await?;
        }
        Ok(())
    }

    pub(super) async fn accept_result(&self, lease: &Lease, call: &str, result: &[u8]) -> Result<Accepted, StoreError> {
        let key = &lease.key;
        let mut dead: Option<Dead> = None;
        for _ in 0..TRIES {
            let Some(waiting) = self.table.get(Key::pending(&key.user, &key.session)).await? else {
                return self.fenced(lease, Accepted::Unknown).await;
            };
            let Some(turn) = self.waiting(lease, &waiting, call).await? else {
                let refused = match waiting.set(CALLS).contains(&digest(call)) {
                    true if self.is_given_again(lease, &waiting, call).await? => Accepted::Waiting,
                    true => Accepted::Duplicate,
                    false => Accepted::Unknown,
                };
                return self.fenced(lease, refused).await;
            };
            let goes_on = if turn.is_last { Some(self.whole(lease, &waiting, call, result).await?) } else { None };
            let now = Timestamp::now();
            let owner = session_owner(&key.session);
            let expires = expiry(now, KEPT + DAY);
            let given = self.table.prepare(&key.user, &owner, Uuid::now_v7(), result, &expires).await?;
            let sign = renew(key, lease.holder, now);
            let sign = match turn.is_last {
                true => sign.also(", holds_session = :yes").value(":yes", flag(true)),
                false => sign,
            };
            let mut writes =
                vec![sign, turn.take_result(lease, now), put_result(lease, &turn.id, call, &given, expires)];
            if turn.is_last {
                writes.extend(take(key, lease.holder, dead.as_ref(), now));
            }
            let refusals = match self.table.transact(writes).await? {
                Transacted::Refused(refusals) => refusals,
                Transacted::Done => {
                    let ticket = || Ticket {
                        user: key.user.clone(),
                        session: key.session.clone(),
                        turn: turn.id.clone(),
                        last_call: call.to_owned(),
                    };
                    return Ok(match goes_on {
                        Some((state, results)) => Accepted::Complete { state, results, ticket: ticket() },
                        None => Accepted::Waiting,
                    });
                }
            };
            if let Some(divided) = &given.divided {
                self.table.discard(divided).await;
            }
            match self.refused(lease, &refusals).await? {
                Some(Holding::Alive(retry_after)) => return Ok(Accepted::Busy { retry_after }),
                Some(Holding::Dead(found)) => dead = Some(found),
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
    async fn refused(&self, lease: &Lease, refusals: &Refusals) -> Result<Option<Holding>, StoreError> {
        if refusals.of(RUN).is_some() {
            return Err(StoreError::LeaseLost);
        }
        if refusals.of(WAITING).is_some() || refusals.of(LOST).is_some() {
            return Ok(None);
        }
        let Some(taken) = refusals.of(TAKEN) else { return Ok(None) };
        self.table.holding(&lease.key.user, lease.key.request.as_str(), taken).await.map(Some)
    }

    /// An answer that changes nothing, for a run that still has its lease.
    async fn fenced(&self, lease: &Lease, accepted: Accepted) -> Result<Accepted, StoreError> {
        let run = self.table.get(Key::run(&lease.key.user, lease.key.request.as_str())).await?;
        let is_mine = run.is_some_and(|run| {
            is_held_by(&run, &lease.holder.to_string()) && run.text(PHASE).is_ok_and(|phase| phase == RUNNING)
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
        if resumed_by != lease.holder.to_string() && self.goes_on(lease, waiting, resumed_by).await? {
            return Ok(None);
        }
        // A turn that went on and was lost with its process: whoever waits for it may give a result again.
        Ok(Some(Waiting { id, call, is_last: true, lost: Some(resumed_by.to_owned()) }))
    }

    /// Whether the run that went on with a turn is still at it.
    async fn goes_on(&self, lease: &Lease, waiting: &Item, resumed_by: &str) -> Result<bool, StoreError> {
        let now = Timestamp::now();
        if later(waiting.moment(RESUMED_AT)?, self.longest_turn) <= now {
            return Ok(false);
        }
        let run = self.table.get(Key::run(&lease.key.user, waiting.text(RESUMED_REQUEST)?)).await?;
        Ok(run.is_some_and(|run| is_held_by(&run, resumed_by) && is_alive(&run, now)))
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
        let state = self.table.value(&key.user, &owner, waiting);
        let given = results_of(&key.session, waiting.text(TURN)?);
        let (state, given) = try_join(state, self.table.all(&key.user, &given)).await?;
        let mut results = Vec::with_capacity(given.len() + 1);
        for item in given {
            let other = item.text(CALL)?;
            if other != call {
                results.push((other.to_owned(), self.table.value(&key.user, &owner, &item).await?));
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
            Write::update(place, expression).value(":turn", text(&self.id))
        };
        let resume = |write: Write| {
            write
                .value(":by", text(lease.holder))
                .value(":request", text(lease.key.request.as_str()))
                .value(":now", moment(now))
        };
        let resumed = "resumed_by = :by, resumed_request = :request, resumed_at = :now";
        if let Some(lost) = &self.lost {
            let again = write(&format!("SET {resumed}"));
            return resume(again.when("turn_id = :turn AND resumed_by = :lost").value(":lost", text(lost)));
        }
        let awaits = "turn_id = :turn AND attribute_not_exists(resumed_by) AND contains(awaited, :call)";
        let (change, how_many) = match self.is_last {
            true => (format!("SET {resumed} DELETE awaited :calls"), "="),
            false => ("DELETE awaited :calls".to_owned(), ">"),
        };
        let taken = write(&change)
            .when(format!("{awaits} AND size(awaited) {how_many} :one"))
            .value(":calls", set([self.call.clone()]))
            .value(":call", text(&self.call))
            .value(":one", number(1));
        if self.is_last { resume(taken) } else { taken }
    }
}

fn put_result(lease: &Lease, turn: &str, call: &str, given: &Prepared, expires: AttributeValue) -> Write {
    let mut attributes = given.attributes.clone();
    attributes.extend([(CALL, text(call)), (REQUEST, text(lease.key.request.as_str())), (EXPIRES, expires)]);
    Write::put(Key::result(&lease.key.user, &lease.key.session, turn, &digest(call)), attributes)
}

/// What becomes of a turn that went on, if it is still the one that waits.
pub(super) fn hand_back(key: Key, pending: &Item, ticket: &Ticket, after: AfterResumption) -> Option<Write> {
    if pending.text(TURN).ok()? != ticket.turn {
        return None;
    }
    let write = match after {
        AfterResumption::Over => Write::delete(key),
        AfterResumption::Reopened => {
            let awaited = set([digest(&ticket.last_call)]);
            let reopen = "SET awaited = :awaited REMOVE resumed_by, resumed_request, resumed_at";
            Write::update(key, reopen).value(":awaited", awaited)
        }
    };
    Some(write.when("turn_id = :turn").value(":turn", text(&ticket.turn)))
}

fn digest(call: &str) -> String {
    let hash = Sha256::digest(call.as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
