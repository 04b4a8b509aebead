//! Bearer tokens: JWTs (RFC 7519) that prove who calls.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;

use super::{
    CredentialError, Principal, UserId,
    keys::{KeyLifetimes, KeySet},
};
use crate::config::{TokenConfig, TokenKeys};

/// How far the clocks of issuer and service may differ, in seconds.
const LEEWAY: u64 = 30;
/// The least that a secret for HS256 should have (RFC 7518, section 3.2).
const SECRET_BYTES: usize = 32;

/// Checks tokens: signature, issuer, audience and times.
pub(super) struct TokenVerifier {
    keys: Keys,
    /// All but the algorithms, which depend on the key.
    validation: Validation,
}

enum Keys {
    /// A secret that issuer and service share. Only HS256 is accepted, so that no public key is ever taken for a secret.
    Shared(DecodingKey),
    /// The issuer's public keys. Only RS256 and ES256 are accepted, each with a key of its kind.
    Published(KeySet),
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Whether the user has a paid plan.
    #[serde(default)]
    is_pro: bool,
}

impl TokenVerifier {
    pub(super) fn new(config: &TokenConfig) -> Result<Self, reqwest::Error> {
        let keys = match &config.keys {
            TokenKeys::Secret(secret) => {
                if secret.expose().len() < SECRET_BYTES {
                    // Refusing it would lock out the users of a gateway that signs with it.
                    tracing::warn!(
                        "JWT_SECRET is shorter than {SECRET_BYTES} bytes, so that it can be guessed from any token"
                    );
                }
                Keys::Shared(DecodingKey::from_secret(secret.expose().as_bytes()))
            }
            TokenKeys::JwksUrl(url) => Keys::Published(KeySet::new(url, KeyLifetimes::default())?),
        };
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY;
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

    /// Whom a token proves.
    pub(super) async fn verify(&self, token: &str) -> Result<Principal, CredentialError> {
        match &self.keys {
            Keys::Shared(key) => self.check(token, key, Algorithm::HS256),
            Keys::Published(keys) => {
                let header = jsonwebtoken::decode_header(token).map_err(|_| CredentialError::Invalid)?;
                if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
                    return Err(CredentialError::Invalid);
                }
                let fitting = keys.find(header.kid.as_deref(), header.alg).await?;
                let mut checked = fitting.iter().map(|key| self.check(token, key, header.alg));
                // Only a key that fits gets further than the signature.
                checked
                    .find(|checked| *checked != Err(CredentialError::Invalid))
                    .unwrap_or(Err(CredentialError::Invalid))
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
