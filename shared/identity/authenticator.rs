//! Proof of who calls, before anything is done for them.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{UserId, token::TokenVerifier};
use crate::{
    config::{AuthConfig, AuthMode},
    error::InvalidArgument,
};

/// What the metadata of a call tells of its caller. A proof is taken as it came: bytes that are no text are a wrong one, and not
/// none.
#[derive(Debug, Default, Clone, Copy)]
pub struct Credentials<'a> {
    /// The user that the body names; may be empty.
    pub body_user: &'a str,
    /// `user-id`.
    pub user_id: Option<&'a str>,
    /// `authorization`.
    pub authorization: Option<&'a [u8]>,
    /// `x-internal-api-key`.
    pub internal_api_key: Option<&'a [u8]>,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    /// The call names no user, or none that can be.
    #[error(transparent)]
    Invalid(#[from] InvalidArgument),
    /// The call does not prove who makes it.
    #[error("{0}")]
    Unauthenticated(#[from] CredentialError),
    /// The call is about a user that its caller is not.
    #[error("user_id is not the subject of the token")]
    PermissionDenied,
}

/// Why a proof is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// There is no bearer token.
    #[error("there is no bearer token")]
    Missing,
    /// The token is malformed, not signed by a known key, or for somebody else.
    #[error("the token is not valid")]
    Invalid,
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
    /// The service's own key is wrong.
    #[error("the internal API key is wrong")]
    WrongInternalKey,
    /// The keys that could check it can not be fetched.
    #[error("the keys of the token's issuer can not be fetched")]
    KeysUnavailable,
}

/// Whose call it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The user.
    pub user: UserId,
    /// Whether the user's token says that they have a paid plan; `None` = a service of ours calls, whose word on it counts.
    pub is_pro: Option<bool>,
}

/// Finds out whose call it is.
pub struct Authenticator {
    auth: AuthMode,
    tokens: Option<TokenVerifier>,
    /// SHA-256 of the service's own key.
    internal_api_key: Option<[u8; 32]>,
}

impl Authenticator {
    /// Those whom the configuration lets in.
    ///
    /// # Errors
    /// The HTTP client for the issuer's keys can not be built.
    pub fn from_config(config: &AuthConfig) -> Result<Self, reqwest::Error> {
        Ok(Self {
            auth: config.mode,
            tokens: config.tokens.as_ref().map(TokenVerifier::new).transpose()?,
            internal_api_key: config.internal_api_key.as_ref().map(|key| digest(key.expose().as_bytes())),
        })
    }

    /// The user whose call it is: the one that it names, once it is proven that it may.
    ///
    /// # Errors
    /// Who calls is not proven, or it is somebody else.
    pub async fn authenticate(&self, claim: Credentials<'_>) -> Result<Principal, AuthnError> {
        let bearer = claim.authorization.and_then(bearer);
        if self.is_service(bearer, claim.internal_api_key)? || self.auth != AuthMode::Jwt {
            return Ok(Principal { user: UserId::from_call(claim.body_user, claim.user_id)?, is_pro: None });
        }
        let (Some(tokens), Some(token)) = (&self.tokens, bearer) else { return Err(CredentialError::Missing.into()) };
        let proven = tokens.verify(std::str::from_utf8(token).map_err(|_| CredentialError::Invalid)?).await?;
        for named in [claim.body_user, claim.user_id.unwrap_or_default()] {
            if !named.is_empty() && named != proven.user.as_str() {
                return Err(AuthnError::PermissionDenied);
            }
        }
        Ok(proven)
    }

    /// Whether a service of ours calls, which may act for any user.
    fn is_service(&self, bearer: Option<&[u8]>, key: Option<&[u8]>) -> Result<bool, CredentialError> {
        let Some(expected) = &self.internal_api_key else { return Ok(false) };
        // In constant time, so that a wrong key does not tell how much of it is right; and by digests, so that it does not tell
        // how long the right one is.
        let is_right = |given: &[u8]| bool::from(digest(given).ct_eq(expected));
        match key {
            Some(key) if is_right(key) => Ok(true),
            // Whoever shows a key means it.
            Some(_) => Err(CredentialError::WrongInternalKey),
            None => Ok(bearer.is_some_and(is_right)),
        }
    }
}

/// The token of an `authorization` header of the scheme Bearer, whose name has no case (RFC 9110, section 11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let header = header.trim_ascii();
    let (scheme, token) = header.split_at_checked(header.iter().position(|byte| *byte == b' ')?)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer") && !token.is_empty()).then_some(token)
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}
