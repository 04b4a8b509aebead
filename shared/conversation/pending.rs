//! Turns that wait for results of tools which the client runs.

use std::time::Duration;

use crate::identity::{SessionId, UserId};

/// A client may have to ask a person first.
pub(super) const PENDING_TURN_WINDOW: Duration = Duration::from_hours(24);
/// Per user; the oldest ones beyond it are deleted.
pub(super) const MAX_PENDING_TURNS: usize = 20;

/// `T` is the turn that resumes: as stored, or ready to run.
#[derive(Debug)]
pub enum ToolResultOutcome<T = CompletedPendingTurn> {
    UnknownCall,
    /// Another request gave the result before.
    Duplicate,
    Pending,
    /// The last result, but another run holds the session. It is not recorded.
    Busy {
        /// Until the other lease expires, unless it is renewed.
        retry_after: Duration,
    },
    Complete(T),
}

impl<T> ToolResultOutcome<T> {
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

#[derive(Debug)]
pub struct CompletedPendingTurn {
    pub state: Vec<u8>,
    pub results: Vec<(String, Vec<u8>)>,
    pub id: PendingTurnId,
}

/// Stays stored until the run that resumed it ends; if that run is lost, the last result may be given again.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "dynamodb"), expect(dead_code, reason = "Postgres knows user and session from the run"))]
pub struct PendingTurnId {
    pub(super) user: UserId,
    pub(super) session: SessionId,
    pub(super) turn: String,
    pub(super) last_call: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingTurnDisposition {
    /// It is over, or waits for other tools.
    Done,
    /// Its last result may be given again.
    Reopened,
}
