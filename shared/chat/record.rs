//! A turn as it is kept when it is over: for whoever shows the conversation, tells a model of it, or learns from it.

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::{RecalledMemory, UsageReport, input};
use crate::llm::{Finish, Message};

/// The form in which turns are written today.
const RECORD_VERSION: u32 = 1;
/// Characters of a title that is made of a question.
const TITLE_CHARS: usize = 40;
/// Characters of a citation's excerpt.
const EXCERPT_CHARS: usize = 300;

/// What is kept of a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnRecord {
    version: u32,
    /// What was said in this turn alone: the user's message, calls of tools with their results, and the answer as far as it
    /// came. No instructions of the service and nothing of earlier turns.
    pub messages: Vec<Message>,
    /// Memories that the answer is grounded in.
    #[serde(default)]
    pub citations: Vec<RecordedCitation>,
    /// Tokens that it took; `None` = nobody knows.
    #[serde(default)]
    pub usage: Option<RecordedUsage>,
    /// Who answered.
    pub model: String,
    /// BCP 47 tag of the user's language.
    #[serde(default)]
    pub language_tag: String,
    /// IANA name of the user's time zone; anything else counts as UTC.
    #[serde(default)]
    pub timezone: String,
    /// How it ended.
    pub finish: TurnFinish,
}

/// A memory that a turn was grounded in, as it was then.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordedCitation {
    /// The memory.
    pub id: String,
    /// What its document is called; may be empty.
    pub title: String,
    /// Its beginning.
    pub excerpt: String,
    /// How well it fitted, 0 to 1.
    pub score: f32,
    /// What kind of source it comes from.
    pub source_type: String,
    /// The document that it is a chunk of; empty = none.
    pub document_id: String,
    /// The headings above the chunk.
    pub section: String,
    /// Where it can be opened; may be empty.
    pub url: String,
    /// Its number in the document.
    pub chunk: u32,
    /// Its page, where its metadata tell one; 0 = none.
    pub page: u32,
}

/// Tokens of a turn and what they cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecordedUsage {
    /// Tokens of what was asked.
    pub prompt: u32,
    /// Tokens of what was answered.
    pub completion: u32,
    /// In micro-dollars; `None` = for some of them nobody knows.
    #[serde(default)]
    pub cost_micro_usd: Option<i64>,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnFinish {
    /// The answer is complete.
    Stop,
    /// The limit of tokens is reached.
    Length,
    /// The provider's filter cut it.
    ContentFilter,
    /// It failed on the way.
    Failed,
    /// The user stopped it, or left.
    Cancelled,
}

/// Why a record can not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not of the expected form.
    #[error("the record of a turn is malformed at line {}, column {}", .0.line(), .0.column())]
    Malformed(#[from] serde_json::Error),
    /// A later version of the service wrote it.
    #[error("the record of a turn is of version {0}, which is not known")]
    UnknownVersion(u32),
}

impl TurnRecord {
    /// A record of what was said, with nothing known of what it cost.
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

    /// As it is stored.
    ///
    /// # Errors
    /// Never, because everything in it can be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads what was stored.
    ///
    /// # Errors
    /// It is of another form or of a later version.
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

    /// The user's message, with which the turn began.
    #[must_use]
    pub fn question(&self) -> Option<&str> {
        self.messages.iter().find_map(|message| match message {
            Message::User(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The answer, or as much of it as there is: what the model said last, if it called no tools.
    #[must_use]
    pub fn answer(&self) -> Option<&str> {
        match self.messages.last() {
            Some(Message::Assistant { content, calls, .. }) if calls.is_empty() => Some(content),
            _ => None,
        }
    }

    /// Where the user's days begin; UTC where the name is of no zone.
    #[must_use]
    pub fn zone(&self) -> TimeZone {
        input::time_zone(&self.timezone)
    }

    /// What a conversation that begins with this turn is called until it gets a better title: the beginning of the question.
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

    /// Whether the answer may repeat what was recalled or what tools gave.
    #[must_use]
    pub fn is_grounded(&self) -> bool {
        !self.citations.is_empty() || self.messages.iter().any(|message| matches!(message, Message::Tool { .. }))
    }

    /// A rough count of what it costs to tell a model of it.
    #[must_use]
    pub fn estimate_tokens(&self) -> u32 {
        self.messages.iter().fold(0, |sum, message| sum.saturating_add(message.estimate_tokens()))
    }
}

impl From<&RecalledMemory> for RecordedCitation {
    fn from(RecalledMemory { memory, score }: &RecalledMemory) -> Self {
        let told = |name: &str| memory.metadata.get(name).cloned().unwrap_or_default();
        let number = |name: &str| told(name).parse().unwrap_or_default();
        let place = memory.location.as_ref();
        // A memory that is no chunk may tell by its metadata where it comes from.
        Self {
            id: memory.id.clone(),
            title: place.map_or_else(|| told("title"), |place| place.title.clone()),
            excerpt: memory.content.chars().take(EXCERPT_CHARS).collect(),
            score: *score,
            source_type: memory.source_type.clone(),
            document_id: place.map(|place| place.document_id.clone()).unwrap_or_default(),
            section: place.map_or_else(|| told("section_title"), |place| place.section.clone()),
            url: place.map_or_else(|| told("url"), |place| place.url.clone()),
            chunk: place.map_or_else(|| number("chunk_index"), |place| place.chunk_index),
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
    fn what_was_written_is_read_again() {
        let mut record = record();
        record.citations.push(RecordedCitation { id: "m1".into(), score: 0.5, ..Default::default() });
        record.usage = Some(RecordedUsage { prompt: 1, completion: 2, cost_micro_usd: None });
        let again = TurnRecord::from_bytes(&record.to_bytes().unwrap()).unwrap();
        assert_eq!(again, record);
        assert_eq!((again.question(), again.answer(), again.is_grounded()), (Some("q"), Some("a"), true));
    }

    #[test]
    fn a_turn_that_broke_off_at_its_tools_has_no_answer() {
        let mut record = record();
        record.messages.truncate(2);
        assert_eq!((record.answer(), record.is_grounded()), (None, false));
    }

    #[test]
    fn a_record_that_can_not_be_read_is_an_error_that_quotes_nothing_of_it() {
        let mut bytes = record().to_bytes().unwrap();
        let later = String::from_utf8(bytes.clone()).unwrap().replace("\"version\":1", "\"version\":2");
        assert!(matches!(TurnRecord::from_bytes(later.as_bytes()), Err(RecordError::UnknownVersion(2))));
        bytes.truncate(40);
        assert!(matches!(TurnRecord::from_bytes(&bytes), Err(RecordError::Malformed(_))));
        let odd = br#"{"version":1,"messages":"secret"}"#;
        assert!(!TurnRecord::from_bytes(odd).unwrap_err().to_string().contains("secret"));
    }
}
