//! Pending turns: turns that wait for results of tools which the client runs.

use std::time::Duration;

use crate::identity::{SessionId, UserId};

/// How long a pending turn waits: a client may have to ask a person first.
pub(super) const PENDING_TURN_WINDOW: Duration = Duration::from_hours(24);
/// Most pending turns of one user; the oldest ones beyond it are deleted.
pub(super) const MAX_PENDING_TURNS: usize = 20;

/// The effect of a tool result. `T` is the turn that resumes after the last one: as it is stored, or made ready to run.
#[derive(Debug)]
pub enum ToolResultOutcome<T = CompletedPendingTurn> {
    /// No pending turn of the session waits for the call.
    UnknownCall,
    /// Another request gave the result before.
    Duplicate,
    /// Results of other calls are missing.
    Pending,
    /// It is the last result, but another run holds the session. It is not recorded.
    Busy {
        /// Until the other run's lease expires, unless it is renewed.
        retry_after: Duration,
    },
    /// It is the last result: the turn resumes.
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
    pub state: Vec<u8>,
    /// By the ids of their calls, in no order.
    pub results: Vec<(String, Vec<u8>)>,
    /// For [`RunEnding::resumed_turn`](super::RunEnding::resumed_turn).
    pub id: PendingTurnId,
}

/// A pending turn that was resumed. It stays stored until the run that resumed it ends; if that run is lost, its last result
/// may be given again.
#[derive(Debug, Clone)]
pub struct PendingTurnId {
    pub(super) user: UserId,
    pub(super) session: SessionId,
    pub(super) turn: String,
    pub(super) last_call: String,
}

/// Says what becomes of a resumed turn when its run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingTurnDisposition {
    /// It is over, or waits for other tools.
    Done,
    /// Its last result may be given again.
    Reopened,
}
