//! Items of runs and leases: what they say.
//!
//! Whether a run is alive stands in its own item alone. The lease of a conversation and the set of a user's streams only name
//! runs, so that a sign of life is one small write; the runs are looked at where somebody would be refused because of them.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    item::{Item, ItemExt as _, add, bytes, duration_until, expiry, flag, millis, number, text},
    keys::{EXPIRES_AT, Key},
    table::Table,
    write::{Attribute, Write},
};
use crate::{
    conversation::{IDEMPOTENCY_WINDOW, LEASE_DURATION, NewRun, RunKey, StoreError},
    identity::{SessionId, UserId},
};

pub(super) const SESSION: &str = "session_id";
pub(super) const REQUEST: &str = "request_id";
pub(super) const LEASE_TOKEN: &str = "holder";
pub(super) const FINGERPRINT: &str = "fingerprint";
pub(super) const HEAD: &str = "head";
pub(super) const PHASE: &str = "phase";
pub(super) const ALIVE_UNTIL: &str = "alive_until";
pub(super) const CANCELLED: &str = "cancelled";
pub(super) const WATCHED_UNTIL: &str = "watched_until";
pub(super) const FRAMES: &str = "frames";
/// When the run was let in.
pub(super) const STARTED_AT: &str = "started_at";
/// Whether the run has its conversation, which its lease tells others.
pub(super) const HOLDS_SESSION: &str = "holds_session";
/// Until when a lease holds that belongs to no run.
const HELD_UNTIL: &str = "held_until";

pub(super) const RUNNING: &str = "running";
pub(super) const ENDED: &str = "ended";
/// Another run has its conversation.
pub(super) const LOST: &str = "lost";

/// The run is the one that the writer has in hand.
pub(super) const OWNS_LEASE: &str = "holder = :holder AND phase = :running";

/// A run that does not count as known: it was never there or is forgotten, its process died, or it may be repeated.
const MAY_START: &str = "attribute_not_exists(user_id) OR expires_at <= :second OR phase = :lost \
                         OR (phase = :running AND alive_until <= :now) OR (phase = :ended AND repeatable = :yes)";

/// Whether a run's process gives signs of life.
pub(super) fn is_alive(run: &Item, now: Timestamp) -> bool {
    run.text(PHASE).is_ok_and(|phase| phase == RUNNING) && run.millis(ALIVE_UNTIL).is_ok_and(|until| until > now)
}

/// Whether it is this start of a request.
pub(super) fn has_lease_token(item: &Item, holder: &str) -> bool {
    item.text(LEASE_TOKEN).is_ok_and(|known| known == holder)
}

/// Starts a run, if it does not count as known.
pub(super) fn start_run(run: &NewRun, holder: Uuid, now: Timestamp) -> Write {
    let attributes = [
        (SESSION, text(run.key.session.as_str())),
        (FINGERPRINT, bytes(&run.fingerprint)),
        (HEAD, bytes(&run.head)),
        (LEASE_TOKEN, text(holder)),
        (PHASE, text(RUNNING)),
        (STARTED_AT, millis(now)),
        (ALIVE_UNTIL, millis(add(now, LEASE_DURATION))),
        (HOLDS_SESSION, flag(run.takes_session)),
        (EXPIRES_AT, run_expiry(now)),
    ];
    Write::put(Key::run(&run.key.user, run.key.request.as_str()), attributes)
        .condition(MAY_START)
        .bind(":second", number(now.as_second()))
        .bind(":now", millis(now))
        .bind(":running", text(RUNNING))
        .bind(":ended", text(ENDED))
        .bind(":lost", text(LOST))
        .bind(":yes", flag(true))
}

/// A change of the run that the writer has in hand.
pub(super) fn update_run(key: &RunKey, holder: Uuid, expression: &str) -> Write {
    require_lease(Write::update(Key::run(&key.user, key.request.as_str()), expression), holder)
}

/// A sign of life.
pub(super) fn renew_lease(key: &RunKey, holder: Uuid, now: Timestamp) -> Write {
    update_run(key, holder, "SET alive_until = :until, expires_at = :expires")
        .bind(":until", millis(add(now, LEASE_DURATION)))
        .bind(":expires", run_expiry(now))
}

pub(super) fn require_lease(write: Write, holder: Uuid) -> Write {
    write.condition(OWNS_LEASE).bind(":holder", text(holder)).bind(":running", text(RUNNING))
}

/// When a run is forgotten of which nothing more is heard.
pub(super) fn run_expiry(now: Timestamp) -> AttributeValue {
    expiry(now, LEASE_DURATION + IDEMPOTENCY_WINDOW)
}

/// The dead run that has a conversation, and will have it no more.
#[derive(Debug, Clone)]
pub(super) struct ExpiredLease {
    holder: String,
    /// Its request, if it is not the one that takes the conversation, and has not been noticed to be dead.
    request: Option<String>,
}

/// Takes a conversation, from nobody or from a dead run.
pub(super) fn take_lease(key: &RunKey, holder: Uuid, dead: Option<&ExpiredLease>, now: Timestamp) -> Vec<Write> {
    // It expires later than any run ends, so that it is not gone before it is given up.
    let held = [
        (LEASE_TOKEN, text(holder)),
        (REQUEST, text(key.request.as_str())),
        (EXPIRES_AT, expiry(now, IDEMPOTENCY_WINDOW)),
    ];
    let lease = Write::put(Key::lease(&key.user, &key.session), held);
    let from = match dead {
        None => "attribute_not_exists(user_id) OR holder = :holder",
        Some(_) => "attribute_not_exists(user_id) OR holder = :holder OR holder = :dead",
    };
    let mut lease = lease.condition(from).bind(":holder", text(holder));
    let Some(dead) = dead else { return vec![lease] };
    lease = lease.bind(":dead", text(&dead.holder));
    let Some(request) = &dead.request else { return vec![lease] };
    let lost = Write::update(Key::run(&key.user, request), "SET phase = :lost")
        .condition("holder = :dead AND phase = :running AND alive_until <= :now")
        .bind(":dead", text(&dead.holder))
        .bind(":running", text(RUNNING))
        .bind(":lost", text(LOST))
        .bind(":now", millis(now));
    vec![lease, lost]
}

/// What is in a lease that belongs to no run.
pub(super) fn deletion_lease(holder: Uuid, now: Timestamp, held: Duration) -> [Attribute; 3] {
    [
        (LEASE_TOKEN, text(holder)),
        (HELD_UNTIL, millis(add(now, held))),
        (EXPIRES_AT, expiry(now, held + IDEMPOTENCY_WINDOW)),
    ]
}

/// Who has a conversation.
#[derive(Debug)]
pub(super) enum LeaseState {
    /// A run that is alive until then.
    Active(Duration),
    /// One that is not.
    Expired(ExpiredLease),
}

impl Table {
    /// How a conversation is held that could not be taken for `request`.
    pub(super) async fn lease_state(
        &self,
        user: &UserId,
        request: &str,
        lease: &Item,
    ) -> Result<LeaseState, StoreError> {
        let holder = lease.text(LEASE_TOKEN)?;
        let Ok(other) = lease.text(REQUEST) else {
            let (held, now) = (lease.millis(HELD_UNTIL)?, Timestamp::now());
            return Ok(match held > now {
                true => LeaseState::Active(duration_until(now, held)),
                false => LeaseState::Expired(ExpiredLease { holder: holder.to_owned(), request: None }),
            });
        };
        let run = self.get(Key::run(user, other)).await?.filter(|run| has_lease_token(run, holder));
        let now = Timestamp::now();
        Ok(match run {
            Some(run) if is_alive(&run, now) => LeaseState::Active(duration_until(now, run.millis(ALIVE_UNTIL)?)),
            Some(run) if other != request && run.text(PHASE)? == RUNNING => {
                LeaseState::Expired(ExpiredLease { holder: holder.to_owned(), request: Some(other.to_owned()) })
            }
            _ => LeaseState::Expired(ExpiredLease { holder: holder.to_owned(), request: None }),
        })
    }

    /// Those of a user's runs that are alive, by their conversations' leases.
    pub(super) async fn running_sessions(&self, user: &UserId) -> Result<Vec<(SessionId, String)>, StoreError> {
        let leases = self.query_prefix(user, "lease/").await?;
        self.running_sessions_of(user, leases).await
    }

    /// Which conversations a run has that is alive, and its request.
    pub(super) async fn running_sessions_of(
        &self,
        user: &UserId,
        leases: Vec<Item>,
    ) -> Result<Vec<(SessionId, String)>, StoreError> {
        let held: Vec<_> = leases.iter().filter_map(|lease| Some((lease, lease.text(REQUEST).ok()?))).collect();
        let keys = held.iter().map(|(_, request)| Key::run(user, request)).collect();
        let runs = self.batch_get(keys).await?;
        let now = Timestamp::now();
        let alive = held.into_iter().filter_map(|(lease, request)| {
            let run = runs.get(&Key::run(user, request).item)?;
            let is_its_holder = has_lease_token(run, lease.text(LEASE_TOKEN).ok()?);
            let session = SessionId::parse(SESSION, run.text(SESSION).ok()?).ok()?;
            (is_its_holder && is_alive(run, now)).then(|| (session, request.to_owned()))
        });
        Ok(alive.collect())
    }
}
