//! Sizes are checked where requests are parsed.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::{Timestamp, tz::TimeZone};

use super::Filter;
use crate::{error::check_text, identity::MAX_ID_BYTES};

pub type Metadata = BTreeMap<String, String>;

/// The key of metadata that holds the URL of a memory's source.
pub const LINK_KEY: &str = "url";

/// The source type of a turn stored verbatim.
pub const CHAT_SOURCE_TYPE: &str = "chat";

#[derive(Debug, Clone, PartialEq)]
pub struct NewMemory {
    /// Chosen by the client; `None`: the id of the same content, or else a new UUIDv7.
    pub id: Option<String>,
    pub content: String,
    pub source_type: String,
    pub tags: Vec<String>,
    /// `None`: now.
    pub created_at: Option<Timestamp>,
    pub metadata: Metadata,
    pub supersedes: Vec<String>,
}

impl NewMemory {
    /// As the inverted index reads it.
    pub(super) fn speaker(&self) -> &str {
        self.metadata.get("speaker").map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddOutcome {
    pub ids: Vec<String>,
    /// Rows that are new or changed.
    pub added: usize,
    pub unchanged: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NewDocument {
    pub id: String,
    pub title: String,
    /// Plain text or Markdown, not blank.
    pub content: String,
    pub url: String,
    pub tags: Vec<String>,
    pub metadata: Metadata,
}

/// `None`: unchanged.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryUpdate {
    pub id: String,
    pub content: Option<String>,
    pub tags: Option<Vec<String>>,
    pub metadata: Option<Metadata>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    pub id: String,
    pub content: String,
    pub source_type: String,
    pub tags: Vec<String>,
    pub metadata: Metadata,
    /// The time that the content is about.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Retrieval skips superseded memories.
    pub superseded_by: Option<String>,
    /// `None`: not a chunk of a document.
    pub location: Option<ChunkLocation>,
}

#[cfg(test)]
impl Memory {
    pub(crate) fn example(source_type: &str, content: &str) -> Self {
        let time = "2026-11-20T23:00:00Z".parse().unwrap();
        Self {
            id: "m".into(),
            content: content.into(),
            source_type: source_type.into(),
            tags: Vec::new(),
            metadata: Metadata::new(),
            created_at: time,
            updated_at: time,
            superseded_by: None,
            location: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkLocation {
    pub document_id: String,
    pub title: String,
    pub url: String,
    /// The headings above the chunk, outermost first.
    pub section: String,
    pub chunk_index: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MemoryVersion {
    pub content: String,
    pub tags: Vec<String>,
    pub metadata: Metadata,
    pub replaced_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ExportedMemory {
    pub memory: Memory,
    /// Oldest first.
    pub history: Vec<MemoryVersion>,
}

/// A smaller alpha means lexical search: some clients cannot send an explicit 0.
pub(super) const MIN_VECTOR_ALPHA: f32 = 0.001;

#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalQuery {
    pub text: String,
    pub limit: usize,
    /// 0 to 1; 0: no floor.
    pub min_score: f32,
    pub filter: Filter,
    /// Weight of the vector retriever, 0 to 1.
    pub alpha: f32,
    pub time_zone: TimeZone,
    /// Whether [`RetrievalResult::total`] is read. Counting the matches above a floor takes a score of every memory.
    pub counts_matches: bool,
}

impl RetrievalQuery {
    /// A search by keywords alone needs no vector.
    #[must_use]
    pub fn needs_vector(&self) -> bool {
        self.alpha >= MIN_VECTOR_ALPHA
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalResult {
    /// Best first, each with its score from 0 to 1.
    pub hits: Vec<(Memory, f32)>,
    /// Counted up to [`MAX_COUNTED`](super::MAX_COUNTED); at least the hits if the query does not count matches.
    pub total: usize,
    /// The only retriever that could be used where the query asks for both.
    pub degraded_to: Option<Retriever>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retriever {
    Lexical,
    Vector,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPage {
    pub memories: Vec<Memory>,
    /// `None` on the last page.
    pub next: Option<PageToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken {
    pub(super) created_at: Timestamp,
    pub(super) id: String,
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.created_at.as_microsecond(), self.id)
    }
}

impl FromStr for PageToken {
    type Err = ();

    fn from_str(token: &str) -> Result<Self, ()> {
        let (micros, id) = token.split_once('.').ok_or(())?;
        let created_at = Timestamp::from_microsecond(micros.parse().map_err(|_| ())?).map_err(|_| ())?;
        check_text("page_token", id, MAX_ID_BYTES).map_err(|_| ())?;
        Ok(Self { created_at, id: id.to_owned() })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    Ids(Vec<String>),
    Document(String),
    /// At least one part of the filter is set.
    Matching(Filter),
}
