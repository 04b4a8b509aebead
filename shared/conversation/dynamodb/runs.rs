//! Items of runs and leases: what they say.
//!
//! Whether a run is alive stands in its own item alone. The lease of a conversation and the set of a user's streams only name
//! runs, so that a sign of life is one small write; what they name is looked at where somebody would be refused because of it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    item::{Item, Read as _, bytes, expiry, flag, later, moment, number, text, until},
    keys::{EXPIRES, Key},
    table::Table,
    write::{Attribute, Write},
};
use crate::{
    conversation::{LEASE, NewRun, REMEMBERED, RunKey, StoreError},
    identity::{SessionId, UserId},
};

pub(super) const SESSION: &str = "session_id";
pub(super) const REQUEST: &str = "request_id";
pub(super) const HOLDER: &str = "holder";
pub(super) const FINGERPRINT: &str = "fingerprint";
pub(super) const HEAD: &str = "head";
pub(super) const PHASE: &str = "phase";
pub(super) const ALIVE_UNTIL: &str = "alive_until";
pub(super) const CANCELLED: &str = "cancelled";
pub(super) const WATCHED_UNTIL: &str = "watched_until";
pub(super) const FRAMES: &str = "frames";
/// Until then a lease holds without a look at its run.
pub(super) const HELD_UNTIL: &str = "held_until";

pub(super) const RUNNING: &str = "running";
pub(super) const ENDED: &str = "ended";
/// Another run has its conversation.
pub(super) const LOST: &str = "lost";

/// The run is the one that the writer has in hand.
pub(super) const IS_MINE: &str = "holder = :holder AND phase = :running";

/// A run that does not count as known: it was never there or is forgotten, its process died, or it may be repeated.
const MAY_START: &str = "attribute_not_exists(user_id) OR expires_at <= :second OR phase = :lost \
                         OR (phase = :running AND alive_until <= :now) OR (phase = :ended AND repeatable = :yes)";

/// Whether a run's process gives signs of life.
pub(super) fn is_alive(run: &Item, now: Timestamp) -> bool {
    run.text(PHASE).is_ok_and(|phase| phase == RUNNING) && run.moment(ALIVE_UNTIL).is_ok_and(|until| until > now)
}

/// Whether it is this start of a request.
pub(super) fn is_held_by(item: &Item, holder: &str) -> bool {
    item.text(HOLDER).is_ok_and(|known| known == holder)
}

/// Starts a run, if it does not count as known.
pub(super) fn start(run: &NewRun, holder: Uuid, now: Timestamp) -> Write {
    let attributes = [
        (SESSION, text(run.key.session.as_str())),
        (FINGERPRINT, bytes(&run.fingerprint)),
        (HEAD, bytes(&run.head)),
        (HOLDER, text(holder)),
        (PHASE, text(RUNNING)),
        (ALIVE_UNTIL, moment(later(now, LEASE))),
        (EXPIRES, forgotten(now)),
    ];
    Write::put(Key::run(&run.key.user, run.key.request.as_str()), attributes)
        .when(MAY_START)
        .value(":second", number(now.as_second()))
        .value(":now", moment(now))
        .value(":running", text(RUNNING))
        .value(":ended", text(ENDED))
        .value(":lost", text(LOST))
        .value(":yes", flag(true))
}

/// A change of the run that the writer has in hand.
pub(super) fn change(key: &RunKey, holder: Uuid, expression: &str) -> Write {
    of_mine(Write::update(Key::run(&key.user, key.request.as_str()), expression), holder)
}

/// A sign of life.
pub(super) fn renew(key: &RunKey, holder: Uuid, now: Timestamp) -> Write {
    change(key, holder, "SET alive_until = :until, expires_at = :expires")
        .value(":until", moment(later(now, LEASE)))
        .value(":expires", forgotten(now))
}

pub(super) fn of_mine(write: Write, holder: Uuid) -> Write {
    write.when(IS_MINE).value(":holder", text(holder)).value(":running", text(RUNNING))
}

/// When a run is forgotten of which nothing more is heard.
pub(super) fn forgotten(now: Timestamp) -> AttributeValue {
    expiry(now, LEASE + REMEMBERED)
}

/// The dead run that has a conversation, and will have it no more.
#[derive(Debug, Clone)]
pub(super) struct Dead {
    holder: String,
    /// Its request, if it is not the one that takes the conversation, and has not been noticed to be dead.
    request: Option<String>,
}

/// Takes a conversation, from nobody or from a dead run.
pub(super) fn take(key: &RunKey, holder: Uuid, dead: Option<&Dead>, now: Timestamp) -> Vec<Write> {
    let mut held = lease(holder, now, LEASE);
    held.push((REQUEST, text(key.request.as_str())));
    let lease = Write::put(Key::lease(&key.user, &key.session), held);
    let from = match dead {
        None => "attribute_not_exists(user_id) OR holder = :holder",
        Some(_) => "attribute_not_exists(user_id) OR holder = :holder OR holder = :dead",
    };
    let mut lease = lease.when(from).value(":holder", text(holder));
    let Some(dead) = dead else { return vec![lease] };
    lease = lease.value(":dead", text(&dead.holder));
    let Some(request) = &dead.request else { return vec![lease] };
    let lost = Write::update(Key::run(&key.user, request), "SET phase = :lost")
        .when("holder = :dead AND phase = :running AND alive_until <= :now")
        .value(":dead", text(&dead.holder))
        .value(":running", text(RUNNING))
        .value(":lost", text(LOST))
        .value(":now", moment(now));
    vec![lease, lost]
}

/// What is in a lease beside the request that has it. One without a request is that of nobody who runs.
pub(super) fn lease(holder: Uuid, now: Timestamp, held: Duration) -> Vec<Attribute> {
    vec![
        (HOLDER, text(holder)),
        (HELD_UNTIL, moment(later(now, held))),
        // Longer than any run, so that it is not gone before it is given up.
        (EXPIRES, expiry(now, REMEMBERED)),
    ]
}

/// Who has a conversation.
#[derive(Debug)]
pub(super) enum Holding {
    /// A run that is alive until then.
    Alive(Duration),
    /// One that is not.
    Dead(Dead),
}

impl Table {
    /// How a conversation is held that could not be taken for `request`.
    pub(super) async fn holding(&self, user: &UserId, request: &str, lease: &Item) -> Result<Holding, StoreError> {
        let now = Timestamp::now();
        let held = lease.moment(HELD_UNTIL)?;
        if held > now {
            return Ok(Holding::Alive(until(now, held)));
        }
        let holder = lease.text(HOLDER)?;
        let Ok(other) = lease.text(REQUEST) else {
            return Ok(Holding::Dead(Dead { holder: holder.to_owned(), request: None }));
        };
        let run = self.get(Key::run(user, other)).await?.filter(|run| is_held_by(run, holder));
        let now = Timestamp::now();
        Ok(match run {
            Some(run) if is_alive(&run, now) => Holding::Alive(until(now, run.moment(ALIVE_UNTIL)?)),
            Some(run) if other != request && run.text(PHASE)? == RUNNING => {
                Holding::Dead(Dead { holder: holder.to_owned(), request: Some(other.to_owned()) })
            }
            _ => Holding::Dead(Dead { holder: holder.to_owned(), request: None }),
        })
    }

    /// Those of a user's runs that are alive, by their conversations' leases.
    pub(super) async fn running(&self, user: &UserId) -> Result<Vec<(SessionId, String)>, StoreError> {
        let leases = self.all(user, "lease/").await?;
        self.running_of(user, leases).await
    }

    /// Which conversations a run has that is alive, and its request.
    pub(super) async fn running_of(
        &self,
        user: &UserId,
        leases: Vec<Item>,
    ) -> Result<Vec<(SessionId, String)>, StoreError> {
        let held: Vec<_> = leases.iter().filter_map(|lease| Some((lease, lease.text(REQUEST).ok()?))).collect();
        let keys = held.iter().map(|(_, request)| Key::run(user, request)).collect();
        let runs = self.get_many(keys).await?;
        let now = Timestamp::now();
        let alive = held.into_iter().filter_map(|(lease, request)| {
            let run = runs.get(&Key::run(user, request).item)?;
            let is_its_holder = is_held_by(run, lease.text(HOLDER).ok()?);
            let session = SessionId::parse(SESSION, run.text(SESSION).ok()?).ok()?;
            (is_its_holder && is_alive(run, now)).then(|| (session, request.to_owned()))
        });
        Ok(alive.collect())
    }
}
