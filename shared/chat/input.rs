//! The input of a turn. Its fields were validated at the edge.

use serde_json::Value;

use super::profile::Profile;
use crate::{
    conversation::Lease,
    identity::{SessionId, UserId},
    memory::Filter,
    tools::ToolSelection,
};

#[derive(Debug, Clone)]
pub struct TurnInput {
    pub user: UserId,
    pub session: SessionId,
    /// Not blank.
    pub message: String,
    pub profile: Profile,
    /// Free context for the prompt; null = none.
    pub extra_context: Value,
    /// Recent messages that the client sent along, oldest first. Persisted history replaces them.
    pub history: Vec<HistoryMessage>,
    /// `None` = the configured model.
    pub model: Option<String>,
    /// Sampling temperature, 0 to 2.
    pub temperature: Option<f32>,
    /// Token limit of the answer, at least 1.
    pub max_tokens: Option<u32>,
    /// Memories to search for this turn; `None` = no retrieval.
    pub recall: Option<Filter>,
    pub tools: ToolSelection,
    /// The right to persist the turn; `None` = a turn without persistence.
    pub lease: Option<Lease>,
}

/// The result of a tool that the client ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    pub call_id: String,
    /// JSON, or an error message.
    pub outcome: Result<String, String>,
}

/// A message from before this turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryMessage {
    pub speaker: Speaker,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaker {
    User,
    Assistant,
    /// The client's own instructions.
    System,
    /// A tool of this name, which may be empty.
    Tool(String),
}
