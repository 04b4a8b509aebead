//! Verifies bearer tokens: JWTs (RFC 7519), signed by a shared secret or by the issuer's published keys.

use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, errors::ErrorKind, get_current_timestamp};
use serde::Deserialize;

use super::{
    error::CredentialError,
    id::UserId,
    keys::{KeyLifetimes, KeySet},
    principal::Principal,
    signature::install_ring,
};
use crate::config::{TokenConfig, TokenKeys};

/// Tolerated clock skew.
const LEEWAY_SECONDS: u64 = 30;
/// More than any client's header carries.
const MAX_TOKEN_BYTES: usize = 12_000;

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
    exp: u64,
    #[serde(default)]
    is_pro: bool,
    iat: Option<f64>,
}

impl TokenVerifier {
    pub(super) fn new(config: &TokenConfig) -> Result<Self, reqwest::Error> {
        install_ring();
        let keys = match &config.keys {
            TokenKeys::Secret(secret) => VerificationKeys::Shared(DecodingKey::from_secret(secret.expose().as_bytes())),
            TokenKeys::JwksUrl(url) => {
                if config.audience.is_none() {
                    tracing::warn!(
                        "JWT_AUDIENCE is not set: tokens that the issuer of JWT_JWKS_URL made for other services are accepted"
                    );
                }
                VerificationKeys::Published(KeySet::new(url, KeyLifetimes::default())?)
            }
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
        if token.len() > MAX_TOKEN_BYTES {
            return Err(CredentialError::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| CredentialError::Invalid)?;
        check_header(&header)?;
        match &self.keys {
            VerificationKeys::Shared(key) => self.check(token, key, Algorithm::HS256),
            VerificationKeys::Published(keys) => {
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
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact in f64")]
        let latest = get_current_timestamp().saturating_add(LEEWAY_SECONDS) as f64;
        if decoded.claims.iat.is_some_and(|issued_at| issued_at > latest) {
            return Err(CredentialError::Invalid);
        }
        let user = UserId::parse("sub", &decoded.claims.sub).map_err(|_| CredentialError::Invalid)?;
        Ok(Principal { user, is_pro: Some(decoded.claims.is_pro), expires_at: Some(decoded.claims.exp) })
    }
}

/// The header of a token that this service may judge.
fn check_header(header: &Header) -> Result<(), CredentialError> {
    // No extension is implemented, and one that is marked critical must not be ignored (RFC 7515, section 4.1.11).
    if header.crit.is_some() {
        return Err(CredentialError::Invalid);
    }
    // A token of another kind by the same issuer, such as a logout token, is no access token (RFC 8725, section 3.11).
    let kind = header.typ.as_deref().unwrap_or_default().to_ascii_lowercase();
    let kind = kind.strip_prefix("application/").unwrap_or(&kind);
    if kind.ends_with("+jwt") && kind != "at+jwt" { Err(CredentialError::Invalid) } else { Ok(()) }
}
