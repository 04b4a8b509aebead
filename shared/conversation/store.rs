use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    error::StoreError,
    pending::ToolResultOutcome,
    run::{AdmitOutcome, FrameChunk, Lease, NewRun, RunEnding, RunSignals, RunSnapshot},
    session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn},
};
use crate::identity::{RequestId, SessionId, UserId};

/// A store of conversations. A call that fails has changed nothing, unless it says otherwise. Stores have no deadlines of
/// their own: [`WithDeadlines`](super::WithDeadlines) adds them.
#[warn(missing_docs)]
#[async_trait::async_trait]
pub trait ConversationStore: Send + Sync {
    /// Admits a run: idempotency, the session's lease and the user's quotas, in one round trip.
    ///
    /// # Errors
    /// The store failed. The run may be admitted all the same.
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError>;

    /// Takes an admission back, with what it counted. Without effect where the lease is lost or the run has ended.
    ///
    /// # Errors
    /// The store failed; then the run ends when its lease expires.
    async fn revoke_admission(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Stores frames of a run, renews its lease (the heartbeat), and reads signals for it. Without frames it is a
    /// heartbeat alone.
    ///
    /// # Errors
    /// The store failed, or the lease is lost.
    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals, StoreError>;

    /// Ends a run and releases its lease. When it returns, everything in `ending` is durable. Idempotent: the same end
    /// again succeeds and changes nothing.
    ///
    /// # Errors
    /// The store failed, or the lease is lost. Of a lost run only the tokens count.
    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError>;

    /// Reads a run, with the frames after number `after`, and marks it as watched for [`WATCH_WINDOW`](super::WATCH_WINDOW).
    ///
    /// # Errors
    /// The store failed.
    async fn follow(&self, user: &UserId, request: &RequestId, after: u32) -> Result<Option<RunSnapshot>, StoreError>;

    /// Asks a run to stop: that of a request, or the one that holds the session. Returns the request of the run that will
    /// stop.
    ///
    /// # Errors
    /// The store failed.
    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>, StoreError>;

    /// Stores a turn until the results of these calls have arrived. It replaces the pending turn of its session.
    ///
    /// # Errors
    /// The store failed, or the lease is lost.
    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError>;

    /// Records the result of a call. Of several results that arrive at once exactly one is the last, and its run takes the
    /// session. Idempotent as long as other results are missing: the same request may send the same result again.
    ///
    /// # Errors
    /// The store failed, or the lease is lost; then the same request may send the result again.
    async fn record_tool_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError>;

    /// Reads the last turns of a session that fit into a budget of tokens, at least one, and its summary. Turns that the
    /// summary covers are not returned.
    ///
    /// # Errors
    /// The store failed.
    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History, StoreError>;

    /// Lists sessions, latest first.
    ///
    /// # Errors
    /// The store failed.
    async fn list_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>, StoreError>;

    /// # Errors
    /// The store failed.
    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>, StoreError>;

    /// Lists turns of a session, latest first, those before number `before`.
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

    /// Sets the title that the user wants, which no generated title replaces.
    ///
    /// # Errors
    /// The store failed.
    async fn rename_session(
        &self,
        user: &UserId,
        session: &SessionId,
        title: &str,
    ) -> Result<Option<Session>, StoreError>;

    /// Stores a generated title or summary. Ignored where the session is gone or has a better one.
    ///
    /// # Errors
    /// The store failed.
    async fn update_session(
        &self,
        user: &UserId,
        session: &SessionId,
        update: &SessionUpdate,
    ) -> Result<(), StoreError>;

    /// Deletes sessions with everything in them, and stops their runs. What counts against the user's quotas stays.
    /// Returns how many sessions there were.
    ///
    /// # Errors
    /// The store failed; then some sessions may be deleted.
    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError>;

    /// Opens the connection that the first call uses. A failure is ignored.
    async fn warm_up(&self);

    /// Whether the store refuses connections. Asked after a timeout, to tell an unreachable store from a slow one.
    async fn is_unreachable(&self) -> bool {
        false
    }

    /// Notified when this process has stored a turn that facts may be extracted from. `None` for a store that delivers
    /// such turns itself and not through a queue in Postgres.
    fn learning_wakeup(&self) -> Option<Arc<Notify>> {
        None
    }
}
