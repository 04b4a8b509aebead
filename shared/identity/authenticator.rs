//! Authenticates a call by a bearer token or the internal API key, which are in its headers.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{error::CredentialError, principal::Caller, token::TokenVerifier};
use crate::config::{AuthConfig, AuthMode};

/// The secrets in the metadata of a call, with all values of each key: a proxy may have added one. They are raw bytes: one that
/// is not UTF-8 is wrong rather than absent.
#[derive(Debug, Default, Clone, Copy)]
pub struct Credentials<'a> {
    pub authorization: &'a [&'a [u8]],
    /// Metadata `x-internal-api-key`.
    pub internal_api_key: &'a [&'a [u8]],
}

pub struct Authenticator {
    mode: AuthMode,
    tokens: Option<TokenVerifier>,
    /// SHA-256.
    internal_api_key: Option<[u8; 32]>,
}

impl Authenticator {
    pub fn from_config(config: &AuthConfig) -> Result<Self, reqwest::Error> {
        Ok(Self {
            mode: config.mode,
            tokens: config.tokens.as_ref().map(TokenVerifier::new).transpose()?,
            internal_api_key: config.internal_api_key.as_ref().map(|key| sha256(key.expose().as_bytes())),
        })
    }

    /// Looks at the headers only: the body of a call from a stranger is not read.
    pub async fn verify(&self, credentials: Credentials<'_>) -> Result<Caller, CredentialError> {
        let authorization = single(credentials.authorization, CredentialError::Invalid)?;
        let key = single(credentials.internal_api_key, CredentialError::WrongInternalKey)?;
        let bearer = authorization.and_then(bearer_token);
        if self.is_internal_service(bearer, key)? || self.mode != AuthMode::Jwt {
            return Ok(Caller::AnyUser);
        }
        let (Some(tokens), Some(token)) = (&self.tokens, bearer) else { return Err(CredentialError::Missing) };
        let token = std::str::from_utf8(token).map_err(|_| CredentialError::Invalid)?;
        Ok(Caller::User(tokens.verify(token).await?))
    }

    /// Internal services may act for any user. They send the key in its own header or as a bearer token.
    fn is_internal_service(&self, bearer: Option<&[u8]>, key: Option<&[u8]>) -> Result<bool, CredentialError> {
        let Some(expected) = &self.internal_api_key else { return Ok(false) };
        // Constant time hides how much of a wrong key is right, and comparing digests hides the length of the right one.
        let is_right = |given: &[u8]| bool::from(sha256(given).ct_eq(expected));
        match key {
            Some(key) if is_right(key) => Ok(true),
            // A wrong key is an error, although a valid token may come with it: the caller is misconfigured.
            Some(_) => Err(CredentialError::WrongInternalKey),
            None => Ok(bearer.is_some_and(is_right)),
        }
    }
}

/// Values that differ are an error: which of them counts must not depend on who reads them.
fn single<'a>(values: &[&'a [u8]], error: CredentialError) -> Result<Option<&'a [u8]>, CredentialError> {
    match values {
        [] => Ok(None),
        [first, others @ ..] if others.iter().all(|other| other == first) => Ok(Some(first)),
        _ => Err(error),
    }
}

/// The scheme's name is case-insensitive (RFC 9110, section 11.1).
fn bearer_token(header: &[u8]) -> Option<&[u8]> {
    let header = header.trim_ascii();
    let (scheme, token) = header.split_at_checked(header.iter().position(|byte| *byte == b' ')?)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer") && !token.is_empty()).then_some(token)
}

fn sha256(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}
