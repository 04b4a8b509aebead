//! Learning from turns that are over: they are remembered word for word, facts about the user are found in what the user
//! said, and the conversation gets a title and, when it grows long, a summary.
//!
//! The room knows what a turn is, the memory, and models. It knows nothing of calls and frames, and nobody waits for it.

mod fact;
mod guard;
mod jobs;
mod learner;
mod model;
mod own_words;
mod rules;
#[cfg(feature = "dynamodb")]
mod stream;
mod summarizer;
mod verbatim;
mod worker;

pub use fact::{Extractor, Fact, FactKind, FactRejection, FactStatus, KnownFact, Statement};
pub(crate) use jobs::erase_jobs;
pub use learner::{ExtractionOutcome, TurnLearner};
pub use model::ModelExtractor;
pub use rules::RuleExtractor;
#[cfg(feature = "dynamodb")]
pub use stream::{BatchItemFailures, learn_from_records};
pub use summarizer::{Exchange, ModelSummarizer, RuleSummarizer, Summarizer};
pub use worker::ExtractionWorker;

use crate::{chat::RecordError, conversation::StoreError, llm::ModelError, memory::MemoryError};

/// Tokens of the last turns that a model is told of word for word.
pub const HISTORY_TOKENS: u32 = 6_000;
/// When more tokens of turns than this are in no summary, the oldest of them are summed up …
pub const SUMMARIZE_ABOVE_TOKENS: u32 = 4_500;
/// … until no more than this are left. Between both there is room for the turns that end while that is done.
pub const SUMMARIZE_TO_TOKENS: u32 = 2_500;
/// Most tokens of a summary.
pub const MAX_SUMMARY_TOKENS: u32 = 600;
/// Most characters of a title.
pub const MAX_TITLE_CHARS: usize = 60;

/// Why something could not be learned. It holds no text of the user.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The turn can not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The memory failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The store of conversations failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What the model gave is not what it was asked for.
    #[error("what the model gave can not be used: {0}")]
    Malformed(&'static str),
    /// The model took too long, or there is no time for the turn.
    #[error("it took too long")]
    Timeout,
    /// A prompt can not be made, which a test excludes.
    #[error("a prompt can not be made: {0}")]
    Prompt(#[from] minijinja::Error),
}
