//! Long-term memory of each user, with vectors and an inverted index. Knows nothing of turns, prompts or frames.

mod budget;
mod digest;
mod document;
mod embedding_budget;
mod engine;
mod error;
mod export;
mod filter;
mod index_input;
mod lexical;
mod maintenance;
mod own_questions;
mod recall;
mod record;
mod retrieve;
mod splitter;
mod store;
mod supersede;
mod timeouts;
mod tokenizer;
mod turn_memories;
mod write_batch;

pub use budget::{MAX_DOCUMENT_CHUNKS, MAX_MEMORY_TERMS, MAX_REQUEST_TERMS, count_terms};
pub use embedding_budget::EmbeddingBudget;
pub use engine::MemoryEngine;
pub use error::MemoryError;
pub use filter::Filter;
pub use maintenance::ReembedProgress;
pub use recall::select_hits;
pub use record::{
    AddOutcome, CHAT_SOURCE_TYPE, ChunkLocation, ExportedMemory, LINK_KEY, Memory, MemoryPage, MemoryUpdate,
    MemoryVersion, Metadata, NewDocument, NewMemory, PageToken, RetrievalQuery, RetrievalResult, Retriever, Selection,
};
pub use tokenizer::terms;
pub use turn_memories::{TurnMemories, TurnWriteOutcome};

pub(crate) use budget::truncate_to_terms;
pub(crate) use lexical::distinct_terms;
pub(crate) use supersede::cycles as supersede_cycles;

pub const MAX_QUERY_BYTES: usize = 10_000;

pub const MAX_COUNTED: usize = 1_000;

/// Weight of the vector retriever where the caller names none.
pub const DEFAULT_ALPHA: f32 = 0.5;
