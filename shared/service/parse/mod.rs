//! Validates requests and converts them to domain types. The contract's size limits are here and in [`crate::identity`]; limits
//! of a deployment (quotas, allowed models) are not.

pub(super) mod chat;
pub(super) mod conversation;
mod fingerprint;
pub(super) mod memory;

use std::{collections::BTreeMap, ops::RangeInclusive};

use jiff::Timestamp;

use crate::{
    error::{InvalidArgument, Problem, check_text},
    identity::MAX_ID_BYTES,
    link::is_link,
    memory::{Filter, LINK_KEY},
    proto::agent_v1 as pb,
};

const MAX_MESSAGE_BYTES: usize = 100_000;
const MAX_HISTORY: usize = 200;
const MAX_CONTEXT_BYTES: usize = 100_000;
const MAX_URL_BYTES: usize = 8_000;
/// Entries of a map of preferences or metadata, or of a list of tags, documents or tools.
const MAX_ENTRIES: usize = 1_000;
/// Keys and values of such a map together.
const MAX_MAP_BYTES: usize = 64_000;
const MAX_MEMORY_BYTES: usize = 64_000;
const MAX_SUPERSEDED: usize = 100;
/// Of all memories of a request.
const MAX_SUPERSEDED_TOGETHER: usize = 1_000;
const MAX_DOCUMENT_BYTES: usize = 20_000_000;
const MAX_DOCUMENT_TITLE_BYTES: usize = 1_000;
const MAX_MEMORIES: usize = 1_000;

type Parsed<T> = Result<T, InvalidArgument>;

fn invalid<T>(field: impl Into<String>, problem: Problem) -> Parsed<T> {
    Err(InvalidArgument::new(field, problem))
}

fn text(field: &str, text: String, limit_bytes: usize) -> Parsed<String> {
    check_text(field, &text, limit_bytes)?;
    if text.trim().is_empty() { invalid(field, Problem::Blank) } else { Ok(text) }
}

fn at_most<T>(field: &str, values: &[T], limit: usize) -> Parsed<()> {
    if values.len() > limit { invalid(field, Problem::TooMany { limit }) } else { Ok(()) }
}

/// A client's own name for a document, memory, tag or tool. Unlike an identifier it may have slashes.
fn name(field: &str, name: &str) -> Parsed<()> {
    check_text(field, name, MAX_ID_BYTES)?;
    if name.trim().is_empty() { invalid(field, Problem::Blank) } else { Ok(()) }
}

fn names(field: &str, names: Vec<String>, limit: usize) -> Parsed<Vec<String>> {
    at_most(field, &names, limit)?;
    for (index, entry) in names.iter().enumerate() {
        name(&format!("{field}[{index}]"), entry)?;
    }
    Ok(names)
}

fn map(field: &str, map: BTreeMap<String, String>) -> Parsed<BTreeMap<String, String>> {
    if map.len() > MAX_ENTRIES {
        return invalid(field, Problem::TooMany { limit: MAX_ENTRIES });
    }
    for (key, value) in &map {
        check_text(field, key, MAX_ID_BYTES)?;
        check_text(field, value, MAX_MAP_BYTES)?;
    }
    if map.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_MAP_BYTES {
        return invalid(field, Problem::TooLong { limit_bytes: MAX_MAP_BYTES });
    }
    Ok(map.into_iter().collect())
}

/// The metadata of a memory or document, whose `url` becomes the link of citations.
fn metadata(field: &str, metadata: BTreeMap<String, String>) -> Parsed<BTreeMap<String, String>> {
    let metadata = map(field, metadata)?;
    if let Some(url) = metadata.get(LINK_KEY) {
        link(&format!("{field}.{LINK_KEY}"), url)?;
    }
    Ok(metadata)
}

fn link(field: &str, url: &str) -> Parsed<()> {
    check_text(field, url, MAX_URL_BYTES)?;
    if is_link(url) { Ok(()) } else { invalid(field, Problem::NotALink) }
}

/// From 0.
fn number(field: &str, number: f32, max: u8) -> Parsed<f32> {
    // No range contains NaN.
    if (0.0..=f32::from(max)).contains(&number) {
        return Ok(number);
    }
    invalid(field, Problem::OutOfRange { min: 0, max: Some(max.into()) })
}

/// 0 = the default; more than `max` = `max`.
fn count(field: &str, count: i32, default: usize, max: usize) -> Parsed<usize> {
    match usize::try_from(count) {
        Ok(0) => Ok(default),
        Ok(count) => Ok(count.min(max)),
        Err(_) => invalid(field, Problem::OutOfRange { min: 0, max: None }),
    }
}

fn page_token<T>(token: &str, parse: impl FnOnce(&str) -> Option<T>) -> Parsed<Option<T>> {
    if token.is_empty() {
        return Ok(None);
    }
    match parse(token) {
        Some(position) => Ok(Some(position)),
        None => invalid("page_token", Problem::NotAPageToken),
    }
}

fn timestamp(field: &str, time: &prost_types::Timestamp) -> Parsed<Timestamp> {
    // Years 1 to 9999, as google.protobuf.Timestamp allows.
    const SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    if !SECONDS.contains(&time.seconds) || !(0..1_000_000_000).contains(&time.nanos) {
        return invalid(field, Problem::NotATimestamp);
    }
    // The last day of 9999, which clients send for "no end", is beyond jiff's range.
    Ok(Timestamp::new(time.seconds, time.nanos).unwrap_or(Timestamp::MAX))
}

fn filter(field: &str, filter: Option<pb::MemoryFilter>) -> Parsed<Filter> {
    let Some(filter) = filter else { return Ok(Filter::default()) };
    let time = |name: &str, time: Option<prost_types::Timestamp>| {
        time.map(|time| timestamp(&format!("{field}.{name}"), &time)).transpose()
    };
    Ok(Filter {
        tags: names(&format!("{field}.tags"), filter.tags, MAX_ENTRIES)?,
        from: time("start_time", filter.start_time)?,
        before: time("end_time", filter.end_time)?,
        source_types: names(&format!("{field}.source_types"), filter.source_types, MAX_ENTRIES)?,
        document_ids: Vec::new(),
    })
}
