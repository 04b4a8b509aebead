//! The persisted form of a finished turn. Its serde names are a storage format and must not change.

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::{profile, recall::RecalledMemory, usage::UsageReport};
use crate::{
    llm::{Finish, Message},
    memory::LINK_KEY,
};

const RECORD_VERSION: u32 = 1;
const TITLE_CHARS: usize = 40;
const EXCERPT_CHARS: usize = 300;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnRecord {
    version: u32,
    /// Of this turn, without the system prompt. The answer may be truncated.
    pub messages: Vec<Message>,
    #[serde(default)]
    pub citations: Vec<RecordedCitation>,
    #[serde(default)]
    pub usage: Option<RecordedUsage>,
    pub model: String,
    #[serde(default)]
    pub language_tag: String,
    #[serde(default)]
    pub timezone: String,
    pub finish: TurnFinish,
}

/// As it was at the time of the turn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordedCitation {
    pub id: String,
    pub title: String,
    pub excerpt: String,
    /// 0 to 1.
    pub score: f32,
    pub source_type: String,
    /// Empty: no chunk of a document.
    pub document_id: String,
    pub section: String,
    pub url: String,
    pub chunk: u32,
    /// 0: none.
    pub page: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecordedUsage {
    pub prompt: u32,
    pub completion: u32,
    /// `None`: the price of some model is unknown.
    #[serde(default)]
    pub cost_micro_usd: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnFinish {
    Stop,
    Length,
    ContentFilter,
    Failed,
    Cancelled,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Quotes no text of the user.
    #[error("the turn record is malformed at line {}, column {}", .0.line(), .0.column())]
    Malformed(#[from] serde_json::Error),
    #[error("the turn record has version {0}; this service reads version {RECORD_VERSION}")]
    UnknownVersion(u32),
}

impl TurnRecord {
    #[must_use]
    pub fn new(messages: Vec<Message>, model: String, finish: TurnFinish) -> Self {
        Self {
            version: RECORD_VERSION,
            messages,
            citations: Vec::new(),
            usage: None,
            model,
            language_tag: String::new(),
            timezone: String::new(),
            finish,
        }
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordError> {
        Ok(serde_json::to_vec(self)?)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != RECORD_VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    #[must_use]
    pub fn question(&self) -> Option<&str> {
        self.messages.iter().find_map(|message| match message {
            Message::User(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// `None` if the turn ended at tool calls.
    #[must_use]
    pub fn answer(&self) -> Option<&str> {
        match self.messages.last() {
            Some(Message::Assistant { content, calls, .. }) if calls.is_empty() => Some(content),
            _ => None,
        }
    }

    #[must_use]
    pub fn zone(&self) -> TimeZone {
        profile::time_zone(&self.timezone)
    }

    #[must_use]
    pub fn provisional_title(&self) -> String {
        let words = self.question().unwrap_or_default().split_whitespace();
        let line = words.take(TITLE_CHARS).collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(TITLE_CHARS) {
            None if line.is_empty() => "…".to_owned(),
            None => line,
            Some((end, _)) => format!("{}…", line[..end].trim_end()),
        }
    }

    /// The answer may repeat memories or tool results.
    #[must_use]
    pub fn is_grounded(&self) -> bool {
        !self.citations.is_empty() || self.messages.iter().any(|message| matches!(message, Message::Tool { .. }))
    }

    #[must_use]
    pub fn estimate_tokens(&self) -> u32 {
        self.messages.iter().fold(0, |sum, message| sum.saturating_add(message.estimate_tokens()))
    }
}

impl From<&RecalledMemory> for RecordedCitation {
    fn from(RecalledMemory { memory, score, title }: &RecalledMemory) -> Self {
        let metadata = |name: &str| memory.metadata.get(name).cloned().unwrap_or_default();
        let number = |name: &str| metadata(name).parse().unwrap_or_default();
        let location = memory.location.as_ref();
        // A memory that is no chunk may have its source in its metadata.
        Self {
            id: memory.id.clone(),
            title: title.clone(),
            excerpt: memory.content.chars().take(EXCERPT_CHARS).collect(),
            score: *score,
            source_type: memory.source_type.clone(),
            document_id: location.map(|location| location.document_id.clone()).unwrap_or_default(),
            section: location.map_or_else(|| metadata("section_title"), |location| location.section.clone()),
            url: location.map_or_else(|| metadata(LINK_KEY), |location| location.url.clone()),
            chunk: location.map_or_else(|| number("chunk_index"), |location| location.chunk_index),
            page: number("page_number"),
        }
    }
}

impl From<&UsageReport> for RecordedUsage {
    fn from(spent: &UsageReport) -> Self {
        Self { prompt: spent.usage.prompt, completion: spent.usage.completion, cost_micro_usd: spent.cost_micro_usd }
    }
}

impl From<Finish> for TurnFinish {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Stop => Self::Stop,
            Finish::Length => Self::Length,
            Finish::ContentFilter => Self::ContentFilter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::ToolCall;

    fn record() -> TurnRecord {
        let call = ToolCall { id: "c".into(), name: "f".into(), arguments: "{}".into() };
        let assistant = |content: &str, calls| Message::Assistant { content: content.into(), reasoning: None, calls };
        let messages = vec![
            Message::User("q".into()),
            assistant("", vec![call]),
            Message::Tool { call_id: "c".into(), content: "{}".into() },
            assistant("a", Vec::new()),
        ];
        TurnRecord::new(messages, "m".into(), TurnFinish::Stop)
    }

    #[test]
    fn record_survives_serialization() {
        let mut record = record();
        record.citations.push(RecordedCitation { id: "m1".into(), score: 0.5, ..Default::default() });
        record.usage = Some(RecordedUsage { prompt: 1, completion: 2, cost_micro_usd: None });
        let again = TurnRecord::from_bytes(&record.to_bytes().unwrap()).unwrap();
        assert_eq!(again, record);
        assert_eq!((again.question(), again.answer(), again.is_grounded()), (Some("q"), Some("a"), true));
    }

    #[test]
    fn answer_is_none_for_turn_that_ended_at_tool_calls() {
        let mut record = record();
        record.messages.truncate(2);
        assert_eq!((record.answer(), record.is_grounded()), (None, false));
    }

    #[test]
    fn from_bytes_of_bad_record_fails_without_quoting_it() {
        let mut bytes = record().to_bytes().unwrap();
        let later = String::from_utf8(bytes.clone()).unwrap().replace("\"version\":1", "\"version\":2");
        assert!(matches!(TurnRecord::from_bytes(later.as_bytes()), Err(RecordError::UnknownVersion(2))));
        bytes.truncate(40);
        assert!(matches!(TurnRecord::from_bytes(&bytes), Err(RecordError::Malformed(_))));
        let odd = br#"{"version":1,"messages":"secret"}"#;
        assert!(!TurnRecord::from_bytes(odd).unwrap_err().to_string().contains("secret"));
    }
}
