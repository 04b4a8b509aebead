//! What happens in a turn. Each event becomes one frame.

use serde_json::Value;

use super::TurnRecord;
use crate::{
    conversation::PendingTurnId,
    llm::{Finish, ModelError, TokenUsage, ToolCall},
    memory::Memory,
    tools::ToolFailure,
};

/// Something that happened in a turn.
#[derive(Debug)]
pub enum TurnEvent {
    /// A new stage has begun.
    StageEntered(Stage),
    /// Memories were found for the question, best first; never empty.
    Recalled(Vec<RecalledMemory>),
    /// The next piece of the answer, never empty.
    Delta(String),
    /// A tool that the server runs has run.
    ToolExecuted(ToolExecution),
    /// A tool that the client is to run.
    ToolCalled(ToolCall),
    /// What the turn cost.
    Usage(UsageReport),
    /// What is to be kept of the turn, just before its end. It is not for the client.
    Closing(Box<TurnClosing>),
    /// The end: the whole answer, equal to the joined deltas.
    Answered {
        /// The whole answer.
        text: String,
        /// Why the model stopped.
        finish: Finish,
    },
    /// The end for now: the turn goes on when the client has run the tools.
    AwaitsTools,
    /// The end for now: a result was taken, and others are missing.
    AwaitsMoreResults,
    /// The end: no answer.
    Failed(TurnFailure),
}

impl TurnEvent {
    /// Whether it is the last one of its call.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self {
            Self::Answered { .. } | Self::AwaitsTools | Self::AwaitsMoreResults | Self::Failed(_) => true,
            Self::StageEntered(_)
            | Self::Recalled(_)
            | Self::Delta(_)
            | Self::ToolExecuted(_)
            | Self::ToolCalled(_)
            | Self::Usage(_)
            | Self::Closing(_) => false,
        }
    }
}

/// What is to be kept of a turn that ends.
#[derive(Debug, Default)]
pub struct TurnClosing {
    /// The turn, if it is over and worth keeping.
    pub turn: Option<FinishedTurn>,
    /// Of a turn that waited for tools and went on in this call.
    pub resumed_turn: Option<PendingTurnId>,
}

/// A turn that is over.
#[derive(Debug)]
pub struct FinishedTurn {
    /// What was said.
    pub record: TurnRecord,
    /// Whether it came to its end; otherwise it was interrupted.
    pub is_complete: bool,
}

/// Stages of a turn.
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
    /// Before tools are run, here or by the client.
    ExecutingTools,
}

/// A memory that a turn is grounded in.
#[derive(Debug, Clone)]
pub struct RecalledMemory {
    /// The memory.
    pub memory: Memory,
    /// How well it fits, 0 to 1.
    pub score: f32,
}

/// A tool that the server has run.
#[derive(Debug)]
pub struct ToolExecution {
    /// The call that it answers.
    pub call_id: String,
    /// The tool.
    pub name: String,
    /// What it gave: an object.
    pub outcome: Result<Value, ToolFailure>,
}

/// Tokens that a call has spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageReport {
    /// All together.
    pub usage: TokenUsage,
    /// What they cost, in micro-dollars; `None` = for some of them nobody knows.
    pub cost_micro_usd: Option<i64>,
    /// Whether we guessed some of them, because the model did not tell.
    pub is_estimated: bool,
    /// Who answered.
    pub model: String,
    /// Each model's share, where several were asked.
    pub by_model: Vec<(String, TokenUsage)>,
}

/// Why a turn has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TurnFailure {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model called tools in a way that they can not be called in, and did so again after it was told.
    #[error("the model called a tool wrongly, twice")]
    InvalidToolCall,
    /// The model called tools again and again.
    #[error("the model called tools too often in one turn")]
    ToolRoundsExceeded,
    /// The conversation can not be read or kept.
    #[error("the conversation can not be read or kept")]
    NotPersisted,
    /// The user stopped it.
    #[error("the user stopped the turn")]
    Cancelled,
    /// The client was lost and did not come back, or the process that answered was.
    #[error("nobody came back for the answer")]
    Abandoned,
    /// The server stops.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The way in has no more time for the turn.
    #[error("the time for the call is over")]
    DeadlineExceeded,
    /// A defect of ours.
    #[error("an internal defect")]
    Internal,
}

impl TurnFailure {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Model(error) => error.kind.is_retryable(),
            Self::InvalidToolCall
            | Self::NotPersisted
            | Self::Abandoned
            | Self::ShuttingDown
            | Self::DeadlineExceeded => true,
            Self::ToolRoundsExceeded | Self::Cancelled | Self::Internal => false,
        }
    }
}
