//! Admission: one transaction, whose refused conditions tell what is the matter.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::join;
use jiff::Timestamp;
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{
    DynamoConversations, in_time,
    item::{Item, ItemExt as _, duration_until, expiry, number, set},
    keys::{Key, split_stream_member, stream_member},
    lease::{
        ALIVE_UNTIL, ExpiredLease, FINGERPRINT, LEASE_TOKEN, LeaseState, SESSION, has_lease_token, is_alive, start_run,
        take_lease,
    },
    parts::PROFILE,
    table::Table,
    write::{FailedConditions, TransactOutcome, Write},
};
use crate::{
    conversation::{
        AdmitOutcome, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, NewRun, QuotaKind, StoreError, UserQuotas,
    },
    identity::{SessionId, UserId},
};

/// Tokens of the day.
pub(super) const TOKENS: &str = "tokens";
/// The user's runs that are going on, as far as nobody noticed that they died.
const STREAMS: &str = "streams";
/// From how many streams on those are looked for that died, where there is no limit.
const MANY: u32 = 64;
/// How often an admission begins anew, because something changed under it.
const TRIES: u32 = 8;
/// How much longer than its caller an admission waits for DynamoDB, to take back what became of it.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How long a day's use is kept. It only matters on that day.
pub(super) const USAGE_RETENTION: Duration = Duration::from_hours(48);
/// Minutes before this one whose counts are removed with the next request.
const OLD_MINUTES: i64 = 5;

/// Where the writes of an admission are in its transaction. The lease, and the run that lost it, come last.
const RUN: usize = 0;
const USAGE: usize = 1;
const STREAM: usize = 2;
const TAKEN: usize = 3;
const LOST: usize = 4;

impl DynamoConversations {
    /// Lets a run in. Whoever asked may leave, or lose patience, while DynamoDB lets the run in: nobody would run it, and its
    /// conversation would be taken until the lease ends. So the question is asked by a task, which takes such an admission back.
    pub(super) async fn admit_run(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        let (answer, answered) = oneshot::channel();
        let (store, run) = (self.clone(), run.clone());
        let patience = self.admit_timeout + AFTERMATH;
        drop(tokio::spawn(async move {
            let admitted = in_time(patience, store.ask(&run)).await;
            if let Err(Ok(AdmitOutcome::Started { lease, .. })) = answer.send(admitted)
                && let Err(error) = in_time(AFTERMATH, store.abandon_run(&lease)).await
            {
                tracing::warn!(%error, "an admission that came too late holds its conversation until its lease ends");
            }
        }));
        match timeout(self.admit_timeout, answered).await {
            Ok(Ok(admitted)) => admitted,
            // The runtime stops.
            Ok(Err(_)) | Err(_) => Err(StoreError::Timeout),
        }
    }

    async fn ask(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        if run.resumes {
            let known = self.table.get(Key::run(&run.key.user, run.key.request.as_str())).await?;
            return known.as_ref().map_or(Ok(AdmitOutcome::Unknown), known_as);
        }
        let holder = Uuid::now_v7();
        let (admission, profile) = join!(self.let_in(run, holder), self.profile(&run.key.user));
        match (admission?, profile) {
            (AdmitOutcome::Started { lease, .. }, Ok(profile)) => Ok(AdmitOutcome::Started { lease, profile }),
            (AdmitOutcome::Started { lease, .. }, Err(error)) => {
                // If this fails too, the run ends with its lease.
                let _gone = self.abandon_run(&lease).await;
                Err(error)
            }
            (refused, _) => Ok(refused),
        }
    }

    async fn let_in(&self, run: &NewRun, holder: Uuid) -> Result<AdmitOutcome, StoreError> {
        let (mut dead, mut counts_streams) = (None, true);
        for _ in 0..TRIES {
            let now = Timestamp::now();
            let refusals = match self.table.transact(entry(run, holder, dead.as_ref(), counts_streams, now)).await? {
                TransactOutcome::Done => return Ok(started(run, holder)),
                TransactOutcome::Refused(refusals) => refusals,
            };
            if let Some(known) = refusals.get(RUN) {
                // An earlier try got in, but its answer was lost.
                let is_this = has_lease_token(known, &holder.to_string());
                return if is_this { Ok(started(run, holder)) } else { known_as(known) };
            }
            if refusals.get(LOST).is_some() {
                // It is alive after all, or somebody else took its place.
                dead = None;
                continue;
            }
            if let Some(lease) = refusals.get(TAKEN) {
                match self.table.lease_state(&run.key.user, run.key.request.as_str(), lease).await? {
                    LeaseState::Active(retry_after) => return Ok(AdmitOutcome::Busy { retry_after }),
                    LeaseState::Expired(found) => dead = Some(found),
                }
                continue;
            }
            if let Some(refused) = self.over(run, &refusals, &mut counts_streams, now).await? {
                return Ok(refused);
            }
        }
        Err(StoreError::Timeout)
    }

    /// The limit that the user has reached; `None` = none any more.
    async fn over(
        &self,
        run: &NewRun,
        refusals: &FailedConditions,
        counts_streams: &mut bool,
        now: Timestamp,
    ) -> Result<Option<AdmitOutcome>, StoreError> {
        let used = |name: &str| {
            let number = refusals.get(USAGE)?.get(name)?.as_n().ok()?.parse::<u64>().ok()?;
            Some(number)
        };
        let limits = run.quotas.filter(|_| refusals.get(USAGE).is_some());
        let is_over = |of: fn(&UserQuotas) -> u64, name: &str| {
            limits.is_some_and(|limits| used(name).unwrap_or_default() >= of(&limits))
        };
        let over = |limit, retry_after| Ok(Some(AdmitOutcome::QuotaExceeded { quota: limit, retry_after }));
        if is_over(|limits| limits.requests_per_minute.into(), &minute_of(now)) {
            return over(QuotaKind::RequestsPerMinute, until_next(now, 60));
        }
        if let Some(streams) = refusals.get(STREAM) {
            let freed = self.table.forget_dead_streams(&run.key.user, streams).await?;
            match freed {
                Freed::Some => {}
                Freed::None(_) if run.quotas.is_none() => *counts_streams = false,
                Freed::None(retry_after) => return over(QuotaKind::ConcurrentStreams, retry_after),
            }
        }
        if is_over(|limits| limits.tokens_per_day, TOKENS) {
            return over(QuotaKind::TokensPerDay, until_next(now, 24 * 60 * 60));
        }
        Ok(None)
    }

    /// The profile of a user.
    async fn profile(&self, user: &UserId) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(item) = self.table.get(Key::profile(user)).await? else { return Ok(None) };
        self.table.read_value(user, PROFILE, &item).await.map(Some)
    }
}

fn started(run: &NewRun, holder: Uuid) -> AdmitOutcome {
    AdmitOutcome::Started { lease: Lease { key: run.key.clone(), lease_token: holder }, profile: None }
}

fn known_as(run: &Item) -> Result<AdmitOutcome, StoreError> {
    let session = SessionId::parse(SESSION, run.text(SESSION)?).map_err(|_| StoreError::Malformed(SESSION))?;
    let fingerprint = run.bytes(FINGERPRINT)?.try_into().map_err(|_| StoreError::Malformed(FINGERPRINT))?;
    Ok(AdmitOutcome::Known { session, fingerprint })
}

/// All that lets a run in.
fn entry(run: &NewRun, holder: Uuid, dead: Option<&ExpiredLease>, counts_streams: bool, now: Timestamp) -> Vec<Write> {
    let limits = run.quotas;
    let mut writes = vec![start_run(run, holder, now), use_minute(&run.key.user, limits, now)];
    let most = match limits {
        Some(limits) => Some(limits.concurrent_streams),
        None => counts_streams.then_some(MANY),
    };
    writes.push(enter(&run.key.user, &stream_member(holder, &run.key.request), most, now));
    if run.takes_session {
        writes.extend(take_lease(&run.key, holder, dead, now));
    }
    writes
}

/// Counts the request, if there is one left in this minute and a token on this day.
fn use_minute(user: &UserId, limits: Option<UserQuotas>, now: Timestamp) -> Write {
    let minute = minute_number(now);
    let old: Vec<_> = (1..=OLD_MINUTES).map(|ago| minute - ago).filter(|minute| *minute >= 0).collect();
    let removed: Vec<_> = old.iter().map(|old| attribute_of_minute(*old)).collect();
    let remove = if removed.is_empty() { String::new() } else { format!(" REMOVE {}", removed.join(", ")) };
    let count = attribute_of_minute(minute);
    let write = Write::update(Key::usage(user, now), format!("ADD {count} :one SET expires_at = :expires{remove}"));
    let write = write.bind(":one", number(1)).bind(":expires", expiry(now, USAGE_RETENTION));
    let Some(limits) = limits else { return write };
    let (requests, tokens) = (limits.requests_per_minute, limits.tokens_per_day);
    let condition = [below(&count, requests.into(), ":requests"), below(TOKENS, tokens, ":tokens")].join(" AND ");
    let write = if requests > 0 { write.bind(":requests", number(requests)) } else { write };
    let write = if tokens > 0 { write.bind(":tokens", number(tokens)) } else { write };
    write.condition(condition)
}

/// Gives back what a request used of its minute, while that is not over.
pub(super) fn refund_request(user: &UserId, used: Timestamp, now: Timestamp) -> Option<Write> {
    let minute = minute_of(now);
    let is_this_minute = used.as_second().div_euclid(60) == now.as_second().div_euclid(60);
    is_this_minute
        .then(|| Write::update(Key::usage(user, now), format!("ADD {minute} :less")).bind(":less", number(-1)))
}

/// That an attribute that counts is below a number.
fn below(attribute: &str, most: u64, placeholder: &str) -> String {
    match most {
        0 => NEVER.to_owned(),
        _ => format!("(attribute_not_exists({attribute}) OR {attribute} < {placeholder})"),
    }
}

/// What holds for no item.
const NEVER: &str = "attribute_exists(nothing)";

/// Counts a stream, if there is one left.
fn enter(user: &UserId, stream: &str, most: Option<u32>, now: Timestamp) -> Write {
    let write = add_streams(user, set([stream.to_owned()]), now);
    match most {
        None => write,
        Some(0) => write.condition(NEVER),
        Some(most) => {
            write.condition("attribute_not_exists(streams) OR size(streams) < :most").bind(":most", number(most))
        }
    }
}

/// Does not count streams any more.
pub(super) fn remove_streams(user: &UserId, streams: AttributeValue, now: Timestamp) -> Write {
    change_streams(user, "DELETE streams :streams", streams, now)
}

/// Counts streams, whether or not there are any left.
pub(super) fn add_streams(user: &UserId, streams: AttributeValue, now: Timestamp) -> Write {
    change_streams(user, "ADD streams :streams", streams, now)
}

fn change_streams(user: &UserId, change: &str, streams: AttributeValue, now: Timestamp) -> Write {
    Write::update(Key::streams(user), format!("{change} SET expires_at = :expires"))
        .bind(":streams", streams)
        .bind(":expires", expiry(now, IDEMPOTENCY_WINDOW))
}

/// What came of the search for streams that died.
enum Freed {
    Some,
    /// All are alive; the first of them ends then, unless it gives a sign of life.
    None(Duration),
}

impl Table {
    /// Takes those runs out of a user's streams that died or ended.
    async fn forget_dead_streams(&self, user: &UserId, streams: &Item) -> Result<Freed, StoreError> {
        let streams = streams.set(STREAMS);
        let requests = streams.iter().filter_map(|stream| split_stream_member(stream));
        let keys: Vec<_> = requests.map(|(_, request)| Key::run(user, request)).collect();
        let runs = self.batch_get(keys).await?;
        let now = Timestamp::now();
        let alive_until = |stream: &str| {
            let (holder, request) = split_stream_member(stream)?;
            let run = runs.get(&Key::run(user, request).item)?;
            let is_alive = run.text(LEASE_TOKEN).ok()? == holder && is_alive(run, now);
            is_alive.then(|| run.millis(ALIVE_UNTIL).ok())?
        };
        let dead: Vec<String> = streams.iter().filter(|stream| alive_until(stream).is_none()).cloned().collect();
        if dead.is_empty() {
            let first = streams.iter().filter_map(|stream| alive_until(stream)).min();
            return Ok(Freed::None(first.map_or(LEASE_DURATION, |first| duration_until(now, first))));
        }
        self.write(remove_streams(user, set(dead), now)).await?;
        Ok(Freed::Some)
    }
}

fn minute_number(now: Timestamp) -> i64 {
    now.as_second().rem_euclid(24 * 60 * 60) / 60
}

/// The attribute that counts the requests of a minute of the day.
fn attribute_of_minute(minute: i64) -> String {
    format!("minute_{minute}")
}

fn minute_of(now: Timestamp) -> String {
    attribute_of_minute(minute_number(now))
}

/// Until the clock shows a multiple of so many seconds.
fn until_next(now: Timestamp, seconds: i64) -> Duration {
    let next = (now.as_second().div_euclid(seconds) + 1) * seconds;
    Timestamp::from_second(next).map_or(Duration::ZERO, |next| duration_until(now, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_open_again_when_the_clock_turns() {
        let now: Timestamp = "2026-03-01T23:59:30.5Z".parse().unwrap();
        assert_eq!(until_next(now, 60), Duration::from_millis(29_500));
        assert_eq!(until_next(now, 24 * 60 * 60), Duration::from_millis(29_500));
        assert_eq!(minute_of(now), "minute_1439");
        let sharp: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        assert_eq!(until_next(sharp, 60), Duration::from_secs(60));
    }
}
