//! Turns that wait for the results of tools that the client runs.

use std::time::Duration;

use crate::identity::{SessionId, UserId};

/// What becomes of a result.
#[derive(Debug)]
pub enum ToolResultOutcome {
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
    Complete {
        /// The turn as it was kept.
        state: Vec<u8>,
        /// The results by the ids of their calls.
        results: Vec<(String, Vec<u8>)>,
        /// To be handed back when the turn has ended.
        pending_turn: PendingTurnId,
    },
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
