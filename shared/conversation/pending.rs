//! Turns that wait for the results of tools that the client runs.

use std::time::Duration;

use crate::identity::{SessionId, UserId};

/// The effect of a tool result. `T` is the turn that goes on after the last one: as it is stored, or made ready to run.
#[derive(Debug)]
pub enum ToolResultOutcome<T = CompletedPendingTurn> {
    /// No turn waits for it: the call was never made in this session, is over, or belongs to somebody else.
    UnknownCall,
    /// It was given already.
    Duplicate,
    /// Others are still missing.
    Pending,
    /// It would be the last, but another run has the conversation: it is not taken.
    Busy {
        /// When the lease of the other one ends, unless it is renewed.
        retry_after: Duration,
    },
    /// It was the last: the turn goes on.
    Complete(T),
}

impl<T> ToolResultOutcome<T> {
    /// Replaces the completed turn, or the whole outcome where that turn cannot be used.
    pub fn and_then<U>(self, complete: impl FnOnce(T) -> ToolResultOutcome<U>) -> ToolResultOutcome<U> {
        match self {
            Self::UnknownCall => ToolResultOutcome::UnknownCall,
            Self::Duplicate => ToolResultOutcome::Duplicate,
            Self::Pending => ToolResultOutcome::Pending,
            Self::Busy { retry_after } => ToolResultOutcome::Busy { retry_after },
            Self::Complete(turn) => complete(turn),
        }
    }
}

/// A pending turn with all its tool results.
#[derive(Debug)]
pub struct CompletedPendingTurn {
    /// As given to `store_pending_turn`.
    pub state: Vec<u8>,
    /// By the ids of their calls, in no order.
    pub results: Vec<(String, Vec<u8>)>,
    /// To be handed back when the turn has ended.
    pub id: PendingTurnId,
}

/// A turn that goes on. Until it is handed back the turn is not over; after a while without a word its last result may be
/// given again.
#[derive(Debug, Clone)]
pub struct PendingTurnId {
    pub(super) user: UserId,
    pub(super) session: SessionId,
    pub(super) turn: String,
    pub(super) last_call: String,
}
