//! Use of quotas. Streams are a set of runs in one item; lost runs stay in it until an admission would be refused.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use jiff::Timestamp;

use super::{
    attributes::{ALIVE_UNTIL, LEASE_TOKEN, STREAMS, TOKENS},
    item::{Item, ItemExt as _, duration_until, expiry, number, set},
    keys::{Key, split_stream_member},
    lease::is_alive,
    table::Table,
    write::Write,
};
use crate::{
    config::UserQuotas,
    conversation::{
        error::Result,
        run::{IDEMPOTENCY_WINDOW, LEASE_DURATION},
    },
    identity::UserId,
};

const USAGE_RETENTION: Duration = Duration::from_hours(48);
const SWEPT_MINUTES: i64 = 5;
/// A condition that no item meets.
const NEVER: &str = "attribute_exists(nothing)";

pub(super) fn count_request(user: &UserId, quotas: Option<UserQuotas>, now: Timestamp) -> Write {
    let minute = minute_number(now);
    let swept: Vec<_> =
        (1..=SWEPT_MINUTES).map(|ago| minute - ago).filter(|minute| *minute >= 0).map(minute_attribute).collect();
    let remove = if swept.is_empty() { String::new() } else { format!(" REMOVE {}", swept.join(", ")) };
    let count = minute_attribute(minute);
    let write = Write::update(Key::usage(user, now), format!("ADD {count} :one SET expires_at = :expires{remove}"));
    let write = write.bind(":one", number(1)).bind(":expires", expiry(now, USAGE_RETENTION));
    let Some(quotas) = quotas else { return write };
    let (requests, tokens) = (quotas.requests_per_minute, quotas.tokens_per_day);
    let condition = [below(&count, requests.into(), ":requests"), below(TOKENS, tokens, ":tokens")].join(" AND ");
    let write = if requests > 0 { write.bind(":requests", number(requests)) } else { write };
    let write = if tokens > 0 { write.bind(":tokens", number(tokens)) } else { write };
    write.condition(condition)
}

/// `None`: its minute is over.
pub(super) fn refund_request(user: &UserId, counted_at: Timestamp, now: Timestamp) -> Option<Write> {
    let minute = current_minute(now);
    let is_this_minute = counted_at.as_second().div_euclid(60) == now.as_second().div_euclid(60);
    is_this_minute
        .then(|| Write::update(Key::usage(user, now), format!("ADD {minute} :less")).bind(":less", number(-1)))
}

pub(super) fn count_tokens(user: &UserId, tokens: u32, now: Timestamp) -> Option<Write> {
    let used = Write::update(Key::usage(user, now), format!("ADD {TOKENS} :used SET expires_at = :expires"));
    let used = used.bind(":used", number(tokens)).bind(":expires", expiry(now, USAGE_RETENTION));
    (tokens > 0).then_some(used)
}

fn below(counter: &str, quota: u64, placeholder: &str) -> String {
    match quota {
        0 => NEVER.to_owned(),
        _ => format!("(attribute_not_exists({counter}) OR {counter} < {placeholder})"),
    }
}

pub(super) fn add_stream_below(user: &UserId, stream: &str, max_streams: Option<u32>, now: Timestamp) -> Write {
    let write = add_streams(user, set([stream.to_owned()]), now);
    match max_streams {
        None => write,
        Some(0) => write.condition(NEVER),
        Some(max) => write.condition("attribute_not_exists(streams) OR size(streams) < :max").bind(":max", number(max)),
    }
}

pub(super) fn add_streams(user: &UserId, streams: AttributeValue, now: Timestamp) -> Write {
    change_streams(user, "ADD streams :streams", streams, now)
}

pub(super) fn remove_streams(user: &UserId, streams: AttributeValue, now: Timestamp) -> Write {
    change_streams(user, "DELETE streams :streams", streams, now)
}

fn change_streams(user: &UserId, change: &str, streams: AttributeValue, now: Timestamp) -> Write {
    Write::update(Key::streams(user), format!("{change} SET expires_at = :expires"))
        .bind(":streams", streams)
        .bind(":expires", expiry(now, IDEMPOTENCY_WINDOW))
}

pub(super) enum StreamSweep {
    Removed,
    /// The first lease expires after this time, unless it is renewed.
    AllActive(Duration),
}

impl Table {
    pub(super) async fn sweep_streams(&self, user: &UserId, streams: &Item) -> Result<StreamSweep> {
        let streams = streams.set(STREAMS);
        let requests = streams.iter().filter_map(|stream| split_stream_member(stream));
        let keys: Vec<_> = requests.map(|(_, request)| Key::run(user, request)).collect();
        let runs = self.batch_get(keys).await?;
        let now = Timestamp::now();
        let alive_until = |stream: &str| {
            let (lease_token, request) = split_stream_member(stream)?;
            let run = runs.get(&Key::run(user, request).item)?;
            let is_alive = run.text(LEASE_TOKEN).ok()? == lease_token && is_alive(run, now);
            is_alive.then(|| run.millis(ALIVE_UNTIL).ok())?
        };
        let inactive: Vec<String> = streams.iter().filter(|stream| alive_until(stream).is_none()).cloned().collect();
        if inactive.is_empty() {
            let first = streams.iter().filter_map(|stream| alive_until(stream)).min();
            return Ok(StreamSweep::AllActive(first.map_or(LEASE_DURATION, |first| duration_until(now, first))));
        }
        self.write(remove_streams(user, set(inactive), now)).await?;
        Ok(StreamSweep::Removed)
    }
}

fn minute_number(now: Timestamp) -> i64 {
    now.as_second().rem_euclid(24 * 60 * 60) / 60
}

fn minute_attribute(minute: i64) -> String {
    format!("minute_{minute}")
}

pub(super) fn current_minute(now: Timestamp) -> String {
    minute_attribute(minute_number(now))
}

pub(super) fn until_next(now: Timestamp, period: i64) -> Duration {
    let next = (now.as_second().div_euclid(period) + 1) * period;
    Timestamp::from_second(next).map_or(Duration::ZERO, |next| duration_until(now, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_is_open_again_when_the_period_ends() {
        let now: Timestamp = "2026-03-01T23:59:30.5Z".parse().unwrap();
        assert_eq!(until_next(now, 60), Duration::from_millis(29_500));
        assert_eq!(until_next(now, 24 * 60 * 60), Duration::from_millis(29_500));
        assert_eq!(current_minute(now), "minute_1439");
        let sharp: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        assert_eq!(until_next(sharp, 60), Duration::from_secs(60));
    }
}
