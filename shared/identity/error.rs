//! The errors of authentication.

use crate::error::InvalidArgument;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    #[error(transparent)]
    Invalid(#[from] InvalidArgument),
    #[error("{0}")]
    Unauthenticated(#[from] CredentialError),
    /// The call names another user than its token.
    #[error("user_id is not the subject of the token")]
    PermissionDenied,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("there is no bearer token")]
    Missing,
    /// Malformed, not signed by a known key, or with another issuer or audience. The client is not told which.
    #[error("the token is not valid")]
    Invalid,
    #[error("the token has expired")]
    Expired,
    #[error("the internal API key is wrong")]
    WrongInternalKey,
    #[error("the keys of the token's issuer cannot be fetched")]
    KeysUnavailable,
}
