//! Names of stored attributes; they never change. `keys.rs` has those of the key.

pub(super) const LEASE_TOKEN: &str = "holder";
pub(super) const SESSION: &str = "session_id";
pub(super) const REQUEST: &str = "request_id";

pub(super) const FINGERPRINT: &str = "fingerprint";
pub(super) const HEAD: &str = "head";
pub(super) const PHASE: &str = "phase";
/// Values of the phase. A run is lost when another one has taken its session.
pub(super) const RUNNING: &str = "running";
pub(super) const ENDED: &str = "ended";
pub(super) const LOST: &str = "lost";
pub(super) const ALIVE_UNTIL: &str = "alive_until";
pub(super) const CANCELLED: &str = "cancelled";
pub(super) const WATCHED_UNTIL: &str = "watched_until";
/// Absent: somebody reads the run.
pub(super) const UNREAD_SINCE: &str = "unread_since";
pub(super) const PREEMPTED: &str = "preempted";
pub(super) const FRAMES: &str = "frames";
pub(super) const STARTED_AT: &str = "started_at";
pub(super) const HOLDS_SESSION: &str = "holds_session";
/// Expiry of a lease that a deletion holds.
pub(super) const HELD_UNTIL: &str = "held_until";
pub(super) const FIRST_FRAME: &str = "first_frame";
pub(super) const FRAME_COUNT: &str = "frame_count";

pub(super) const TURNS: &str = "turns";
pub(super) const CREATED_AT: &str = "created_at";
pub(super) const TITLE: &str = "title";
pub(super) const SUMMARY: &str = "summary";
pub(super) const SUMMARY_THROUGH: &str = "summary_through";
pub(super) const IS_COMPLETE: &str = "is_complete";
pub(super) const MAY_BE_LEARNED: &str = "may_be_learned";
pub(super) const TOKENS: &str = "tokens";
/// Active runs, and lost ones that were not noticed yet.
pub(super) const STREAMS: &str = "streams";

pub(super) const TURN: &str = "turn_id";
pub(super) const CALLS: &str = "calls";
pub(super) const AWAITED: &str = "awaited";
pub(super) const STORED_AT: &str = "kept_at";
pub(super) const RESUMED_BY: &str = "resumed_by";
pub(super) const RESUMED_REQUEST: &str = "resumed_request";
pub(super) const RESUMED_AT: &str = "resumed_at";
pub(super) const CALL: &str = "call_id";
