//! What the memory takes and gives.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};

use super::{Filter, PageToken};

/// Free data of a memory, in a stable order.
pub type Metadata = BTreeMap<String, String>;

/// What kind of source a turn of a conversation is, kept word for word.
pub const CHAT_SOURCE_TYPE: &str = "chat";

/// A memory to keep. The edge has checked its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMemory {
    /// Chosen by the client; `None` = the one that the same content has already, or else a new UUIDv7.
    pub id: Option<String>,
    /// The text, verbatim.
    pub content: String,
    /// What kind of source it comes from.
    pub source_type: String,
    /// Labels to filter by.
    pub tags: Vec<String>,
    /// `None` = now.
    pub created_at: Option<Timestamp>,
    /// Kept and given back as it is.
    pub metadata: Metadata,
    /// Ids of memories that this one replaces.
    pub supersedes: Vec<String>,
}

/// What became of memories that were added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddOutcome {
    /// An id for each, in the order given.
    pub ids: Vec<String>,
    /// How many rows were written.
    pub added: usize,
    /// How many were there already with the same content.
    pub unchanged: usize,
}

/// A document to keep as chunks.
#[derive(Debug, Clone, PartialEq)]
pub struct NewDocument {
    /// Chosen by the client.
    pub id: String,
    /// What it is called; may be empty.
    pub title: String,
    /// Plain text or Markdown, not blank.
    pub content: String,
    /// Where it can be opened; may be empty.
    pub url: String,
    /// Labels of every chunk.
    pub tags: Vec<String>,
    /// Free data of every chunk.
    pub metadata: Metadata,
}

/// A correction; `None` = as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryUpdate {
    /// Which memory.
    pub id: String,
    /// The right text.
    pub content: Option<String>,
    /// The right labels.
    pub tags: Option<Vec<String>>,
    /// The right free data.
    pub metadata: Option<Metadata>,
}

/// A memory as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Unique for the user.
    pub id: String,
    /// The text.
    pub content: String,
    /// What kind of source it comes from.
    pub source_type: String,
    /// Labels to filter by.
    pub tags: Vec<String>,
    /// Kept as it was given.
    pub metadata: Metadata,
    /// When what it tells happened.
    pub created_at: Timestamp,
    /// When the row was last written.
    pub updated_at: Timestamp,
    /// The memory that replaced it, after which it is kept and never found.
    pub superseded_by: Option<String>,
    /// Where it stands, if it is a chunk of a document.
    pub location: Option<ChunkLocation>,
}

/// Where a chunk stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkLocation {
    /// Its document.
    pub document_id: String,
    /// What the document is called; may be empty.
    pub title: String,
    /// Where it can be opened; may be empty.
    pub url: String,
    /// The headings above the chunk, outermost first; empty before the first.
    pub section: String,
    /// Its number in the document, from 0.
    pub chunk_index: u32,
}

/// A memory as it was before a correction.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryVersion {
    /// The text.
    pub content: String,
    /// Its labels.
    pub tags: Vec<String>,
    /// Its free data.
    pub metadata: Metadata,
    /// When it was corrected.
    pub replaced_at: Timestamp,
}

/// A memory with all that is held of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportedMemory {
    /// As it is now.
    pub memory: Memory,
    /// What it was before corrections, oldest first.
    pub history: Vec<MemoryVersion>,
}

/// A question to the memory.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalQuery {
    /// What to look for; not blank.
    pub text: String,
    /// Most memories to give.
    pub limit: usize,
    /// Least score, 0 to 1; 0 = no floor.
    pub min_score: f32,
    /// What a memory must match.
    pub filter: Filter,
    /// How much meaning counts against words, 0 to 1.
    pub alpha: f32,
    /// Where the user's days begin, for what a query says of time.
    pub time_zone: TimeZone,
}

/// Memories that were found.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalResult {
    /// Best first, each with its score from 0 to 1.
    pub hits: Vec<(Memory, f32)>,
    /// How many passed filter and floor, counted up to [`MAX_COUNTED`](super::MAX_COUNTED).
    pub total: usize,
    /// The one leg that could be searched where both were asked for; `None` = what was asked for was searched.
    pub degraded_to: Option<Retriever>,
}

/// What memories are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retriever {
    /// By words.
    Lexical,
    /// By meaning.
    Vector,
}

/// A page of memories.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPage {
    /// Newest first.
    pub memories: Vec<Memory>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<PageToken>,
}

/// Which memories to forget.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// Those with these ids.
    Ids(Vec<String>),
    /// All chunks of a document.
    Document(String),
    /// Those that match a filter with at least one part set.
    Matching(Filter),
}
