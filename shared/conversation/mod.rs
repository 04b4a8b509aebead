//! Stores what outlives a call: sessions with their turns, runs with their frames, pending turns, and the use of quotas.
//!
//! A store does not look into frames, records, profiles or the state of pending turns: they are bytes of the caller.
//! Everything is keyed by user first, and no call reads or changes anything of another user.

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

pub use deadline::{StoreTimeouts, WithDeadlines};
pub use error::StoreError;
pub use pending::{CompletedPendingTurn, PendingTurnDisposition, PendingTurnId, ToolResultOutcome};
pub use postgres::PostgresConversations;
pub(crate) use postgres::erase_pending_turns;
pub use quotas::QuotaKind;
pub use run::{
    AdmitOutcome, FrameChunk, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, NewRun, NewTurn, RunEnding, RunKey,
    RunOutcome, RunSignals, RunSnapshot, RunState, WATCH_WINDOW,
};
pub use session::{
    History, MAX_TITLE_BYTES, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn, Summary,
};
pub use store::ConversationStore;

pub use crate::config::UserQuotas;
