use agent_service::{
    conversation::{
        AdmitOutcome, AdmittedLease, ConversationStore, FrameChunk, History, Lease, NewRun, Preemption, ReaderSignals,
        RunEnding, RunKey, RunSignals, RunSnapshot, Session, SessionCursor, SessionSelection, SessionUpdate,
        StoreError, StoredTurn, ToolResultOutcome,
    },
    identity::{RequestId, SessionId, UserId},
};
use uuid::Uuid;

type Result<T> = std::result::Result<T, StoreError>;

const UNUSED: StoreError = StoreError::Malformed("nothing is stored");

/// Admits every run and stores nothing: the cost of persistence without the cost of a database.
pub(crate) struct DiscardingStore;

#[async_trait::async_trait]
impl ConversationStore for DiscardingStore {
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome> {
        let lease = Lease { key: run.key.clone(), lease_token: Uuid::from_u128(1) };
        let lease = AdmittedLease::unguarded(lease);
        Ok(AdmitOutcome::Started { lease, profile: None, history: Some(History::default()) })
    }

    async fn revoke_admission(&self, _lease: &Lease) -> Result<()> {
        Ok(())
    }

    async fn checkpoint(&self, _lease: &Lease, _chunk: Option<&FrameChunk>) -> Result<RunSignals> {
        Ok(RunSignals::default())
    }

    async fn finish(&self, _lease: &Lease, _ending: &RunEnding) -> Result<()> {
        Ok(())
    }

    async fn follow(&self, _user: &UserId, _request: &RequestId, _after: u32) -> Result<Option<RunSnapshot>> {
        Ok(None)
    }

    async fn unwatch(&self, _user: &UserId, _request: &RequestId) -> Result<()> {
        Ok(())
    }

    async fn set_read(&self, _lease: &Lease, _is_read: bool) -> Result<ReaderSignals> {
        Ok(ReaderSignals::default())
    }

    async fn preempt(&self, _key: &RunKey, _takes_over: bool) -> Result<Preemption> {
        Ok(Preemption::Free)
    }

    async fn cancel(
        &self,
        _user: &UserId,
        _session: &SessionId,
        _request: Option<&RequestId>,
    ) -> Result<Option<RequestId>> {
        Ok(None)
    }

    async fn store_pending_turn(&self, _lease: &Lease, _state: &[u8], _calls: &[&str]) -> Result<()> {
        Err(UNUSED)
    }

    async fn record_tool_result(&self, _lease: &Lease, _call: &str, _result: &[u8]) -> Result<ToolResultOutcome> {
        Err(UNUSED)
    }

    async fn load_profile(&self, _user: &UserId) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    async fn load_history(&self, _user: &UserId, _session: &SessionId, _max_tokens: u32) -> Result<History> {
        Ok(History::default())
    }

    async fn list_sessions(
        &self,
        _user: &UserId,
        _limit: usize,
        _after: Option<&SessionCursor>,
    ) -> Result<Vec<Session>> {
        Err(UNUSED)
    }

    async fn get_session(&self, _user: &UserId, _session: &SessionId) -> Result<Option<Session>> {
        Err(UNUSED)
    }

    async fn list_turns(
        &self,
        _user: &UserId,
        _session: &SessionId,
        _before: Option<u32>,
        _limit: usize,
    ) -> Result<Vec<StoredTurn>> {
        Err(UNUSED)
    }

    async fn rename_session(&self, _user: &UserId, _session: &SessionId, _title: &str) -> Result<Option<Session>> {
        Err(UNUSED)
    }

    async fn update_session(&self, _user: &UserId, _session: &SessionId, _update: &SessionUpdate) -> Result<()> {
        Err(UNUSED)
    }

    async fn delete_sessions(&self, _user: &UserId, _sessions: &SessionSelection) -> Result<u32> {
        Err(UNUSED)
    }

    async fn warm_up(&self) {}
}
