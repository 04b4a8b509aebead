use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    error::StoreError,
    pending::ToolResultOutcome,
    run::{AdmitOutcome, FrameChunk, Lease, NewRun, RunEnding, RunSignals, RunSnapshot},
    session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn},
};
use crate::identity::{RequestId, SessionId, UserId};

/// A call that fails has changed nothing, unless it says otherwise; writes for a lease fail with `LeaseLost` where it
/// is lost. Stores have no deadlines of their own: [`WithDeadlines`](super::WithDeadlines) adds them.
#[warn(missing_docs)]
#[async_trait::async_trait]
pub trait ConversationStore: Send + Sync {
    /// Idempotency, the session's lease and the user's quotas in one round trip. After an error the run may still be
    /// admitted.
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError>;

    /// Takes back what the admission counted. No effect where the lease is lost or the run has ended. After an error
    /// the run ends when its lease expires.
    async fn revoke_admission(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Stores frames and renews the lease (the heartbeat); without frames it is a heartbeat alone.
    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals, StoreError>;

    /// Everything in `ending` is durable when this returns. Idempotent: the same end again changes nothing. Only the
    /// tokens of a lost run count.
    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError>;

    /// Reads the frames after number `after`, and marks the run as watched for `WATCH_WINDOW`.
    async fn follow(&self, user: &UserId, request: &RequestId, after: u32) -> Result<Option<RunSnapshot>, StoreError>;

    /// Stops the run of a request, or the one that holds the session. Returns the request that will stop.
    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>, StoreError>;

    /// Replaces the pending turn of the session.
    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<(), StoreError>;

    /// Of concurrent results exactly one is the last, and its run takes the session. Idempotent while other results are
    /// missing, and after an error: the same request may send its result again.
    async fn record_tool_result(
        &self,
        lease: &Lease,
        call: &str,
        result: &[u8],
    ) -> Result<ToolResultOutcome, StoreError>;

    /// The last turns within a budget of tokens, at least one, without those that the summary covers.
    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History, StoreError>;

    /// Latest first.
    async fn list_sessions(
        &self,
        user: &UserId,
        limit: usize,
        after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>, StoreError>;

    /// `None`: the session has no turn yet, or does not exist.
    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>, StoreError>;

    /// Latest first, before number `before`.
    async fn list_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>, StoreError>;

    /// No generated title replaces this one.
    async fn rename_session(
        &self,
        user: &UserId,
        session: &SessionId,
        title: &str,
    ) -> Result<Option<Session>, StoreError>;

    /// Stores a generated title or summary. Ignored where the session is gone or has a better one.
    async fn update_session(
        &self,
        user: &UserId,
        session: &SessionId,
        update: &SessionUpdate,
    ) -> Result<(), StoreError>;

    /// Stops the runs of the sessions; the use of quotas stays. Returns how many sessions there were. After an error
    /// some may be deleted.
    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32, StoreError>;

    /// A failure is ignored.
    async fn warm_up(&self);

    /// Asked after a timeout, to tell an unreachable store from a slow one.
    async fn is_unreachable(&self) -> bool {
        false
    }

    /// Notified when a turn that may be learned from is stored. `None` for a store that does not deliver turns through
    /// a queue in Postgres.
    fn learning_wakeup(&self) -> Option<Arc<Notify>> {
        None
    }
}
