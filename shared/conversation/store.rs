use std::sync::Arc;

use super::{
    error::Result,
    pending::ToolResultOutcome,
    run::{
        AdmitOutcome, FrameChunk, FramePage, Lease, NewRun, Preemption, ReaderSignals, RunEnding, RunKey, RunSignals,
        RunSnapshot,
    },
    session::{History, Session, SessionCursor, SessionSelection, SessionUpdate, StoredTurn},
    stored_turns::StoredTurns,
};
use crate::identity::{RequestId, SessionId, UserId};

/// A call that fails has changed nothing, unless it says otherwise; writes for a lease fail with `LeaseLost` where it
/// is lost. Stores have no deadlines of their own: [`WithDeadlines`](super::WithDeadlines) adds them.
#[warn(missing_docs)]
#[async_trait::async_trait]
pub trait ConversationStore: Send + Sync {
    /// Idempotency, lease and quotas in one round trip. After an error the run may still be admitted.
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome>;

    /// Ignored where the lease is lost or the run has ended. After an error the run ends when its lease expires.
    async fn revoke_admission(&self, lease: &Lease) -> Result<()>;

    /// Stores frames and renews the lease (the heartbeat); without frames it is a heartbeat alone.
    async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals>;

    /// Everything in `ending` is durable when this returns. Idempotent. Of a lost run only the tokens count.
    async fn finish(&self, lease: &Lease, ending: &RunEnding) -> Result<()>;

    /// Reads a page of a run's frames.
    async fn follow(&self, user: &UserId, request: &RequestId, page: &FramePage) -> Result<Option<RunSnapshot>>;

    /// A reader of another process has left: `follow` marks the run again while there are others.
    async fn unwatch(&self, user: &UserId, request: &RequestId) -> Result<()>;

    /// Stores whether a call of the run's own process reads it. A run counts as read until it says otherwise.
    async fn set_read(&self, lease: &Lease, is_read: bool) -> Result<ReaderSignals>;

    /// Asks the run that holds the session of `key`, which belongs to another request, to end if nobody reads it. With
    /// `takes_over` it loses the session at once.
    async fn preempt(&self, key: &RunKey, takes_over: bool) -> Result<Preemption>;

    /// Stops the run of a request, or the one that holds the session. Returns the request that will stop.
    async fn cancel(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>>;

    /// Replaces the pending turn of the session.
    async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<()>;

    /// Of concurrent results exactly one is the last, and its run takes the session. Idempotent while other results are
    /// missing, and after an error: the same request may send its result again.
    async fn record_tool_result(&self, lease: &Lease, call: &str, result: &[u8]) -> Result<ToolResultOutcome>;

    /// The last turns within a budget of tokens, at least one, without those that the summary covers.
    async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History>;

    /// Latest first.
    async fn list_sessions(&self, user: &UserId, limit: usize, after: Option<&SessionCursor>) -> Result<Vec<Session>>;

    /// `None`: the session does not exist, or no turn of it has ended.
    async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>>;

    /// Latest first, before number `before`.
    async fn list_turns(
        &self,
        user: &UserId,
        session: &SessionId,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<StoredTurn>>;

    /// No generated title replaces this one.
    async fn rename_session(&self, user: &UserId, session: &SessionId, title: &str) -> Result<Option<Session>>;

    /// The profile of the user's last request, as its run stored it.
    async fn load_profile(&self, user: &UserId) -> Result<Option<Vec<u8>>>;

    /// Stores a generated title or summary. Ignored where the session is gone or has a better one.
    async fn update_session(&self, user: &UserId, session: &SessionId, update: &SessionUpdate) -> Result<()>;

    /// Stops runs; keeps the use of quotas. Returns how many sessions there were. After an error some may be deleted.
    async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32>;

    /// A failure is ignored.
    async fn warm_up(&self);

    /// Asked after a timeout, to tell an unreachable store from a slow one.
    async fn is_unreachable(&self) -> bool {
        false
    }

    /// `None`: turns are not delivered by a queue in Postgres.
    fn stored_turns(&self) -> Option<Arc<StoredTurns>> {
        None
    }
}

/// Implements [`ConversationStore`] by the inherent methods that the stores name alike; the others follow the type.
macro_rules! impl_conversation_store {
    ($store:ty: $($other:tt)*) => {
        #[async_trait::async_trait]
        impl ConversationStore for $store {
            async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome> {
                self.admit_run(run).await
            }

            async fn revoke_admission(&self, lease: &Lease) -> Result<()> {
                self.revoke_run(lease).await
            }

            async fn checkpoint(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals> {
                self.checkpoint_run(lease, chunk).await
            }

            async fn follow(
                &self,
                user: &UserId,
                request: &RequestId,
                page: &FramePage,
            ) -> Result<Option<RunSnapshot>> {
                self.snapshot_run(user, request, page).await
            }

            async fn unwatch(&self, user: &UserId, request: &RequestId) -> Result<()> {
                self.unwatch_run(user, request).await
            }

            async fn set_read(&self, lease: &Lease, is_read: bool) -> Result<ReaderSignals> {
                self.set_run_read(lease, is_read).await
            }

            async fn preempt(&self, key: &RunKey, takes_over: bool) -> Result<Preemption> {
                self.preempt_run(key, takes_over).await
            }

            async fn cancel(
                &self,
                user: &UserId,
                session: &SessionId,
                request: Option<&RequestId>,
            ) -> Result<Option<RequestId>> {
                self.cancel_run(user, session, request).await
            }

            async fn store_pending_turn(&self, lease: &Lease, state: &[u8], calls: &[&str]) -> Result<()> {
                self.replace_pending_turn(lease, state, calls).await
            }

            async fn record_tool_result(&self, lease: &Lease, call: &str, result: &[u8]) -> Result<ToolResultOutcome> {
                self.record_result(lease, call, result).await
            }

            async fn load_history(&self, user: &UserId, session: &SessionId, max_tokens: u32) -> Result<History> {
                self.read_history(user, session, max_tokens).await
            }

            async fn list_sessions(
                &self,
                user: &UserId,
                limit: usize,
                after: Option<&SessionCursor>,
            ) -> Result<Vec<Session>> {
                self.read_sessions(user, limit, after).await
            }

            async fn get_session(&self, user: &UserId, session: &SessionId) -> Result<Option<Session>> {
                self.read_session(user, session).await
            }

            async fn list_turns(
                &self,
                user: &UserId,
                session: &SessionId,
                before: Option<u32>,
                limit: usize,
            ) -> Result<Vec<StoredTurn>> {
                self.read_turns(user, session, before, limit).await
            }

            async fn rename_session(&self, user: &UserId, session: &SessionId, title: &str) -> Result<Option<Session>> {
                self.set_title(user, session, title).await
            }

            async fn load_profile(&self, user: &UserId) -> Result<Option<Vec<u8>>> {
                self.read_profile(user).await
            }

            async fn update_session(&self, user: &UserId, session: &SessionId, update: &SessionUpdate) -> Result<()> {
                self.apply_update(user, session, update).await
            }

            async fn delete_sessions(&self, user: &UserId, sessions: &SessionSelection) -> Result<u32> {
                self.delete_selected(user, sessions).await
            }

            $($other)*
        }
    };
}
pub(super) use impl_conversation_store;
