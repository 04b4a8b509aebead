//! Long-term memory: what is kept of a user, and finding it again.
//!
//! The engine puts embedding and storage together. It knows nothing of turns, prompts or frames.

mod bm25;
mod document;
mod engine;
mod error;
mod filter;
mod indexed;
mod keyword;
mod learn;
mod maintain;
mod record;
mod retrieve;
mod splitter;
mod store;
mod temporal;
mod tokenizer;

pub use engine::MemoryEngine;
pub use error::MemoryError;
pub use filter::Filter;
pub use learn::{Kept, Lesson};
pub use maintain::Reembedded;
pub use record::{
    Added, CHAT, Correction, Exported, Found, Leg, Memory, Metadata, NewDocument, NewMemory, Page, Place, Query,
    Selection, Version,
};
pub use store::PageToken;

/// Most bytes of a query.
pub const MAX_QUERY_BYTES: usize = 10_000;

/// Matches are counted up to this number.
pub const MAX_COUNTED: usize = 1_000;

/// How much meaning counts against words where nobody says.
pub const DEFAULT_ALPHA: f32 = 0.5;

/// The distinct search terms of a text, at most 256.
pub(crate) fn terms(text: &str) -> Vec<String> {
    keyword::terms(text)
}
