//! Learns from finished turns: stores them verbatim as memories, extracts facts about the user, and writes session titles and
//! summaries. Runs after the answer, never on a request's path, and knows nothing of RPCs and frames.
//!
//! Idempotency: a turn is learned from once. The transaction that writes its facts also marks it, so a repeated delivery is a
//! no-op.

mod error;
mod fact;
mod learner;
mod limits;
mod model;
mod queue;
mod rules;
#[cfg(feature = "dynamodb")]
mod stream;
mod summarizer;
mod verbatim;
mod worker;

pub use error::LearnError;
pub use fact::{Extractor, Fact, FactKind, FactRejection, FactStatus, KnownFact, Statement};
pub use learner::{ExtractionOutcome, TurnLearner};
pub use limits::{MAX_SUMMARY_TOKENS, MAX_TITLE_CHARS, SUMMARIZE_ABOVE_TOKENS, SUMMARIZE_TO_TOKENS};
pub use model::ModelExtractor;
pub(crate) use queue::{delete_old_failed_jobs, erase_jobs, users_with_old_failed_jobs};
pub use rules::{RuleExtractor, RuleSummarizer};
#[cfg(feature = "dynamodb")]
pub use stream::{BatchItemFailures, learn_from_records};
pub use summarizer::{Exchange, ModelSummarizer, Summarizer};
pub use worker::ExtractionWorker;
