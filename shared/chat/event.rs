//! The events of a turn. Each becomes one frame, except [`TurnEvent::Closing`], which is for the run driver.
//!
//! Order: `Thinking`, then `Searching`, `Recalled`, then rounds of `Generating`, deltas, `ExecutingTools` and tool events; at
//! last `Closing`, `Usage` and exactly one event for which [`TurnEvent::is_last`] holds.

use serde_json::Value;

use super::{recall::RecalledMemory, record::TurnRecord, usage::UsageReport};
use crate::{
    conversation::PendingTurnId,
    llm::{Finish, ModelError, ToolCall},
    tools::ToolFailure,
};

#[derive(Debug)]
pub enum TurnEvent {
    StageEntered(Stage),
    /// Best first; never empty.
    Recalled(Vec<RecalledMemory>),
    /// The next piece of the answer, never empty.
    Delta(String),
    /// The server ran a tool.
    ToolExecuted(ToolExecution),
    /// The client must run a tool.
    ToolCalled(ToolCall),
    Usage(UsageReport),
    /// The record to persist, just before the last event.
    Closing(Box<TurnClosing>),
    /// Last event: the whole answer, equal to the joined deltas.
    Answered {
        text: String,
        finish: Finish,
    },
    /// Last event of this call: the turn is pending until the client has run its tools.
    AwaitsTools,
    /// Last event of this call: a tool result was recorded, and others are missing.
    AwaitsMoreResults,
    /// Last event: there is no answer.
    Failed(TurnFailure),
}

impl TurnEvent {
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

#[derive(Debug, Default)]
pub struct TurnClosing {
    /// `None` = nothing worth persisting.
    pub turn: Option<FinishedTurn>,
    /// The pending turn that this call resumed.
    pub resumed_turn: Option<PendingTurnId>,
}

#[derive(Debug)]
pub struct FinishedTurn {
    pub record: TurnRecord,
    /// Whether the model finished; otherwise the turn was interrupted.
    pub is_complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Thinking,
    /// The memory is searched.
    Searching,
    /// The model is asked.
    Generating {
        /// Retrieval failed, and the turn goes on without memories.
        recall_failed: bool,
    },
    /// Tools run, here or at the client.
    ExecutingTools,
}

/// A run of a server tool.
#[derive(Debug)]
pub struct ToolExecution {
    pub call_id: String,
    pub name: String,
    /// An object.
    pub outcome: Result<Value, ToolFailure>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TurnFailure {
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The repetition of an invalid tool call was invalid too.
    #[error("the model sent invalid tool calls twice in a row")]
    InvalidToolCall,
    #[error("the model called tools in too many rounds of one turn")]
    ToolRoundsExceeded,
    /// The conversation store failed.
    #[error("the conversation cannot be read or persisted")]
    NotPersisted,
    #[error("the user cancelled the turn")]
    Cancelled,
    /// The client did not reconnect within the grace period, or the process that ran the turn died.
    #[error("the run was abandoned: no client reconnected")]
    Abandoned,
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Of the call, set by its entry point, or of the turn.
    #[error("the deadline of the call is exceeded")]
    DeadlineExceeded,
    /// A defect of the service.
    #[error("internal error")]
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
