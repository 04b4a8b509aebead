//! How callers prove who they are.

use super::{Reader, Secret};

pub(super) const AUTH: &str = "AUTH";
pub(super) const JWT_SECRET: &str = "JWT_SECRET";
pub(super) const JWT_JWKS_URL: &str = "JWT_JWKS_URL";
pub(super) const JWT_ISSUER: &str = "JWT_ISSUER";
pub(super) const JWT_AUDIENCE: &str = "JWT_AUDIENCE";
pub(super) const INTERNAL_API_KEY: &str = "INTERNAL_API_KEY";

/// How callers prove who they are.
#[derive(Debug, Clone)]
pub struct CallersConfig {
    /// By what.
    pub auth: Auth,
    /// How tokens are checked; there for [`Auth::Jwt`].
    pub tokens: Option<TokenConfig>,
    /// The key of our own services, which may act for any user.
    pub internal_api_key: Option<Secret>,
}

/// By what callers prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Nothing: only callers on this machine are let in.
    None,
    /// Bearer tokens.
    Jwt,
    /// A gateway in front has checked them, and nobody else can reach the port.
    Gateway,
}

/// How tokens are checked.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// Whose signatures count.
    pub keys: TokenKeys,
    /// The `iss` that tokens must have; `None` = any.
    pub issuer: Option<String>,
    /// The `aud` that tokens must have; `None` = any.
    pub audience: Option<String>,
}

/// Whose signatures count.
#[derive(Debug, Clone)]
pub enum TokenKeys {
    /// A secret that the issuer shares with us (HS256).
    Secret(Secret),
    /// The issuer's public keys at a URL (RS256, ES256).
    Published(String),
}

impl CallersConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let choices = [("none", Auth::None), ("jwt", Auth::Jwt), ("gateway", Auth::Gateway)];
        let auth = reader.choice(AUTH, &choices).unwrap_or(Auth::None);
        let secret = reader.text(JWT_SECRET).map(Secret::new);
        let url = reader.url(JWT_JWKS_URL, &["https", "http"], "https://issuer.example.com/.well-known/jwks.json");
        let keys = match (secret, url) {
            (Some(_), Some(_)) => {
                reader.mistake(JWT_SECRET, "is set, and JWT_JWKS_URL too: tokens are checked by one of them", "");
                None
            }
            (Some(secret), None) => Some(TokenKeys::Secret(secret)),
            (None, url) => url.map(TokenKeys::Published),
        };
        if auth == Auth::Jwt
            && keys.is_none()
            && reader.text(JWT_SECRET).is_none()
            && reader.text(JWT_JWKS_URL).is_none()
        {
            let problem = "is not set, and JWT_JWKS_URL neither, but AUTH=jwt needs one of them";
            reader.mistake(JWT_SECRET, problem, "the-secret-of-the-gateway");
        }
        let (issuer, audience) = (reader.text(JWT_ISSUER), reader.text(JWT_AUDIENCE));
        Self {
            auth,
            tokens: keys.filter(|_| auth == Auth::Jwt).map(|keys| TokenConfig { keys, issuer, audience }),
            internal_api_key: reader.text(INTERNAL_API_KEY).map(Secret::new),
        }
    }
}
