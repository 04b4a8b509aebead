//! What a turn is asked, checked at the edge.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde_json::Value;

use crate::{
    identity::{SessionId, UserId},
    language::Language,
    memory::Filter,
    tools::Wanted,
};

/// What a user asks.
#[derive(Debug, Clone)]
pub struct TurnRequest {
    /// Who asks.
    pub user: UserId,
    /// In which conversation.
    pub session: SessionId,
    /// What is asked; not blank.
    pub message: String,
    /// How the user wants to be spoken to.
    pub profile: Profile,
    /// Free context for the prompt; null = none.
    pub extra_context: Value,
    /// Recent messages, oldest first.
    pub history: Vec<HistoryMessage>,
    /// Model, if the request names one.
    pub model: Option<String>,
    /// Sampling temperature, 0 to 2.
    pub temperature: Option<f32>,
    /// Most tokens of the answer, at least 1.
    pub max_tokens: Option<u32>,
    /// Which memories to search for this turn; `None` = no retrieval.
    pub recall: Option<Filter>,
    /// Tools that the model may call.
    pub tools: Wanted,
}

/// What came of a tool that the client ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// The call that it answers.
    pub call_id: String,
    /// What the tool gave, or why it gave nothing.
    pub outcome: Result<String, String>,
}

/// Who the user is and how they want to be spoken to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// What to call the user.
    pub nickname: String,
    /// IANA name of the time zone; anything else counts as UTC.
    pub timezone: String,
    /// BCP 47 tag.
    pub language_tag: String,
    /// Whether the user has a paid plan.
    pub is_pro: bool,
    /// Settings by name.
    pub preferences: BTreeMap<String, String>,
    /// Free context from the profile; null = none.
    pub extra_context: Value,
    /// Level of the learner; 0 = unknown.
    pub level: i32,
}

impl Profile {
    /// Where the user's days begin; UTC where the name is of no zone.
    #[must_use]
    pub fn zone(&self) -> TimeZone {
        zone(&self.timezone)
    }

    /// The language of statuses, errors and the prompt.
    #[must_use]
    pub fn language(&self) -> Language {
        Language::from_tag(&self.language_tag)
    }
}

/// The time zone of a name; UTC where it is of none.
pub(super) fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}

/// A message from before this turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryMessage {
    /// Who said it.
    pub speaker: Speaker,
    /// What was said.
    pub content: String,
}

/// Who said something before this turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaker {
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The client's own instructions.
    System,
    /// A tool of this name, which may be empty.
    Tool(String),
}
