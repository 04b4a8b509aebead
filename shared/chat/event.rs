//! What happens in a turn. Each event becomes one frame.

use crate::{
    llm::{Finish, ModelError, TokenUsage},
    memory::Memory,
};

/// Something that happened in a turn.
#[derive(Debug)]
pub enum Event {
    /// A new stage has begun.
    Entered(Stage),
    /// Memories were found for the question, best first; never empty.
    Recalled(Vec<Recalled>),
    /// The next piece of the answer, never empty.
    Delta(String),
    /// What the turn cost.
    Spent(Spent),
    /// The end: the whole answer, equal to the joined deltas.
    Answered {
        /// The whole answer.
        text: String,
        /// Why the model stopped.
        finish: Finish,
    },
    /// The end: no answer.
    Failed(Failure),
}

/// Stages of a turn, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before anything is done.
    Thinking,
    /// Before the memory is searched.
    Searching,
    /// Before the model is asked.
    Generating {
        /// The memory could not be searched, and the turn goes on without it.
        recall_failed: bool,
    },
}

/// A memory that a turn is grounded in.
#[derive(Debug, Clone)]
pub struct Recalled {
    /// The memory.
    pub memory: Memory,
    /// How well it fits, 0 to 1.
    pub score: f32,
}

/// Tokens that a turn has spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// The counts.
    pub usage: TokenUsage,
    /// Whether we guessed them, because the model did not tell.
    pub estimated: bool,
    /// Who answered.
    pub model: String,
}

/// Why a turn has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The server stops.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The way in has no more time for the turn.
    #[error("the time for the call is over")]
    OutOfTime,
    /// A defect of ours.
    #[error("an internal defect")]
    Internal,
}
