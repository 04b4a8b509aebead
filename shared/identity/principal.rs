//! The authenticated caller.

use super::id::UserId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub user: UserId,
    /// The plan that the token states. `None` = an internal service calls, and its request states the plan.
    pub is_pro: Option<bool>,
    /// When the token expires, in seconds since 1970. `None` = the caller has no token.
    pub expires_at: Option<u64>,
}
