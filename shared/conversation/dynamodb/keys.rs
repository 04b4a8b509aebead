//! Keys of items: the user, and the kind and ids of the item separated by slashes, which no session id contains.

use jiff::{Timestamp, tz::TimeZone};
use uuid::Uuid;

use crate::identity::{RequestId, SessionId, UserId};

pub const USER_ID: &str = "user_id";
pub const ITEM_ID: &str = "item_id";
/// Seconds since 1970. DynamoDB deletes expired items days later; reads skip them.
pub const EXPIRES_AT: &str = "expires_at";
pub(super) const LATEST_INDEX: &str = "sessions_latest";
pub(super) const UPDATED: &str = "updated";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) user: String,
    pub(super) item: String,
}

impl Key {
    pub(super) fn new(user: &UserId, item: impl Into<String>) -> Self {
        Self { user: user.as_str().to_owned(), item: item.into() }
    }

    pub(super) fn session(user: &UserId, session: &SessionId) -> Self {
        Self::new(user, format!("session/{session}"))
    }

    pub(super) fn lease(user: &UserId, session: &SessionId) -> Self {
        Self::new(user, format!("lease/{session}"))
    }

    pub(super) fn run(user: &UserId, request: &str) -> Self {
        Self::new(user, format!("run/{request}"))
    }

    /// Named by its last frame, so that chunks with frames after a number are consecutive.
    pub(super) fn chunk(user: &UserId, request: &RequestId, lease_token: &str, last: u32) -> Self {
        Self::new(user, format!("{}{last:010}", chunk_prefix(request.as_str(), lease_token)))
    }

    pub(super) fn turn(user: &UserId, session: &SessionId, seq: u32) -> Self {
        Self::new(user, format!("{}{seq:010}", turn_prefix(session)))
    }

    pub(super) fn pending(user: &UserId, session: &SessionId) -> Self {
        Self::new(user, format!("pending/{session}"))
    }

    pub(super) fn result(user: &UserId, session: &SessionId, turn: &str, call: &str) -> Self {
        Self::new(user, format!("{}{call}", result_prefix(session, turn)))
    }

    pub(super) fn profile(user: &UserId) -> Self {
        Self::new(user, "profile")
    }

    pub(super) fn streams(user: &UserId) -> Self {
        Self::new(user, "streams")
    }

    pub(super) fn usage(user: &UserId, now: Timestamp) -> Self {
        Self::new(user, format!("usage/{}", now.to_zoned(TimeZone::UTC).date()))
    }

    pub(super) fn part(user: &UserId, owner: &str, id: &str, number: usize) -> Self {
        Self::new(user, format!("{}{number:04}", part_prefix(owner, id)))
    }
}

pub(super) fn turn_prefix(session: &SessionId) -> String {
    format!("turn/{session}/")
}

pub(super) fn chunk_prefix(request: &str, lease_token: &str) -> String {
    format!("chunk/{request}/{lease_token}/")
}

pub(super) fn result_prefix(session: &SessionId, turn: &str) -> String {
    format!("result/{session}/{turn}/")
}

pub(super) fn part_prefix(owner: &str, id: &str) -> String {
    format!("part/{owner}/{id}/")
}

pub(super) fn session_owner(session: &SessionId) -> String {
    format!("session/{session}")
}

pub(super) fn request_owner(request: &str) -> String {
    format!("request/{request}")
}

/// Time of the last turn, then the id.
pub(super) fn latest_sort_key(updated: &str, session: &str) -> String {
    format!("{updated}/{session}")
}

pub(super) fn stream_member(lease_token: Uuid, request: &RequestId) -> String {
    format!("{lease_token}/{request}")
}

pub(super) fn split_stream_member(stream: &str) -> Option<(&str, &str)> {
    stream.split_once('/')
}

#[must_use]
pub fn parse_turn_item(item: &str) -> Option<(SessionId, u32)> {
    let (session, seq) = item.strip_prefix("turn/")?.split_once('/')?;
    Some((SessionId::parse("session_id", session).ok()?, seq.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> UserId {
        UserId::parse("user_id", "u").unwrap()
    }

    #[test]
    fn turn_keys_sort_by_number_and_parse() {
        let session = SessionId::parse("session_id", "a#b c").unwrap();
        let keys = [9, 10, 4_000_000_000].map(|seq| Key::turn(&user(), &session, seq).item);
        assert!(keys.is_sorted());
        assert_eq!(parse_turn_item(&keys[1]), Some((session, 10)));
        for other in ["turn/x", "turn//1", "turn/a/b/c", "session/a", ""] {
            assert_eq!(parse_turn_item(other), None, "{other}");
        }
    }

    #[test]
    fn longest_ids_make_keys_within_the_limit() {
        let long = "x".repeat(crate::identity::MAX_ID_BYTES);
        let (session, request) = (SessionId::parse("", &long).unwrap(), RequestId::parse("", &long).unwrap());
        let token = Uuid::nil().to_string();
        for key in [
            Key::chunk(&user(), &request, &token, u32::MAX),
            Key::part(&user(), &session_owner(&session), &token, 9_999),
            Key::result(&user(), &session, &token, &token),
        ] {
            assert!(key.item.len() <= 1_024);
        }
    }

    #[test]
    fn usage_key_is_the_day_in_utc() {
        let late: Timestamp = "2026-03-01T23:59:59.999Z".parse().unwrap();
        assert_eq!(Key::usage(&user(), late).item, "usage/2026-03-01");
    }
}
