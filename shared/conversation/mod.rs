//! What of a conversation outlives a call: turns that wait for results of tools.
//!
//! The room keeps them and knows nothing of what is in them.

mod pending;

pub use pending::{Accepted, PendingTurns, StoreError, Ticket};
