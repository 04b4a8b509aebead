//! The authenticated caller.

use super::{
    error::AuthnError,
    id::{UserId, user_in_metadata},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub user: UserId,
    /// The plan that the token states. `None` = an internal service calls, and its request states the plan.
    pub is_pro: Option<bool>,
    /// When the token expires, in seconds since 1970. `None` = the caller has no token.
    pub expires_at: Option<u64>,
}

/// A caller whose credentials are right, before its message is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// May act for the user that its call names: an internal service, or anyone where no tokens are required.
    AnyUser,
    /// The subject of a token.
    User(Principal),
}

impl Caller {
    /// `body_user` is the user id in the message and may be empty; `metadata_users` are all values of the metadata `user-id`.
    pub fn act_for(self, body_user: &str, metadata_users: &[&str]) -> Result<Principal, AuthnError> {
        let Self::User(principal) = self else {
            return Ok(Principal {
                user: UserId::from_call(body_user, metadata_users)?,
                is_pro: None,
                expires_at: None,
            });
        };
        let subject = principal.user.as_str();
        let named = user_in_metadata(metadata_users, subject)?.unwrap_or_default();
        if [body_user, named].iter().any(|user| !user.is_empty() && *user != subject) {
            return Err(AuthnError::PermissionDenied);
        }
        Ok(principal)
    }
}
