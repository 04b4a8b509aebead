//! What is kept of a conversation.

use jiff::Timestamp;

use crate::identity::{RequestId, SessionId};

/// Longest title, in bytes.
pub const MAX_TITLE_BYTES: usize = 256;

/// A conversation, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id, unique for the user.
    pub id: SessionId,
    /// What it is called.
    pub title: String,
    /// Its first turn.
    pub created_at: Timestamp,
    /// Its last turn.
    pub updated_at: Timestamp,
    /// How many turns.
    pub turns: u32,
    /// The request that it answers just now.
    pub running: Option<RequestId>,
}

/// A turn that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTurn {
    /// Its place in the conversation; that of the first turn is 1.
    pub seq: u32,
    /// The request that ended it.
    pub request: RequestId,
    /// What was said, as it was given.
    pub record: Vec<u8>,
    /// A rough count of what it costs to tell a model of it.
    pub tokens: u32,
    /// Whether it came to its end; otherwise it was interrupted.
    pub is_complete: bool,
    /// When it was kept.
    pub created_at: Timestamp,
}

/// What a model is told of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// The last turns, oldest first, without a gap.
    pub turns: Vec<StoredTurn>,
    /// What was before them.
    pub summary: Option<Summary>,
}

/// The beginning of a conversation in few words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The words.
    pub text: String,
    /// The last turn that is in it.
    pub through: u32,
}

/// A place in a list of conversations, latest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCursor {
    /// Of the last one that was listed.
    pub updated_at: Timestamp,
    /// The last one that was listed.
    pub id: SessionId,
}

/// Something that was found out about a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionUpdate {
    /// A title, which takes the place of the provisional one and of no other.
    Title(String),
    /// A summary, which takes the place of one that reaches less far.
    Summary(Summary),
}

/// Which conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionSelection {
    /// These.
    Listed(Vec<SessionId>),
    /// All of the user, and everything else that is kept of them here.
    All,
}
