//! How the table is laid out: `docs/conversations.md` tells it with what is in each item.
//!
//! An item belongs to a user and is named by its kind and ids, with slashes between: no id has one.

use jiff::{Timestamp, tz::TimeZone};
use uuid::Uuid;

use crate::identity::{RequestId, SessionId, UserId};

/// The user: the table's partition key.
pub const USER_ID: &str = "user_id";
/// What it is of the user: the table's sort key.
pub const ITEM_ID: &str = "item_id";
/// When the item may be deleted, in seconds since 1970. What is past it counts as gone.
pub const EXPIRES_AT: &str = "expires_at";
/// The index that lists conversations, and its sort key.
pub(super) const LATEST_INDEX: &str = "sessions_latest";
pub(super) const UPDATED: &str = "updated";

/// Names one item.
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

    /// A chunk is named by its last frame, so that those with frames after a certain one follow each other.
    pub(super) fn chunk(user: &UserId, request: &RequestId, holder: &str, last: u32) -> Self {
        Self::new(user, format!("{}{last:010}", chunk_prefix(request.as_str(), holder)))
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

    /// What a user has used on a day of UTC.
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

pub(super) fn chunk_prefix(request: &str, holder: &str) -> String {
    format!("chunk/{request}/{holder}/")
}

pub(super) fn result_prefix(session: &SessionId, turn: &str) -> String {
    format!("result/{session}/{turn}/")
}

pub(super) fn part_prefix(owner: &str, id: &str) -> String {
    format!("part/{owner}/{id}/")
}

/// Whose parts they are, so that they are found when it is deleted.
pub(super) fn session_owner(session: &SessionId) -> String {
    format!("session/{session}")
}

pub(super) fn request_owner(request: &str) -> String {
    format!("request/{request}")
}

/// A run among those of its user at the moment. The request may hold anything but a slash.
pub(super) fn stream_member(holder: Uuid, request: &RequestId) -> String {
    format!("{holder}/{request}")
}

pub(super) fn split_stream_member(stream: &str) -> Option<(&str, &str)> {
    stream.split_once('/')
}

/// The conversation and the number of a turn, if that is what an item of this name is: for whoever reads the table's stream.
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
    fn turns_sort_by_their_number_and_are_found_again() {
        let session = SessionId::parse("session_id", "a#b c").unwrap();
        let keys = [9, 10, 4_000_000_000].map(|seq| Key::turn(&user(), &session, seq).item);
        assert!(keys.is_sorted());
        assert_eq!(parse_turn_item(&keys[1]), Some((session, 10)));
        for other in ["turn/x", "turn//1", "turn/a/b/c", "session/a", ""] {
            assert_eq!(parse_turn_item(other), None, "{other}");
        }
    }

    #[test]
    fn the_longest_ids_make_names_that_dynamodb_takes() {
        let long = "x".repeat(crate::identity::MAX_ID_BYTES);
        let (session, request) = (SessionId::parse("", &long).unwrap(), RequestId::parse("", &long).unwrap());
        let holder = Uuid::nil().to_string();
        for key in [
            Key::chunk(&user(), &request, &holder, u32::MAX),
            Key::part(&user(), &session_owner(&session), &holder, 9_999),
            Key::result(&user(), &session, &holder, &holder),
        ] {
            assert!(key.item.len() <= 1_024);
        }
    }

    #[test]
    fn a_day_is_one_of_utc() {
        let late: Timestamp = "2026-03-01T23:59:59.999Z".parse().unwrap();
        assert_eq!(Key::usage(&user(), late).item, "usage/2026-03-01");
    }
}
