//! Conversations in a table of DynamoDB: `docs/conversations.md` tells how it is laid out and what a call costs.
//!
//! The times are those of the process that writes; its clock has to be about right.

mod admit;
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
mod write;

use std::time::Duration;

use tokio::time::timeout;

pub use keys::{EXPIRES_AT, ITEM_ID, USER_ID, parse_turn_item};
pub use stream::{FinishedTurnItem, MalformedRecord, finished_turn, sequence_number};
pub use table::DynamoSetupError;

use self::{keys::Key, table::Table};
use super::{
    AdmitOutcome, ConversationStore, FrameChunk, History, Lease, NewRun, RunEnding, RunSignals, RunSnapshot, Session,
    SessionCursor, SessionSelection, SessionUpdate, StoreError, StoredTurn, ToolResultOutcome,
};
use crate::identity::{RequestId, SessionId, UserId};

/// Most that a call may take that reads or writes a few items.
const SHORT: Duration = Duration::from_secs(5);
/// Most that a call may take that reads or writes values of any size.
const LONG: Duration = Duration::from_secs(20);
/// Most that deleting may take.
const DELETION: Duration = Duration::from_secs(60);

/// How much longer than what belongs to it something is left, and how long what belongs to nothing.
const DAY: Duration = Duration::from_hours(24);

/// Conversations in a table of DynamoDB.
#[derive(Debug, Clone)]
pub struct DynamoConversations {
    table: Table,
    /// Longest that a turn runs: after this, one that was resumed and did not end is taken for lost.
    max_turn_duration: Duration,
    /// Most that an admission, or taking a result, may take.
    admit_timeout: Duration,
}

impl DynamoConversations {
    /// Conversations in a table that is there, by the region, the credentials and the endpoint of the environment:
    /// `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_ENDPOINT_URL_DYNAMODB`.
    /// Nothing is connected.
    ///
    /// # Errors
    /// One of them is missing, or there is no HTTP client.
    pub fn new(table: String, longest_turn: Duration, admission: Duration) -> Result<Self, DynamoSetupError> {
        Ok(Self { table: Table::from_env(table)?, max_turn_duration: longest_turn, admit_timeout: admission })
    }
}

#[async_trait::async_trait]
impl ConversationStore for DynamoConversations {
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        self.admit_run(run).await
    }

    async fn revoke_admission(&self, lease: &Lease) -> Result<(), StoreError> {
        in_time(SHORT, self.abandon_run(lease)).await
    }

    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals, StoreError> {
        in_time(LONG, self.checkpoint_run(lease, chunk)).await
    }

    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError> {
        in_time(LONG, self.finish_run(lease, ending)).await
    }

    async fn follow(&self, user: &UserId, request: &RequestId, after: u32) -> Result<Option<RunSnapshot>, StoreError> {
        in_time(LONG, self.snapshot_run(user, request, after)).await
    }

    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>, StoreError> {
        in_time(SHORT, self.cancel_run(user, session, request)).await
    }

    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError> {
        in_time(LONG, self.keep_pending(lease, state, calls)).await
    }

    async fn record_tool_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError> {
        in_time(self.admit_timeout, self.accept_result(lease, call, result)).await
    }

    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History, StoreError> {
        in_time(LONG, self.recent(user, session, max_tokens)).await
    }

    async fn list_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>, StoreError> {
        in_time(SHORT, self.list(user, limit, after)).await
    }

    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>, StoreError> {
        in_time(SHORT, self.one(user, session)).await
    }

    async fn list_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>, StoreError> {
        in_time(LONG, self.read_turns(user, session, before, limit)).await
    }

    async fn rename_session(
        &self,
        user: &UserId,
        session: &SessionId,
        title: &str,
    ) -> Result<Option<Session>, StoreError> {
        in_time(SHORT, self.give_title(user, session, title)).await
    }

    async fn update_session(
        &self,
        user: &UserId,
        session: &SessionId,
        finding: &SessionUpdate,
    ) -> Result<(), StoreError> {
        in_time(SHORT, self.keep_finding(user, session, finding)).await
    }

    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError> {
        in_time(DELETION, self.remove(user, sessions)).await
    }

    async fn warm_up(&self) {
        // There is no such item; what fails is tried again by the first call.
        let nothing = Key { user: "-".to_owned(), item: "-".to_owned() };
        let _connected = timeout(SHORT, self.table.get(nothing)).await;
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(limit, work).await.map_err(|_| StoreError::Timeout)?
}
