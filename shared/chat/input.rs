//! The input of a turn, validated at the edge.

use serde_json::Value;

use super::profile::Profile;
use crate::{
    conversation::{History, Lease},
    identity::{SessionId, UserId},
    language::Language,
    memory::Filter,
    tools::ToolSelection,
};

#[derive(Debug, Clone)]
pub struct TurnInput {
    pub user: UserId,
    pub session: SessionId,
    pub message: String,
    pub profile: Profile,
    /// Of statuses, errors and the prompt. The profile may name none.
    pub language: Language,
    /// Null: none.
    pub extra_context: Value,
    /// Oldest first; persisted history replaces them.
    pub history: Vec<HistoryMessage>,
    /// `None`: the configured model.
    pub model: Option<String>,
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// At least 1.
    pub max_tokens: Option<u32>,
    /// `None`: no retrieval.
    pub recall: Option<Filter>,
    pub tools: ToolSelection,
    /// `None`: a turn without persistence.
    pub lease: Option<Lease>,
    /// If the admission has read it.
    pub stored_history: Option<History>,
}

impl TurnInput {
    /// The tag of the profile, or of the language that the turn speaks instead. It is stored with the turn.
    pub(super) fn language_tag(&self) -> &str {
        match self.profile.language_tag.as_str() {
            "" => self.language.tag(),
            tag => tag,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    pub call_id: String,
    /// JSON, or an error message.
    pub outcome: Result<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryMessage {
    pub speaker: Speaker,
    pub content: String,
}

impl HistoryMessage {
    /// White space does not count.
    pub(super) fn has_text(&self, text: &str) -> bool {
        self.content.split_whitespace().eq(text.split_whitespace())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaker {
    User,
    Assistant,
    System,
    /// The tool's name, which may be empty.
    Tool(String),
}
