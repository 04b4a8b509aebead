//! Conversations in one DynamoDB table: items in `docs/reference/tables.md`, costs in `docs/how-to/dynamodb.md`.
//!
//! Times are those of the writing process, so its clock has to be roughly right. A change of several items is one
//! transaction; a failed condition returns the item that refused. The attribute `holder` is the lease token.
//!
//! Cancellation: a write may be applied although its call was dropped. Every write is conditional or idempotent.

mod admit;
mod attributes;
mod delete;
mod finish;
mod http;
mod item;
mod keys;
mod lease;
mod parts;
mod pending;
mod run;
mod session;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod turns;
mod usage;
mod write;

use std::time::Duration;

pub use keys::parse_turn_item;
pub use stream::{FinishedTurnItem, MalformedRecord, finished_turn, sequence_number};
pub use table::DynamoSetupError;
use tokio::sync::Semaphore;

use self::{keys::Key, table::Table};
use super::{
    deadline::{StoreTimeouts, WithDeadlines},
    error::Result,
    pending::ToolResultOutcome,
    run::{AdmitOutcome, FrameChunk, Lease, NewRun, RunEnding, RunSignals, RunSnapshot},
    session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn},
    store::{ConversationStore, impl_conversation_store},
};
use crate::identity::{RequestId, SessionId, UserId};

/// Also how long a session is locked while it is deleted.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than its owner an item is stored, and how long one without an owner.
const EXPIRY_MARGIN: Duration = Duration::from_hours(24);

#[derive(Debug)]
pub struct DynamoConversations {
    table: Table,
    /// After this a resumed turn that has not ended counts as lost.
    max_turn_duration: Duration,
}

impl DynamoConversations {
    /// Region, credentials and endpoint are those of the environment (`AWS_REGION`, `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_ENDPOINT_URL_DYNAMODB`). Connects to nothing.
    pub fn with_deadlines(
        table: String,
        max_turn_duration: Duration,
        admit_timeout: Duration,
    ) -> Result<WithDeadlines<Self>, DynamoSetupError> {
        let timeouts = StoreTimeouts {
            admit: admit_timeout,
            // A function that is frozen after its answer leaves the revocation pending.
            late_admission: Duration::from_secs(10),
            short: Duration::from_secs(5),
            long: Duration::from_secs(20),
            finish: Duration::from_secs(20),
            delete: DELETE_TIMEOUT,
        };
        let store = Self { table: Table::from_env(table)?, max_turn_duration };
        Ok(WithDeadlines::new(store, timeouts, Semaphore::MAX_PERMITS))
    }
}

impl_conversation_store! {
    DynamoConversations:

    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        self.finish_run(lease, ending).await
    }

    async fn warm_up(&self) {
        let absent = Key { user: "-".to_owned(), item: "-".to_owned() };
        let _connected = self.table.get(absent).await;
    }
}
