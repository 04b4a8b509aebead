//! Admission: one transaction, whose refused conditions tell what is the matter.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::join;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DynamoConversations,
    item::{Item, Read as _, expiry, number, set, until},
    keys::{Key, of_stream, stream},
    parts::PROFILE,
    runs::{ALIVE_UNTIL, Dead, FINGERPRINT, HOLDER, Holding, SESSION, is_alive, is_held_by, start, take},
    table::Table,
    write::{Refusals, Transacted, Write},
};
use crate::{
    conversation::{Admission, LEASE, Lease, Limit, Limits, NewRun, REMEMBERED, StoreError},
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
/// How long a day's use is kept. It only matters on that day.
pub(super) const USAGE_KEPT: Duration = Duration::from_hours(48);
/// Minutes before this one whose counts are removed with the next request.
const OLD_MINUTES: i64 = 5;

/// Where the writes of an admission are in its transaction. The lease, and the run that lost it, come last.
const RUN: usize = 0;
const USAGE: usize = 1;
const STREAM: usize = 2;
const TAKEN: usize = 3;
const LOST: usize = 4;

impl DynamoConversations {
    pub(super) async fn admit_run(&self, run: &NewRun) -> Result<Admission, StoreError> {
        if run.resumes {
            let known = self.table.get(Key::run(&run.key.user, run.key.request.as_str())).await?;
            return known.as_ref().map_or(Ok(Admission::Unknown), known_as);
        }
        let holder = Uuid::now_v7();
        let (admission, profile) = join!(self.let_in(run, holder), self.profile(&run.key.user));
        match (admission?, profile) {
            (Admission::Started { lease, .. }, Ok(profile)) => Ok(Admission::Started { lease, profile }),
            (Admission::Started { lease, .. }, Err(error)) => {
                // If this fails too, the run ends with its lease.
                let _gone = self.abandon_run(&lease).await;
                Err(error)
            }
            (refused, _) => Ok(refused),
        }
    }

    async fn let_in(&self, run: &NewRun, holder: Uuid) -> Result<Admission, StoreError> {
        let (mut dead, mut counts_streams) = (None, true);
        for _ in 0..TRIES {
            let now = Timestamp::now();
            let refusals = match self.table.transact(entry(run, holder, dead.as_ref(), counts_streams, now)).await? {
                Transacted::Done => return Ok(started(run, holder)),
                Transacted::Refused(refusals) => refusals,
            };
            if let Some(known) = refusals.of(RUN) {
                // An earlier try got in, but its answer was lost.
                let is_this = is_held_by(known, &holder.to_string());
                return if is_this { Ok(started(run, holder)) } else { known_as(known) };
            }
            if refusals.of(LOST).is_some() {
                // It is alive after all, or somebody else took its place.
                dead = None;
                continue;
            }
            if let Some(lease) = refusals.of(TAKEN) {
                match self.table.holding(&run.key.user, run.key.request.as_str(), lease).await? {
                    Holding::Alive(retry_after) => return Ok(Admission::Busy { retry_after }),
                    Holding::Dead(found) => dead = Some(found),
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
        refusals: &Refusals,
        counts_streams: &mut bool,
        now: Timestamp,
    ) -> Result<Option<Admission>, StoreError> {
        let used = |name: &str| {
            let number = refusals.of(USAGE)?.get(name)?.as_n().ok()?.parse::<u64>().ok()?;
            Some(number)
        };
        let limits = run.limits.filter(|_| refusals.of(USAGE).is_some());
        let is_over = |of: fn(&Limits) -> u64, name: &str| {
            limits.is_some_and(|limits| used(name).unwrap_or_default() >= of(&limits))
        };
        let over = |limit, retry_after| Ok(Some(Admission::Over { limit, retry_after }));
        if is_over(|limits| limits.requests_per_minute.into(), &minute_of(now)) {
            return over(Limit::RequestsPerMinute, until_next(now, 60));
        }
        if let Some(streams) = refusals.of(STREAM) {
            let freed = self.table.forget_dead_streams(&run.key.user, streams).await?;
            match freed {
                Freed::Some => {}
                Freed::None(_) if run.limits.is_none() => *counts_streams = false,
                Freed::None(retry_after) => return over(Limit::ConcurrentStreams, retry_after),
            }
        }
        if is_over(|limits| limits.tokens_per_day, TOKENS) {
            return over(Limit::TokensPerDay, until_next(now, 24 * 60 * 60));
        }
        Ok(None)
    }

    /// The profile of a user.
    async fn profile(&self, user: &UserId) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(item) = self.table.get(Key::profile(user)).await? else { return Ok(None) };
        self.table.value(user, PROFILE, &item).await.map(Some)
    }
}

fn started(run: &NewRun, holder: Uuid) -> Admission {
    Admission::Started { lease: Lease { key: run.key.clone(), holder }, profile: None }
}

fn known_as(run: &Item) -> Result<Admission, StoreError> {
    let session = SessionId::parse(SESSION, run.text(SESSION)?).map_err(|_| StoreError::Malformed(SESSION))?;
    let fingerprint = run.bytes(FINGERPRINT)?.try_into().map_err(|_| StoreError::Malformed(FINGERPRINT))?;
    Ok(Admission::Known { session, fingerprint })
}

/// All that lets a run in.
fn entry(run: &NewRun, holder: Uuid, dead: Option<&Dead>, counts_streams: bool, now: Timestamp) -> Vec<Write> {
    let limits = run.limits;
    let mut writes = vec![start(run, holder, now), use_minute(&run.key.user, limits, now)];
    let most = match limits {
        Some(limits) => Some(limits.concurrent_streams),
        None => counts_streams.then_some(MANY),
    };
    writes.push(enter(&run.key.user, &stream(holder, &run.key.request), most, now));
    if run.takes_session {
        writes.extend(take(&run.key, holder, dead, now));
    }
    writes
}

/// Counts the request, if there is one left in this minute and a token on this day.
fn use_minute(user: &UserId, limits: Option<Limits>, now: Timestamp) -> Write {
    let minute = minute_number(now);
    let old: Vec<_> = (1..=OLD_MINUTES).map(|ago| minute - ago).filter(|minute| *minute >= 0).collect();
    let removed: Vec<_> = old.iter().map(|old| attribute_of_minute(*old)).collect();
    let remove = if removed.is_empty() { String::new() } else { format!(" REMOVE {}", removed.join(", ")) };
    let count = attribute_of_minute(minute);
    let write = Write::update(Key::usage(user, now), format!("ADD {count} :one SET expires_at = :expires{remove}"));
    let write = write.value(":one", number(1)).value(":expires", expiry(now, USAGE_KEPT));
    let Some(limits) = limits else { return write };
    let (requests, tokens) = (limits.requests_per_minute, limits.tokens_per_day);
    let condition = [below(&count, requests.into(), ":requests"), below(TOKENS, tokens, ":tokens")].join(" AND ");
    let write = if requests > 0 { write.value(":requests", number(requests)) } else { write };
    let write = if tokens > 0 { write.value(":tokens", number(tokens)) } else { write };
    write.when(condition)
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
    let write = count(user, set([stream.to_owned()]), now);
    match most {
        None => write,
        Some(0) => write.when(NEVER),
        Some(most) => write.when("attribute_not_exists(streams) OR size(streams) < :most").value(":most", number(most)),
    }
}

/// Does not count streams any more.
pub(super) fn leave(user: &UserId, streams: AttributeValue, now: Timestamp) -> Write {
    change_streams(user, "DELETE streams :streams", streams, now)
}

/// Counts streams, whether or not there are any left.
pub(super) fn count(user: &UserId, streams: AttributeValue, now: Timestamp) -> Write {
    change_streams(user, "ADD streams :streams", streams, now)
}

fn change_streams(user: &UserId, change: &str, streams: AttributeValue, now: Timestamp) -> Write {
    Write::update(Key::streams(user), format!("{change} SET expires_at = :expires"))
        .value(":streams", streams)
        .value(":expires", expiry(now, REMEMBERED))
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
        let requests = streams.iter().filter_map(|stream| of_stream(stream));
        let keys: Vec<_> = requests.map(|(_, request)| Key::run(user, request)).collect();
        let runs = self.get_many(keys).await?;
        let now = Timestamp::now();
        let alive_until = |stream: &str| {
            let (holder, request) = of_stream(stream)?;
            let run = runs.get(&Key::run(user, request).item)?;
            let is_alive = run.text(HOLDER).ok()? == holder && is_alive(run, now);
            is_alive.then(|| run.moment(ALIVE_UNTIL).ok())?
        };
        let dead: Vec<String> = streams.iter().filter(|stream| alive_until(stream).is_none()).cloned().collect();
        if dead.is_empty() {
            let first = streams.iter().filter_map(|stream| alive_until(stream)).min();
            return Ok(Freed::None(first.map_or(LEASE, |first| until(now, first))));
        }
        self.apply(leave(user, set(dead), now)).await?;
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
    Timestamp::from_second(next).map_or(Duration::ZERO, |next| until(now, next))
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
