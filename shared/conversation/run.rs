//! Runs: what one request sets going, from its admission to its end, and what is kept of it meanwhile.

use std::time::Duration;

use uuid::Uuid;

use super::{QuotaKind, UserQuotas};
use crate::identity::{RequestId, SessionId, UserId};

/// How long a run holds its conversation without a sign of life. After this its process is taken for dead.
pub const LEASE_DURATION: Duration = Duration::from_secs(30);
/// How long a request and its frames are remembered after it ended: a repetition of it within this time runs nothing.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_hours(7 * 24);
/// How long a look from another process counts as somebody who waits for the answer.
pub const WATCH_WINDOW: Duration = Duration::from_secs(5);

/// Which run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunKey {
    /// Whose.
    pub user: UserId,
    /// In which conversation.
    pub session: SessionId,
    /// What set it going; unique for the user.
    pub request: RequestId,
}

/// A run that asks to be let in.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Which.
    pub key: RunKey,
    /// Digest of the request's body: the same id with another body is a mistake.
    pub fingerprint: [u8; 32],
    /// What all frames of the run have in common.
    pub head: Vec<u8>,
    /// Whether it takes the conversation for itself at once. One that brings the result of a tool takes it in
    /// [`ConversationStore::accept`](super::ConversationStore::accept), if the result is the last.
    pub takes_session: bool,
    /// Whether the client has seen a part of it: then it must be known already, and nothing is started.
    pub resumes: bool,
    /// What the user may use; `None` = as much as they like.
    pub quotas: Option<UserQuotas>,
}

/// What becomes of a run that asked to be let in. In every case but the first nothing has changed.
#[derive(Debug)]
pub enum AdmitOutcome {
    /// It runs, and counts.
    Started {
        /// To be shown with everything that the run does.
        lease: Lease,
        /// The user's profile as it was kept last.
        profile: Option<Vec<u8>>,
    },
    /// The user made this request before, within [`REMEMBERED`]. Except where the run `resumes`, one does not count as known
    /// that ended as [`Outcome::Repeatable`] or whose process died; it is started anew.
    Known {
        /// In which conversation it runs or ran.
        session: SessionId,
        /// Digest of its body.
        fingerprint: [u8; 32],
    },
    /// The run `resumes`, and nothing is known of it.
    Unknown,
    /// Another run has the conversation.
    Busy {
        /// When its lease ends, unless it is renewed.
        retry_after: Duration,
    },
    /// The user has used up what they may.
    QuotaExceeded {
        /// What of it.
        quota: QuotaKind,
        /// When it may be had again.
        retry_after: Duration,
    },
}

/// The right to write what a run does. A process that lost it, because it gave no sign of life, can change nothing any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Of which run.
    pub key: RunKey,
    /// Who holds it: new for each start.
    pub lease_token: Uuid,
}

/// Frames that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameChunk {
    /// Number of the first one; that of the run's first frame is 1.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// The frames; the room does not look into them. At most 16 MiB, which a store may have to divide.
    pub frames: Vec<u8>,
}

/// What others have left for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunSignals {
    /// Somebody wants it to stop.
    pub is_cancelled: bool,
    /// Somebody looked at it from another process within [`WATCHED`].
    pub is_watched: bool,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It runs.
    Running,
    /// All its frames are there.
    Ended,
    /// Its process died: no more frames come.
    Lost,
}

/// What is kept of a run.
#[derive(Debug)]
pub struct RunSnapshot {
    /// How it stands.
    pub state: RunState,
    /// What all its frames have in common.
    pub head: Vec<u8>,
    /// Those chunks that hold frames after the one that was asked for, in order.
    pub chunks: Vec<FrameChunk>,
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// A repetition of the request gets the same frames.
    Final,
    /// It failed before it came to anything: a repetition of the request runs anew.
    Repeatable,
}

/// The end of a run: everything of it is kept, or nothing.
#[derive(Debug)]
pub struct RunEnding {
    /// The last frames, which no checkpoint holds.
    pub chunk: FrameChunk,
    /// How it ends.
    pub outcome: RunOutcome,
    /// The turn, where one is over.
    pub turn: Option<NewTurn>,
    /// Tokens that count against the user's limit.
    pub tokens: u32,
    /// What becomes of the turn that waited for tools and went on in this run.
    pub resumed_turn: Option<(super::PendingTurnId, PendingTurnDisposition)>,
    /// The user's profile, where it changed.
    pub profile: Option<Vec<u8>>,
}

/// What becomes of a turn that waited for tools and went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingTurnDisposition {
    /// It is over, or waits for other tools.
    Done,
    /// Its last result may be given again.
    Reopened,
}

/// A turn that is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTurn {
    /// What was said; the room does not look into it. Several megabytes where tools said much.
    pub record: Vec<u8>,
    /// A rough count of what it costs to tell a model of it.
    pub tokens: u32,
    /// Whether it came to its end; otherwise it was interrupted.
    pub is_complete: bool,
    /// What the conversation is called until it gets a title; not blank.
    pub provisional_title: String,
    /// Whether something may be learned from it.
    pub may_be_learned: bool,
}
