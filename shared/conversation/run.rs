//! Runs: one execution that a request started, stored with its frames. A lease says which process may write a run. Its
//! lease token is a fencing token, new for each start: a process with an older one can change nothing. Without
//! heartbeats the lease expires; the token stays valid until another run takes the session.

use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    pending::{PendingTurnDisposition, PendingTurnId},
    quotas::QuotaKind,
    session::History,
};
use crate::{
    config::UserQuotas,
    identity::{RequestId, SessionId, UserId},
};

/// How long the session of a dead process is locked. Ten heartbeats: a write may time out (5 s) and be tried again in time.
pub const LEASE_DURATION: Duration = Duration::from_secs(10);
/// Within this window a known request runs nothing again.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_hours(7 * 24);
pub const WATCH_WINDOW: Duration = Duration::from_secs(5);
/// How long a run stays watched after one of its readers has left. Others renew the mark within it.
pub const UNWATCH_DELAY: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunKey {
    pub user: UserId,
    pub session: SessionId,
    pub request: RequestId,
}

#[derive(Debug, Clone)]
pub struct NewRun {
    pub key: RunKey,
    /// Digest of the request's body: the same id with another body is an error of the client.
    pub fingerprint: [u8; 32],
    pub head: Vec<u8>,
    /// False for a tool result, which takes the session in `record_tool_result` if it is the last one.
    pub takes_session: bool,
    /// The client has seen frames: the request must be known, and nothing is started.
    pub resumes: bool,
    pub quotas: Option<UserQuotas>,
    /// Tokens of earlier turns that the admission reads as well; `None`: none.
    pub history_budget: Option<u32>,
}

#[cfg(test)]
impl NewRun {
    pub(crate) fn example() -> Self {
        let key = RunKey {
            user: UserId::parse("user_id", "ann").unwrap(),
            session: SessionId::parse("session_id", "s").unwrap(),
            request: RequestId::parse("request_id", "r").unwrap(),
        };
        Self {
            key,
            fingerprint: [7; 32],
            head: vec![1],
            takes_session: true,
            resumes: false,
            quotas: None,
            history_budget: None,
        }
    }
}

/// Only `Started` changes anything.
#[derive(Debug)]
pub enum AdmitOutcome {
    Started {
        lease: AdmittedLease,
        profile: Option<Vec<u8>>,
        /// `None`: it was not read; [`load_history`](super::ConversationStore::load_history) reads it.
        history: Option<History>,
    },
    /// Made within [`IDEMPOTENCY_WINDOW`]. Unless the new run `resumes`, a [`RunOutcome::Repeatable`] or lost run does
    /// not count as known: it starts again.
    Known {
        fingerprint: [u8; 32],
    },
    Unknown,
    Busy {
        retry_after: Duration,
    },
    QuotaExceeded {
        quota: QuotaKind,
        retry_after: Duration,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub key: RunKey,
    /// Fencing token, new for each start.
    pub lease_token: Uuid,
}

/// A lease that no driver has taken over yet. The admission task of [`WithDeadlines`](super::WithDeadlines) owns it until
/// then, and revokes the admission if this is dropped instead.
#[derive(Debug)]
#[must_use = "dropping it revokes the admission"]
pub struct AdmittedLease {
    lease: Lease,
    taken: Option<oneshot::Sender<()>>,
}

impl AdmittedLease {
    /// Nobody revokes it.
    pub fn unguarded(lease: Lease) -> Self {
        Self { lease, taken: None }
    }

    /// The receiver fails if the lease is dropped before it is taken.
    pub(super) fn guarded(lease: Lease) -> (Self, oneshot::Receiver<()>) {
        let (taken, is_taken) = oneshot::channel();
        (Self { lease, taken: Some(taken) }, is_taken)
    }

    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// From now on its expiry releases the lease, or the caller.
    pub fn take(self) -> Lease {
        if let Some(taken) = self.taken {
            // The admission task is gone only with its runtime.
            let _ = taken.send(());
        }
        self.lease
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameChunk {
    /// From 1 for the first frame of a run.
    pub first: u32,
    pub count: u32,
    /// At most 16 MiB, which a store may have to divide.
    pub frames: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunSignals {
    pub is_cancelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReaderSignals {
    /// A reader in another process asked within [`WATCH_WINDOW`].
    pub is_watched: bool,
    /// A request of the session waits for the end of the run.
    pub is_preempted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preemption {
    /// No other run holds the session now.
    Free,
    /// The run that holds the session is asked to end, or has lost it.
    Requested { request: RequestId },
    /// The run counts as read in its own process, or is watched from another one.
    Refused { request: RequestId, is_watched: bool },
    /// The session is being deleted.
    Deleting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    Running,
    Ended,
    Lost,
}

/// Bytes of frames that a reader takes from the store at a time. A replay that nobody reads holds no more than that, and the
/// transport's buffers.
pub const FRAME_PAGE_BYTES: usize = 64 * 1024;

/// The part of a run's stored frames that a reader takes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePage {
    /// The reader has all frames up to this number.
    pub after: u32,
    /// The chunk that begins with this frame begins with a part that the reader has; 0 = it has no part of a chunk.
    pub chunk: u32,
    /// Bytes of that part.
    pub offset: usize,
    /// Bytes of frames, of all chunks together. The last frame may be cut.
    pub limit: usize,
    /// The run counts as read from another process for [`WATCH_WINDOW`].
    pub marks_reader: bool,
}

impl FramePage {
    /// The first page of a reader in another process than the run's.
    #[must_use]
    pub fn after(after: u32) -> Self {
        Self { after, chunk: 0, offset: 0, limit: FRAME_PAGE_BYTES, marks_reader: true }
    }
}

#[derive(Debug)]
pub struct RunSnapshot {
    pub state: RunState,
    /// Another one than before means that the request has started another run.
    pub head: Vec<u8>,
    /// Number of the last stored frame; 0 = none is stored.
    pub stored: u32,
    /// In order and without a gap, within the bounds of the [`FramePage`]: the first chunk may lack its begin, and the last
    /// one its end.
    pub chunks: Vec<FrameChunk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// The same request again gets the same frames.
    Final,
    /// It failed without an effect: the same request again starts a new run.
    Repeatable,
}

/// Stored as a whole or not at all.
#[derive(Debug)]
pub struct RunEnding {
    /// Frames that no checkpoint holds.
    pub chunk: FrameChunk,
    pub outcome: RunOutcome,
    pub turn: Option<NewTurn>,
    pub tokens: u32,
    pub resumed_turn: Option<(PendingTurnId, PendingTurnDisposition)>,
    pub profile: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTurn {
    /// Several megabytes where tools returned much.
    pub record: Vec<u8>,
    /// Estimated cost of the turn in a prompt.
    pub tokens: u32,
    pub is_complete: bool,
    /// Not blank.
    pub provisional_title: String,
    pub may_be_learned: bool,
}
