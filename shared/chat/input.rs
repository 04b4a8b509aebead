//! What a turn is asked, checked at the edge.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FinishedTurn, TurnClosing, TurnFinish, TurnRecord};
use crate::{
    conversation::Lease,
    identity::{SessionId, UserId},
    language::Language,
    llm::Message,
    memory::Filter,
    tools::ToolSelection,
};

/// What a user asks.
#[derive(Debug, Clone)]
pub struct TurnInput {
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
    pub tools: ToolSelection,
    /// The right to keep the turn; `None` = nothing of it is kept.
    pub lease: Option<Lease>,
}

impl TurnInput {
    /// What is kept of a turn that is stopped before the model is asked.
    pub(super) fn broken_off(&self) -> TurnClosing {
        let messages = vec![Message::User(self.message.clone())];
        let mut record = TurnRecord::new(messages, self.model.clone().unwrap_or_default(), TurnFinish::Cancelled);
        record.language_tag.clone_from(&self.profile.language_tag);
        record.timezone.clone_from(&self.profile.timezone);
        TurnClosing { turn: Some(FinishedTurn { record, is_complete: false }), resumed_turn: None }
    }
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
        time_zone(&self.timezone)
    }

    /// This profile, with what it does not tell taken from an earlier one. A gateway may know a nickname and nothing else.
    #[must_use]
    pub fn with_defaults_from(self, earlier: Self) -> Self {
        if self == Self::default() {
            return earlier;
        }
        let text = |new: String, old: String| if new.is_empty() { old } else { new };
        let mut preferences = earlier.preferences;
        preferences.extend(self.preferences);
        Self {
            nickname: text(self.nickname, earlier.nickname),
            timezone: text(self.timezone, earlier.timezone),
            language_tag: text(self.language_tag, earlier.language_tag),
            // Whoever tells anything tells the plan, which has no third value.
            is_pro: self.is_pro,
            preferences,
            extra_context: if self.extra_context.is_null() { earlier.extra_context } else { self.extra_context },
            level: if self.level == 0 { earlier.level } else { self.level },
        }
    }

    /// The language of statuses, errors and the prompt.
    #[must_use]
    pub fn language(&self) -> Language {
        Language::from_tag(&self.language_tag)
    }
}

/// The time zone of a name; UTC where it is of none.
pub(super) fn time_zone(name: &str) -> TimeZone {
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
