//! Names of attributes, apart from those of the key in `keys.rs`. They are stored and never change.

/// The lease token, in runs and leases.
pub(super) const LEASE_TOKEN: &str = "holder";
pub(super) const SESSION: &str = "session_id";
pub(super) const REQUEST: &str = "request_id";

pub(super) const FINGERPRINT: &str = "fingerprint";
pub(super) const HEAD: &str = "head";
pub(super) const PHASE: &str = "phase";
/// The values of a run's phase. A run is lost when another one has taken its session.
pub(super) const RUNNING: &str = "running";
pub(super) const ENDED: &str = "ended";
pub(super) const LOST: &str = "lost";
/// Lease expiry of a run.
pub(super) const ALIVE_UNTIL: &str = "alive_until";
pub(super) const CANCELLED: &str = "cancelled";
pub(super) const WATCHED_UNTIL: &str = "watched_until";
/// Number of the last frame that counts.
pub(super) const FRAMES: &str = "frames";
/// When the run was admitted.
pub(super) const STARTED_AT: &str = "started_at";
/// Whether the run holds its session's lease.
pub(super) const HOLDS_SESSION: &str = "holds_session";
/// Expiry of a lease that belongs to a deletion and to no run.
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
/// Tokens of a turn, or those that a user has used on a day.
pub(super) const TOKENS: &str = "tokens";
/// Lease tokens and requests of a user's active runs, as far as no lost run among them was noticed.
pub(super) const STREAMS: &str = "streams";

pub(super) const TURN: &str = "turn_id";
/// Digests of all calls of a pending turn, and of those without a result.
pub(super) const CALLS: &str = "calls";
pub(super) const AWAITED: &str = "awaited";
pub(super) const STORED_AT: &str = "kept_at";
/// Lease token and request of the run that has resumed a pending turn, and when.
pub(super) const RESUMED_BY: &str = "resumed_by";
pub(super) const RESUMED_REQUEST: &str = "resumed_request";
pub(super) const RESUMED_AT: &str = "resumed_at";
pub(super) const CALL: &str = "call_id";
