use jiff::Timestamp;

use crate::identity::{RequestId, SessionId};

pub const MAX_TITLE_BYTES: usize = 256;

/// A session, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Unique for the user.
    pub id: SessionId,
    pub title: String,
    /// When its first turn ended.
    pub created_at: Timestamp,
    /// When its last turn ended.
    pub updated_at: Timestamp,
    /// Number of turns.
    pub turns: u32,
    /// The request whose run holds the session now.
    pub running: Option<RequestId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTurn {
    /// Position in the session, from 1.
    pub seq: u32,
    /// The request that ended the turn.
    pub request: RequestId,
    pub record: Vec<u8>,
    /// Estimated cost of the turn in a prompt.
    pub tokens: u32,
    /// Whether it came to its end; otherwise it was interrupted.
    pub is_complete: bool,
    pub created_at: Timestamp,
}

/// The part of a session that goes into a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// The last turns, oldest first, without a gap.
    pub turns: Vec<StoredTurn>,
    /// Summary of the turns before them.
    pub summary: Option<Summary>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub text: String,
    /// The last turn that the summary covers.
    pub through: u32,
}

/// A position in the list of sessions: the last one that was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCursor {
    pub updated_at: Timestamp,
    pub id: SessionId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionUpdate {
    /// Replaces the provisional title, and no other.
    Title(String),
    /// Replaces a summary that covers fewer turns.
    Summary(Summary),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionSelection {
    Listed(Vec<SessionId>),
    /// All of the user, with their profile.
    All,
}
