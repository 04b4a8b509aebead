use jiff::Timestamp;

use crate::identity::{RequestId, SessionId};

pub const MAX_TITLE_BYTES: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub title: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub turns: u32,
    pub running: Option<RequestId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTurn {
    /// From 1.
    pub seq: u32,
    pub request: RequestId,
    pub record: Vec<u8>,
    /// Estimated cost of the turn in a prompt.
    pub tokens: u32,
    pub is_complete: bool,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Oldest first, without a gap.
    pub turns: Vec<StoredTurn>,
    pub summary: Option<Summary>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub text: String,
    pub through: u32,
}

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
    /// Deletes the user's profile as well.
    All,
}
