//! Runs. A run is one execution that a request started, stored with its frames, from admission to end.
//!
//! A lease says which process may write a run. Its token is a fencing token: each start of a request has a new one, and a
//! process whose token is no longer the run's can change nothing. A lease that is not renewed by heartbeats expires, and
//! with it the process counts as dead; its token stays good until another run takes the session.

use std::time::Duration;

use uuid::Uuid;

use super::{
    pending::{PendingTurnDisposition, PendingTurnId},
    quotas::QuotaKind,
};
use crate::{
    config::UserQuotas,
    identity::{RequestId, SessionId, UserId},
};

/// Lease expiry after the last heartbeat.
pub const LEASE_DURATION: Duration = Duration::from_secs(30);
/// How long a request and its frames are stored after its end. Within this window the same request runs nothing again.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_hours(7 * 24);
/// How long a reader in another process counts as watching.
pub const WATCH_WINDOW: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunKey {
    pub user: UserId,
    pub session: SessionId,
    /// Unique for the user.
    pub request: RequestId,
}

/// A run that asks for admission.
#[derive(Debug, Clone)]
pub struct NewRun {
    pub key: RunKey,
    /// Digest of the request's body: the same id with another body is an error of the client.
    pub fingerprint: [u8; 32],
    /// Envelope of all frames of the run.
    pub head: Vec<u8>,
    /// Whether the run takes the session at its admission. One with a tool result takes it in
    /// [`record_tool_result`](super::ConversationStore::record_tool_result), if the result is the last one.
    pub takes_session: bool,
    /// Whether the client has seen frames of it: then it must be known, and nothing is started.
    pub resumes: bool,
    /// `None` = unlimited.
    pub quotas: Option<UserQuotas>,
}

/// The outcome of an admission. Only `Started` changes anything.
#[derive(Debug)]
pub enum AdmitOutcome {
    Started {
        lease: Lease,
        /// The user's profile as it was stored last.
        profile: Option<Vec<u8>>,
    },
    /// The user made this request within [`IDEMPOTENCY_WINDOW`]. Unless the new run `resumes`, a request does not count as
    /// known if its run ended as [`RunOutcome::Repeatable`] or is lost: it starts again.
    Known {
        fingerprint: [u8; 32],
    },
    /// The run `resumes`, and the request is not known.
    Unknown,
    /// Another run holds the session.
    Busy {
        /// Until its lease expires, unless it is renewed.
        retry_after: Duration,
    },
    QuotaExceeded {
        quota: QuotaKind,
        retry_after: Duration,
    },
}

/// The right to write a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub key: RunKey,
    /// Fencing token, new for each start.
    pub lease_token: Uuid,
}

/// Consecutive frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameChunk {
    /// Number of the first one; the first frame of a run is 1.
    pub first: u32,
    pub count: u32,
    /// At most 16 MiB, which a store may have to divide.
    pub frames: Vec<u8>,
}

/// Signals of other processes for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunSignals {
    pub is_cancelled: bool,
    /// A reader in another process asked within [`WATCH_WINDOW`].
    pub is_watched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    Running,
    /// All its frames are stored.
    Ended,
    /// Its lease expired: no more frames come.
    Lost,
}

#[derive(Debug)]
pub struct RunSnapshot {
    pub state: RunState,
    pub head: Vec<u8>,
    /// Chunks with frames after the one that was asked for, in order and without a gap.
    pub chunks: Vec<FrameChunk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// The same request again gets the same frames.
    Final,
    /// It failed without an effect: the same request again starts a new run.
    Repeatable,
}

/// The end of a run, stored as a whole or not at all.
#[derive(Debug)]
pub struct RunEnding {
    /// The last frames, which no checkpoint holds.
    pub chunk: FrameChunk,
    pub outcome: RunOutcome,
    /// The turn, if one is over.
    pub turn: Option<NewTurn>,
    /// Tokens that count against the user's quota.
    pub tokens: u32,
    /// The pending turn that the run has resumed.
    pub resumed_turn: Option<(PendingTurnId, PendingTurnDisposition)>,
    /// The user's profile, if it has changed.
    pub profile: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTurn {
    /// Several megabytes where tools returned much.
    pub record: Vec<u8>,
    /// Estimated cost of the turn in a prompt.
    pub tokens: u32,
    /// Whether it came to its end; otherwise it was interrupted.
    pub is_complete: bool,
    /// The session's title until it gets a better one; not blank.
    pub provisional_title: String,
    /// Whether facts may be extracted from it.
    pub may_be_learned: bool,
}
