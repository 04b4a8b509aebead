//! Stores sessions with their turns, runs with their frames, pending turns, and the use of quotas. Frames, records,
//! profiles and states are the caller's bytes. Everything is keyed by user first; no call touches data of another user.

mod deadline;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
mod error;
mod pending;
mod postgres;
mod quotas;
mod run;
mod session;
mod store;
mod stored_turns;
mod user_queue;

pub use deadline::{StoreTimeouts, WithDeadlines};
pub use error::StoreError;
pub use pending::{CompletedPendingTurn, PendingTurnDisposition, PendingTurnId, ToolResultOutcome};
pub use postgres::PostgresConversations;
pub(crate) use postgres::{UserRow, delete_expired, erase_pending_turns};
pub use quotas::QuotaKind;
pub use run::{
    AdmitOutcome, AdmittedLease, FRAME_PAGE_BYTES, FrameChunk, FramePage, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease,
    NewRun, NewTurn, Preemption, ReaderSignals, RunEnding, RunKey, RunOutcome, RunSignals, RunSnapshot, RunState,
    WATCH_WINDOW,
};
pub use session::{
    History, MAX_TITLE_BYTES, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn, Summary,
};
pub use store::ConversationStore;
pub use stored_turns::StoredTurns;

pub use crate::config::UserQuotas;
