use std::net::IpAddr;

use reqwest::Url;

use super::{EntryPoint, EnvReader, Secret};

pub(super) const AUTH: &str = "AUTH";
pub(super) const JWT_SECRET: &str = "JWT_SECRET";
pub(super) const JWT_JWKS_URL: &str = "JWT_JWKS_URL";
pub(super) const JWT_ISSUER: &str = "JWT_ISSUER";
pub(super) const JWT_AUDIENCE: &str = "JWT_AUDIENCE";
pub(super) const INTERNAL_API_KEY: &str = "INTERNAL_API_KEY";

const JWKS_EXAMPLE: &str = "https://issuer.example.com/.well-known/jwks.json";
const SECRET_EXAMPLE: &str = "$(openssl rand -hex 32)";

/// The minimum of HS256 (RFC 7518, section 3.2). A shorter one can be guessed from any token.
const MIN_JWT_SECRET_BYTES: usize = 32;
const MIN_INTERNAL_API_KEY_BYTES: usize = 16;

#[derive(Debug, Clone)]
pub struct AuthConfig {
    pub mode: AuthMode,
    /// Set for [`AuthMode::Jwt`].
    pub tokens: Option<TokenConfig>,
    /// The key of internal services, which may act for any user.
    pub internal_api_key: Option<Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// No authentication: only callers on this machine are accepted.
    None,
    Jwt,
    /// A gateway authenticates callers and is the only one that can reach the port.
    Gateway,
}

#[derive(Debug, Clone)]
pub struct TokenConfig {
    pub keys: TokenKeys,
    /// Required `iss`; `None` = any.
    pub issuer: Option<String>,
    /// Required `aud`; `None` = any.
    pub audience: Option<String>,
}

#[derive(Debug, Clone)]
pub enum TokenKeys {
    /// A secret shared with the issuer (HS256).
    Secret(Secret),
    /// The issuer's JWKS with public keys (RS256, ES256).
    JwksUrl(String),
}

impl AuthConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>, entry_point: EntryPoint) -> Self {
        let choices = [("none", AuthMode::None), ("jwt", AuthMode::Jwt), ("gateway", AuthMode::Gateway)];
        let mode = reader.choice(AUTH, &choices).unwrap_or(AuthMode::None);
        if mode == AuthMode::Gateway && entry_point == EntryPoint::Function {
            let problem = "is gateway, but a function has no gateway in front and anyone can call it: set it to jwt with \
                           JWT_SECRET or JWT_JWKS_URL";
            reader.report(AUTH, problem, "jwt");
        }
        let key_variable = [JWT_SECRET, JWT_JWKS_URL].into_iter().find(|name| reader.text(name).is_some());
        // A configured key without a mode is ambiguous; defaulting to `none` would leave the service open.
        if let (None, Some(name)) = (reader.text(AUTH), key_variable) {
            reader.report(AUTH, format!("is not set, but {name} is: set it to jwt, or to none"), "jwt");
        }
        let keys = read_keys(reader);
        if mode == AuthMode::Jwt && key_variable.is_none() {
            let problem = "is not set, nor is JWT_JWKS_URL, but AUTH=jwt needs one of them";
            reader.report(JWT_SECRET, problem, SECRET_EXAMPLE);
        }
        let (issuer, audience) = (reader.text(JWT_ISSUER), reader.text(JWT_AUDIENCE));
        Self {
            mode,
            tokens: keys.filter(|_| mode == AuthMode::Jwt).map(|keys| TokenConfig { keys, issuer, audience }),
            internal_api_key: read_internal_api_key(reader),
        }
    }
}

fn read_internal_api_key(reader: &mut EnvReader<'_>) -> Option<Secret> {
    let key = read_secret(reader, INTERNAL_API_KEY, MIN_INTERNAL_API_KEY_BYTES)?;
    if reader.text(JWT_SECRET).is_some_and(|secret| secret == key.expose()) {
        let problem =
            "is the same as JWT_SECRET, so that a service that sends it could sign tokens too: set another one";
        reader.report(INTERNAL_API_KEY, problem, SECRET_EXAMPLE);
    }
    Some(key)
}

/// A weak secret is an error in every mode, although it may not be used: it would be when the mode changes.
fn read_secret(reader: &mut EnvReader<'_>, variable: &'static str, min_bytes: usize) -> Option<Secret> {
    let secret = Secret::new(reader.text(variable)?);
    if let Some(weakness) = secret.weakness(min_bytes) {
        reader.report(variable, format!("{weakness}: set it to a random value"), SECRET_EXAMPLE);
    }
    Some(secret)
}

fn read_keys(reader: &mut EnvReader<'_>) -> Option<TokenKeys> {
    let secret = read_secret(reader, JWT_SECRET, MIN_JWT_SECRET_BYTES);
    let url = reader.url(JWT_JWKS_URL, &["https", "http"], JWKS_EXAMPLE);
    if url.as_deref().is_some_and(is_remote_plaintext) {
        let problem = "begins with http://, so that an attacker on the network could replace the keys: use https:// (http:// is \
                       accepted for this machine only)";
        reader.report(JWT_JWKS_URL, problem, JWKS_EXAMPLE);
    }
    match (secret, url) {
        (Some(_), Some(_)) => {
            reader.report(JWT_SECRET, "is set, and JWT_JWKS_URL too: set one of them", "");
            None
        }
        (Some(secret), None) => Some(TokenKeys::Secret(secret)),
        (None, url) => url.map(TokenKeys::JwksUrl),
    }
}

fn is_remote_plaintext(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() == "http" && !is_loopback
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, InvalidSetting};

    fn errors(entry_point: EntryPoint, variables: &[(&str, &str)]) -> Vec<InvalidSetting> {
        let value = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        Config::read_for(entry_point, &value).err().map_or_else(Vec::new, |errors| errors.0)
    }

    fn problem(entry_point: EntryPoint, variables: &[(&str, &str)]) -> String {
        let errors = errors(entry_point, variables);
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        format!("{} {}", error.variable, error.problem)
    }

    #[test]
    fn gateway_mode_is_invalid_for_functions() {
        let gateway = [(AUTH, "gateway")];
        assert!(errors(EntryPoint::Server, &gateway).is_empty());
        assert!(problem(EntryPoint::Function, &gateway).starts_with("AUTH is gateway"));
    }

    #[test]
    fn token_key_requires_explicit_auth_mode() {
        let secret = (JWT_SECRET, "a-secret-of-thirty-two-bytes----");
        let url = (JWT_JWKS_URL, "https://issuer.example.com/keys");
        let provider = ("LLM_API_KEY", "k");
        for entry_point in [EntryPoint::Server, EntryPoint::Function] {
            assert!(problem(entry_point, &[secret]).starts_with("AUTH is not set, but JWT_SECRET is"));
            assert!(problem(entry_point, &[url, provider]).starts_with("AUTH is not set, but JWT_JWKS_URL is"));
            for mode in ["none", "jwt"] {
                assert!(errors(entry_point, &[secret, (AUTH, mode)]).is_empty(), "{mode}");
            }
        }
        assert!(errors(EntryPoint::Server, &[secret, (AUTH, "gateway")]).is_empty());
    }

    #[test]
    fn weak_keys_are_invalid_in_every_mode_without_their_value() {
        const STRONG: &str = "8f3b1c5e9d2a70468f3b1c5e9d2a7047";
        for (variable, weak, expected) in [
            (JWT_SECRET, &STRONG[..31], "JWT_SECRET has 31 bytes, but needs at least 32: set it to a random value"),
            (INTERNAL_API_KEY, &STRONG[..15], "INTERNAL_API_KEY has 15 bytes, but needs at least 16"),
            (JWT_SECRET, "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQ", "JWT_SECRET is a key file"),
            (INTERNAL_API_KEY, "changeme-changeme", "INTERNAL_API_KEY is a placeholder from an example"),
        ] {
            for entry_point in [EntryPoint::Server, EntryPoint::Function] {
                for mode in ["none", "jwt"] {
                    let keys_url = (JWT_JWKS_URL, "https://issuer.example.com/keys");
                    let mut variables = vec![(AUTH, mode), (variable, weak)];
                    variables.extend((variable == INTERNAL_API_KEY).then_some(keys_url));
                    let problem = problem(entry_point, &variables);
                    assert!(problem.starts_with(expected), "{mode}: {problem}");
                    assert!(!problem.contains(weak), "{problem}");
                }
            }
        }
        let accepted = [(AUTH, "jwt"), (JWT_SECRET, STRONG), (INTERNAL_API_KEY, &STRONG[..16])];
        assert_eq!(errors(EntryPoint::Function, &accepted), []);
        let same = [(AUTH, "jwt"), (JWT_SECRET, STRONG), (INTERNAL_API_KEY, STRONG)];
        assert!(problem(EntryPoint::Server, &same).starts_with("INTERNAL_API_KEY is the same as JWT_SECRET"));
    }

    #[test]
    fn blank_keys_count_as_not_set() {
        let blank = [(AUTH, "jwt"), (JWT_SECRET, " \t\n"), (INTERNAL_API_KEY, "   ")];
        assert!(problem(EntryPoint::Server, &blank).starts_with("JWT_SECRET is not set"));
    }

    #[test]
    fn plaintext_jwks_url_must_be_loopback() {
        let read = |url: &str| errors(EntryPoint::Server, &[(AUTH, "jwt"), (JWT_JWKS_URL, url)]);
        for url in
            ["http://localhost:8080/keys", "http://127.0.0.1/keys", "http://[::1]:1/keys", "https://issuer.example/"]
        {
            assert!(read(url).is_empty(), "{url}");
        }
        for url in ["http://issuer.example/keys", "http://10.0.0.1/keys", "http://localhost.example/keys"] {
            assert_eq!(read(url).first().map(|error| error.variable), Some(JWT_JWKS_URL), "{url}");
        }
    }
}
