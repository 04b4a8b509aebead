//! Order: `Thinking`, `Searching`, `Recalled`, rounds of `Generating`, deltas, `ExecutingTools` and tool events, then
//! `Closing` (for the run driver; all others become frames), `Usage`, and one last event.

use serde::Serialize;
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
    /// Never empty.
    Delta(String),
    ToolExecuted(ToolExecution),
    /// The client must run it.
    ToolCalled(ToolCall),
    /// The client must approve a call that the server runs then.
    ApprovalRequested(ApprovalRequest),
    Usage(UsageReport),
    Closing(Box<TurnClosing>),
    /// Equal to the joined deltas.
    Answered {
        text: String,
        finish: Finish,
    },
    AwaitsTools,
    AwaitsMoreResults,
    Failed(TurnFailure),
}

impl TurnEvent {
    #[must_use]
    pub fn is_last(&self) -> bool {
        // Exhaustive, so that a new event decides whether it ends its stream.
        match self {
            Self::Answered { .. } | Self::AwaitsTools | Self::AwaitsMoreResults | Self::Failed(_) => true,
            Self::StageEntered(_)
            | Self::Recalled(_)
            | Self::Delta(_)
            | Self::ToolExecuted(_)
            | Self::ToolCalled(_)
            | Self::ApprovalRequested(_)
            | Self::Usage(_)
            | Self::Closing(_) => false,
        }
    }
}

#[derive(Debug, Default)]
pub struct TurnClosing {
    /// `None`: nothing worth persisting.
    pub turn: Option<FinishedTurn>,
    pub resumed_turn: Option<PendingTurnId>,
}

#[derive(Debug)]
pub struct FinishedTurn {
    pub record: TurnRecord,
    /// False if the turn was interrupted.
    pub is_complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Thinking,
    Searching,
    Generating {
        /// The turn goes on without memories.
        recall_failed: bool,
    },
    ExecutingTools,
}

#[derive(Debug)]
pub struct ApprovalRequest {
    pub call: ToolCall,
    pub memories: Vec<ShownMemory>,
}

/// A memory that the conversation has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownMemory {
    pub id: String,
    /// Its beginning; empty if only the id was shown.
    pub content: String,
}

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
    /// The repetition of an invalid call was invalid too.
    #[error("the model sent invalid tool calls twice in a row")]
    InvalidToolCall,
    #[error("the model called tools in too many rounds of one turn")]
    ToolRoundsExceeded,
    #[error("the conversation cannot be read or persisted")]
    NotPersisted,
    #[error("the user cancelled the turn")]
    Cancelled,
    /// The client did not reconnect within the grace period, or the process that ran the turn died.
    #[error("the run was abandoned: no client reconnected")]
    Abandoned,
    #[error("the run was preempted: nobody read it, and its session got another request")]
    Preempted,
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Of the call, set by its entry point, or of the turn.
    #[error("the deadline of the call is exceeded")]
    DeadlineExceeded,
    #[error("the token of the call has expired")]
    TokenExpired,
    /// Of a stream that reads a run. The run is not concerned.
    #[error("the frames of the run cannot be read now")]
    ReplayUnavailable,
    /// Of a stream that reads a run. The run is not concerned.
    #[error("a later call of the same request took the place of the stream")]
    ReaderReplaced,
    #[error("internal error")]
    Internal,
}

impl TurnFailure {
    /// The same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Model(error) => error.kind.is_retryable(),
            Self::InvalidToolCall
            | Self::NotPersisted
            | Self::Abandoned
            | Self::ShuttingDown
            | Self::DeadlineExceeded
            | Self::TokenExpired
            | Self::ReplayUnavailable => true,
            // Readers that retry would take the place of each other for ever.
            Self::ReaderReplaced => false,
            Self::ToolRoundsExceeded | Self::Cancelled | Self::Preempted | Self::Internal => false,
        }
    }

    /// Without an effect of its turn, the same request may run again.
    #[must_use]
    pub fn leaves_request_repeatable(&self) -> bool {
        // A client need not send it again after a newer one, but may.
        self.is_retryable() || matches!(self, Self::Preempted)
    }

    /// The client stopped the turn, or left it. An operator has nothing to do.
    #[must_use]
    pub fn is_caused_by_client(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Abandoned | Self::Preempted | Self::TokenExpired | Self::ReaderReplaced)
    }
}
