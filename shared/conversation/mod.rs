//! What of conversations outlives a call: turns, runs with their frames, turns that wait for tools, and what users have used.
//!
//! The room keeps them by user first and knows nothing of what is in them.

#[cfg(feature = "dynamodb")]
pub mod dynamodb;
mod pending;
mod postgres;
mod quotas;
mod run;
mod session;

pub use pending::{CompletedPendingTurn, PendingTurnId, ToolResultOutcome};
pub use postgres::PostgresConversations;
pub(crate) use postgres::erase_pending_turns;
pub use quotas::QuotaKind;
pub use run::{
    AdmitOutcome, FrameChunk, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, NewRun, NewTurn, PendingTurnDisposition,
    RunEnding, RunKey, RunOutcome, RunSignals, RunSnapshot, RunState, WATCH_WINDOW,
};
pub use session::{
    History, MAX_TITLE_BYTES, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn, Summary,
};

pub use crate::config::UserQuotas;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::identity::{RequestId, SessionId, UserId};

/// Why the store does not do what it is asked. It holds no text of the user.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// DynamoDB failed.
    #[error("DynamoDB failed: {0}")]
    Dynamo(String),
    /// It took too long.
    #[error("the store took too long")]
    Timeout,
    /// Nobody is there who could answer.
    #[error("the store is out of reach")]
    Unreachable,
    /// The run's process was taken for dead; somebody else may have the conversation.
    #[error("the run has lost its lease")]
    LeaseLost,
    /// What is kept there can not be read.
    #[error("the store holds something that can not be read: {0}")]
    Malformed(&'static str),
}

impl StoreError {
    /// Whether nobody is there who could answer, which is not to be taken for one who is slow.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Database(error) => matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_)),
            Self::Unreachable => true,
            Self::Dynamo(_) | Self::Timeout | Self::LeaseLost | Self::Malformed(_) => false,
        }
    }
}

/// A place where conversations are kept. Every call is bounded in time; one that fails has changed nothing.
#[async_trait::async_trait]
pub trait ConversationStore: Send + Sync {
    /// Lets a run in: idempotency, the conversation's lease and the user's limits, in one round trip.
    ///
    /// # Errors
    /// The store failed or took longer than the time for admission.
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError>;

    /// Takes back the admission of a run that was refused after all.
    ///
    /// # Errors
    /// The store failed; then the run ends with its lease.
    async fn revoke_admission(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Keeps frames of a run, gives a sign of life, and fetches what others have left for it. Without frames it only gives
    /// the sign.
    ///
    /// # Errors
    /// The store failed, or the lease is lost.
    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals, StoreError>;

    /// Ends a run and gives up its lease: when this returns, everything of `ending` is kept.
    ///
    /// # Errors
    /// The store failed; then nothing of it is kept. The lease is lost; then nothing of it is kept but its tokens, which count.
    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError>;

    /// What is kept of a run, with frames after number `after`. The one who asks waits for the rest, so that it counts as
    /// watched.
    ///
    /// # Errors
    /// The store failed.
    async fn follow(&self, user: &UserId, request: &RequestId, after: u32) -> Result<Option<RunSnapshot>, StoreError>;

    /// Asks a run to stop: that of a request, or the one that has the conversation.
    /// Returns the request of the run that will stop.
    ///
    /// # Errors
    /// The store failed.
    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>, StoreError>;

    /// Keeps a turn until the results of these calls are in. It takes the place of another one of its conversation.
    ///
    /// # Errors
    /// The store failed or the lease is lost; then nothing is kept.
    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError>;

    /// Takes the result of a call. Of several calls that answer at once exactly one is the last, and takes the conversation.
    /// The same request with the same result again is no duplicate as long as others are missing.
    ///
    /// # Errors
    /// The store failed or took longer than the time for admission; then the same request may give the result again.
    async fn record_tool_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError>;

    /// The last turns of a conversation, of at most so many tokens together but at least one turn, and its summary. No turn
    /// that is in the summary is given.
    ///
    /// # Errors
    /// The store failed.
    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History, StoreError>;

    /// Conversations, latest first.
    ///
    /// # Errors
    /// The store failed.
    async fn list_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>, StoreError>;

    /// One conversation.
    ///
    /// # Errors
    /// The store failed.
    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>, StoreError>;

    /// Turns of a conversation, latest first, those before number `before`.
    ///
    /// # Errors
    /// The store failed.
    async fn list_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>, StoreError>;

    /// Gives a conversation the title that its user wants.
    ///
    /// # Errors
    /// The store failed.
    async fn rename_session(
        &self,
        user: &UserId,
        session: &SessionId,
        title: &str,
    ) -> Result<Option<Session>, StoreError>;

    /// Keeps what was found out about a conversation, if it is still there.
    ///
    /// # Errors
    /// The store failed.
    async fn update_session(
        &self,
        user: &UserId,
        session: &SessionId,
        finding: &SessionUpdate,
    ) -> Result<(), StoreError>;

    /// Deletes conversations with everything of them, and stops what runs in them. What counts against the user's limits stays.
    /// Returns how many there were.
    ///
    /// # Errors
    /// The store failed; then some may be deleted and others not.
    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError>;

    /// Opens the connection that the first call uses. What fails is tried again then.
    async fn warm_up(&self);

    /// Rings when a turn was kept by this process that is to be learned from, where such turns wait in a queue of the
    /// database; `None` = whoever learns is told by the store itself.
    fn learning_wakeup(&self) -> Option<Arc<Notify>> {
        None
    }
}
