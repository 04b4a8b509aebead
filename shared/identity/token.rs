//! Verifies bearer tokens: JWTs (RFC 7519), signed by a shared secret or by the issuer's published keys.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;

use super::{
    error::CredentialError,
    id::UserId,
    keys::{KeyLifetimes, KeySet},
    principal::Principal,
};
use crate::config::{TokenConfig, TokenKeys};

/// Tolerated clock skew.
const LEEWAY_SECONDS: u64 = 30;
/// The minimum for HS256 (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

pub(super) struct TokenVerifier {
    keys: VerificationKeys,
    /// Without algorithms, which depend on the key.
    validation: Validation,
}

enum VerificationKeys {
    /// Only HS256 is accepted, so that no public key can pass for the secret (algorithm confusion).
    Shared(DecodingKey),
    /// Only RS256 and ES256 are accepted, each with a key of its type.
    Published(KeySet),
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    is_pro: bool,
}

impl TokenVerifier {
    pub(super) fn new(config: &TokenConfig) -> Result<Self, reqwest::Error> {
        let keys = match &config.keys {
            TokenKeys::Secret(secret) => {
                if secret.expose().len() < MIN_SECRET_BYTES {
                    // No error: that would lock out the users of a gateway that already signs with it.
                    tracing::warn!(
                        "JWT_SECRET is shorter than {MIN_SECRET_BYTES} bytes and can be guessed from any token"
                    );
                }
                VerificationKeys::Shared(DecodingKey::from_secret(secret.expose().as_bytes()))
            }
            TokenKeys::JwksUrl(url) => VerificationKeys::Published(KeySet::new(url, KeyLifetimes::default())?),
        };
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.required_spec_claims = ["exp", "sub"].map(str::to_owned).into();
        validation.validate_aud = config.audience.is_some();
        if let Some(audience) = &config.audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        Ok(Self { keys, validation })
    }

    pub(super) async fn verify(&self, token: &str) -> Result<Principal, CredentialError> {
        match &self.keys {
            VerificationKeys::Shared(key) => self.check(token, key, Algorithm::HS256),
            VerificationKeys::Published(keys) => {
                let header = jsonwebtoken::decode_header(token).map_err(|_| CredentialError::Invalid)?;
                if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
                    return Err(CredentialError::Invalid);
                }
                let candidates = keys.find(header.kid.as_deref(), header.alg).await?;
                let mut results = candidates.iter().map(|key| self.check(token, key, header.alg));
                // Any other result comes from the right key: its signature matched.
                results.find(|result| *result != Err(CredentialError::Invalid)).unwrap_or(Err(CredentialError::Invalid))
            }
        }
    }

    fn check(&self, token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<Principal, CredentialError> {
        let validation = Validation { algorithms: vec![algorithm], ..self.validation.clone() };
        let decoded = jsonwebtoken::decode::<Claims>(token, key, &validation).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => CredentialError::Expired,
            _ => CredentialError::Invalid,
        })?;
        let user = UserId::parse("sub", &decoded.claims.sub).map_err(|_| CredentialError::Invalid)?;
        Ok(Principal { user, is_pro: Some(decoded.claims.is_pro) })
    }
}
