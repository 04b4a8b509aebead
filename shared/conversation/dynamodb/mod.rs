//! Conversations in one DynamoDB table. `docs/reference/tables.md` documents its items.
//!
//! Times are those of the writing process, so its clock has to be roughly right. A change of several items is one
//! transaction; a failed condition returns the item that refused.
//!
//! Cancellation: a write that was sent may be applied although its call was dropped. Every write is conditional or
//! idempotent, so that it can be repeated.
//!
//! The attribute `holder` is the lease token.

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
    error::StoreError,
    pending::ToolResultOutcome,
    run::{AdmitOutcome, FrameChunk, Lease, NewRun, RunEnding, RunSignals, RunSnapshot},
    session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn},
    store::ConversationStore,
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

#[async_trait::async_trait]
impl ConversationStore for DynamoConversations {
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        self.admit_run(run).await
    }

    async fn revoke_admission(&self, lease: &Lease) -> Result<(), StoreError> {
        self.revoke_run(lease).await
    }

    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals, StoreError> {
        self.checkpoint_run(lease, chunk).await
    }

    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError> {
        self.finish_run(lease, ending).await
    }

    async fn follow(&self, user: &UserId, request: &RequestId, after: u32) -> Result<Option<RunSnapshot>, StoreError> {
        self.snapshot_run(user, request, after).await
    }

    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>, StoreError> {
        self.cancel_run(user, session, request).await
    }

    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError> {
        self.replace_pending_turn(lease, state, calls).await
    }

    async fn record_tool_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError> {
        self.record_result(lease, call, result).await
    }

    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History, StoreError> {
        self.read_history(user, session, max_tokens).await
    }

    async fn list_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>, StoreError> {
        self.read_sessions(user, limit, after).await
    }

    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>, StoreError> {
        self.read_session(user, session).await
    }

    async fn list_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>, StoreError> {
        self.read_turns(user, session, before, limit).await
    }

    async fn rename_session(
        &self,
        user: &UserId,
        session: &SessionId,
        title: &str,
    ) -> Result<Option<Session>, StoreError> {
        self.set_title(user, session, title).await
    }

    async fn update_session(
        &self,
        user: &UserId,
        session: &SessionId,
        update: &SessionUpdate,
    ) -> Result<(), StoreError> {
        self.apply_update(user, session, update).await
    }

    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError> {
        self.delete_selected(user, sessions).await
    }

    async fn warm_up(&self) {
        let absent = Key { user: "-".to_owned(), item: "-".to_owned() };
        let _connected = self.table.get(absent).await;
    }
}
