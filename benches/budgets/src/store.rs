use std::sync::OnceLock;

use agent_service::{
    conversation::{
        AdmitOutcome, AdmittedLease, ConversationStore, FrameChunk, FramePage, History, Lease, NewRun, Preemption,
        ReaderSignals, RunEnding, RunKey, RunSignals, RunSnapshot, RunState, Session, SessionCursor, SessionSelection,
        SessionUpdate, StoreError, StoredTurn, ToolResultOutcome,
    },
    identity::{RequestId, SessionId, UserId},
    proto::agent_v1::{self as pb, chat_response::Content},
};
use prost::Message as _;
use uuid::Uuid;

type Result<T> = std::result::Result<T, StoreError>;

const UNUSED: StoreError = StoreError::Malformed("nothing is stored");

/// Admits every run and stores nothing: the cost of persistence without the cost of a database. Requests whose ids begin with
/// [`FINISHED`] have ended, with an answer of 80 kB.
#[derive(Default)]
pub(crate) struct DiscardingStore {
    finished: OnceLock<FinishedRun>,
}

pub(crate) const FINISHED: &str = "finished";
const DELTAS: u32 = 4_000;

struct FinishedRun {
    head: Vec<u8>,
    frames: Vec<u8>,
}

impl FinishedRun {
    fn new(head: &[u8]) -> Self {
        let mut frames = Vec::new();
        let mut push = |content, finish_reason: pb::FinishReason| {
            let frame =
                pb::ChatResponse { content: Some(content), finish_reason: finish_reason.into(), ..Default::default() };
            frames.extend(frame.encode_length_delimited_to_vec());
        };
        let delta = " eigenvectors of it,";
        for _ in 0..DELTAS {
            push(Content::Delta(delta.to_owned()), pb::FinishReason::Null);
        }
        push(Content::FullText(delta.repeat(DELTAS as usize)), pb::FinishReason::Stop);
        Self { head: head.to_vec(), frames }
    }
}

#[async_trait::async_trait]
impl ConversationStore for DiscardingStore {
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome> {
        if run.key.request.as_str().starts_with(FINISHED) {
            self.finished.get_or_init(|| FinishedRun::new(&run.head));
            return Ok(AdmitOutcome::Known { fingerprint: run.fingerprint });
        }
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

    async fn follow(&self, _user: &UserId, _request: &RequestId, page: &FramePage) -> Result<Option<RunSnapshot>> {
        let Some(FinishedRun { head, frames }) = self.finished.get() else { return Ok(None) };
        let end = frames.len().min(page.offset.saturating_add(page.limit));
        let frames = frames.get(page.offset..end).unwrap_or_default().to_vec();
        let chunks = vec![FrameChunk { first: 1, count: DELTAS + 1, frames }];
        Ok(Some(RunSnapshot { state: RunState::Ended, head: head.clone(), stored: DELTAS + 1, chunks }))
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
