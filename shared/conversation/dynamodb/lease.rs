//! Only the item of a run says whether it is alive. Session leases and the set of a user's streams name runs, so that a
//! heartbeat is one small write; the runs are read only before something is refused because of them.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    attributes::{
        ALIVE_UNTIL, ENDED, FINGERPRINT, HEAD, HELD_UNTIL, HOLDS_SESSION, LEASE_TOKEN, LOST, PHASE, REQUEST, RUNNING,
        SESSION, STARTED_AT,
    },
    item::{Item, ItemExt as _, add, bytes, duration_until, expiry, flag, millis, number, text},
    keys::{EXPIRES_AT, Key},
    table::Table,
    write::{Attribute, Write},
};
use crate::{
    conversation::{
        error::Result,
        run::{IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, NewRun},
    },
    identity::{SessionId, UserId},
};

/// The fence: every write of a run checks it.
const HAS_LEASE: &str = "holder = :holder AND phase = :running";

/// Absent, expired, lost and repeatable runs do not count as known.
const MAY_START: &str = "attribute_not_exists(user_id) OR expires_at <= :second OR phase = :lost \
                         OR (phase = :running AND alive_until <= :now) OR (phase = :ended AND repeatable = :yes)";

pub(super) fn is_alive(run: &Item, now: Timestamp) -> bool {
    run.text(PHASE).is_ok_and(|phase| phase == RUNNING) && run.millis(ALIVE_UNTIL).is_ok_and(|until| until > now)
}

pub(super) fn has_lease_token(item: &Item, lease_token: Uuid) -> bool {
    item.text(LEASE_TOKEN).is_ok_and(|stored| stored == lease_token.to_string())
}

pub(super) fn start_run(run: &NewRun, lease_token: Uuid, now: Timestamp) -> Write {
    let attributes = [
        (SESSION, text(run.key.session.as_str())),
        (FINGERPRINT, bytes(&run.fingerprint)),
        (HEAD, bytes(&run.head)),
        (LEASE_TOKEN, text(lease_token)),
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

pub(super) fn update_run(lease: &Lease, expression: &str) -> Write {
    require_lease(Write::update(Key::run(&lease.key.user, lease.key.request.as_str()), expression), lease)
}

pub(super) fn renew_lease(lease: &Lease, now: Timestamp) -> Write {
    update_run(lease, "SET alive_until = :until, expires_at = :expires")
        .bind(":until", millis(add(now, LEASE_DURATION)))
        .bind(":expires", run_expiry(now))
}

pub(super) fn require_lease(write: Write, lease: &Lease) -> Write {
    write.condition(HAS_LEASE).bind(":holder", text(lease.lease_token)).bind(":running", text(RUNNING))
}

pub(super) fn run_expiry(now: Timestamp) -> AttributeValue {
    expiry(now, LEASE_DURATION + IDEMPOTENCY_WINDOW)
}

#[derive(Debug, Clone)]
pub(super) struct ExpiredLease {
    lease_token: String,
    /// Unset if it is marked as lost already, or is the run that takes the session.
    lost_request: Option<String>,
}

pub(super) fn take_lease(lease: &Lease, expired: Option<&ExpiredLease>, now: Timestamp) -> Vec<Write> {
    let (key, token) = (&lease.key, lease.lease_token);
    // Expires later than any run ends, so that it exists until it is released.
    let attributes = [
        (LEASE_TOKEN, text(token)),
        (REQUEST, text(key.request.as_str())),
        (EXPIRES_AT, expiry(now, IDEMPOTENCY_WINDOW)),
    ];
    let put = Write::put(Key::lease(&key.user, &key.session), attributes);
    let is_free = match expired {
        None => "attribute_not_exists(user_id) OR holder = :holder",
        Some(_) => "attribute_not_exists(user_id) OR holder = :holder OR holder = :dead",
    };
    let mut put = put.condition(is_free).bind(":holder", text(token));
    let Some(expired) = expired else { return vec![put] };
    put = put.bind(":dead", text(&expired.lease_token));
    let Some(request) = &expired.lost_request else { return vec![put] };
    let mark_lost = Write::update(Key::run(&key.user, request), "SET phase = :lost")
        .condition("holder = :dead AND phase = :running AND alive_until <= :now")
        .bind(":dead", text(&expired.lease_token))
        .bind(":running", text(RUNNING))
        .bind(":lost", text(LOST))
        .bind(":now", millis(now));
    vec![put, mark_lost]
}

pub(super) fn release_lease(lease: &Lease) -> Write {
    let release = Write::delete(Key::lease(&lease.key.user, &lease.key.session));
    release.condition("holder = :holder").bind(":holder", text(lease.lease_token))
}

pub(super) fn deletion_lease(lease_token: Uuid, now: Timestamp, duration: Duration) -> [Attribute; 3] {
    [
        (LEASE_TOKEN, text(lease_token)),
        (HELD_UNTIL, millis(add(now, duration))),
        (EXPIRES_AT, expiry(now, duration + IDEMPOTENCY_WINDOW)),
    ]
}

#[derive(Debug)]
pub(super) enum LeaseState {
    Active(Duration),
    Expired(ExpiredLease),
}

impl Table {
    pub(super) async fn lease_state(&self, user: &UserId, request: &str, lease: &Item) -> Result<LeaseState> {
        let lease_token = lease.text(LEASE_TOKEN)?;
        let expired = |lost_request: Option<&str>| {
            let lost_request = lost_request.map(str::to_owned);
            LeaseState::Expired(ExpiredLease { lease_token: lease_token.to_owned(), lost_request })
        };
        let Ok(other) = lease.text(REQUEST) else {
            let (held_until, now) = (lease.millis(HELD_UNTIL)?, Timestamp::now());
            let is_held = held_until > now;
            return Ok(if is_held { LeaseState::Active(duration_until(now, held_until)) } else { expired(None) });
        };
        let run = self.get(Key::run(user, other)).await?;
        let run = run.filter(|run| run.text(LEASE_TOKEN).is_ok_and(|stored| stored == lease_token));
        let now = Timestamp::now();
        Ok(match run {
            Some(run) if is_alive(&run, now) => LeaseState::Active(duration_until(now, run.millis(ALIVE_UNTIL)?)),
            Some(run) if other != request && run.text(PHASE)? == RUNNING => expired(Some(other)),
            _ => expired(None),
        })
    }

    pub(super) async fn running_sessions(&self, user: &UserId) -> Result<Vec<(SessionId, String)>> {
        let leases = self.query_prefix(user, "lease/").await?;
        self.running_sessions_of(user, leases).await
    }

    pub(super) async fn running_sessions_of(
        &self,
        user: &UserId,
        leases: Vec<Item>,
    ) -> Result<Vec<(SessionId, String)>> {
        let held: Vec<_> = leases.iter().filter_map(|lease| Some((lease, lease.text(REQUEST).ok()?))).collect();
        let keys = held.iter().map(|(_, request)| Key::run(user, request)).collect();
        let runs = self.batch_get(keys).await?;
        let now = Timestamp::now();
        let active = held.into_iter().filter_map(|(lease, request)| {
            let run = runs.get(&Key::run(user, request).item)?;
            let holds = run.text(LEASE_TOKEN).ok()? == lease.text(LEASE_TOKEN).ok()?;
            let session = SessionId::parse(SESSION, run.text(SESSION).ok()?).ok()?;
            (holds && is_alive(run, now)).then(|| (session, request.to_owned()))
        });
        Ok(active.collect())
    }
}
