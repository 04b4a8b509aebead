//! Long-term memory: what is kept of a user, and finding it again.
//!
//! The engine puts embedding and storage together. It knows nothing of turns, prompts or frames.

mod bm25;
mod document;
mod engine;
mod error;
mod filter;
mod index_input;
mod lexical;
mod maintenance;
mod record;
mod retrieve;
mod splitter;
mod store;
mod tokenizer;
mod turn_memories;

pub use engine::MemoryEngine;
pub use error::MemoryError;
pub use filter::Filter;
pub use maintenance::ReembedProgress;
pub use record::{
    AddOutcome, CHAT_SOURCE_TYPE, ChunkLocation, ExportedMemory, Memory, MemoryPage, MemoryUpdate, MemoryVersion,
    Metadata, NewDocument, NewMemory, RetrievalQuery, RetrievalResult, Retriever, Selection,
};
pub use store::PageToken;
pub use turn_memories::{TurnMemories, TurnWriteOutcome};

/// Most bytes of a query.
pub const MAX_QUERY_BYTES: usize = 10_000;

/// Matches are counted up to this number.
pub const MAX_COUNTED: usize = 1_000;

/// How much meaning counts against words where nobody says.
pub const DEFAULT_ALPHA: f32 = 0.5;

/// The distinct search terms of a text, at most 256.
pub(crate) fn terms(text: &str) -> Vec<String> {
    lexical::query_terms(text)
}
