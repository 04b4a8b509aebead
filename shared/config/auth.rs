//! How callers prove who they are.

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

/// How callers prove who they are.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// By what.
    pub mode: AuthMode,
    /// How tokens are checked; there for [`Auth::Jwt`].
    pub tokens: Option<TokenConfig>,
    /// The key of our own services, which may act for any user.
    pub internal_api_key: Option<Secret>,
}

/// By what callers prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
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
    JwksUrl(String),
}

impl AuthConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>, place: EntryPoint) -> Self {
        let choices = [("none", AuthMode::None), ("jwt", AuthMode::Jwt), ("gateway", AuthMode::Gateway)];
        let auth = reader.choice(AUTH, &choices).unwrap_or(AuthMode::None);
        if auth == AuthMode::Gateway && place == EntryPoint::Function {
            let problem = "is gateway, but nothing stands before a function, which anyone can call; set it to jwt with \
                           JWT_SECRET or JWT_JWKS_URL";
            reader.report(AUTH, problem, "jwt");
        }
        let keys_of_tokens = [JWT_SECRET, JWT_JWKS_URL].into_iter().find(|name| reader.text(name).is_some());
        if let (None, Some(name)) = (reader.text(AUTH), keys_of_tokens) {
            // Whoever names keys means that tokens are checked.
            reader.report(AUTH, format!("is not set, but {name} is; set it to jwt, or say none"), "jwt");
        }
        let secret = reader.text(JWT_SECRET).map(Secret::new);
        let url = reader.url(JWT_JWKS_URL, &["https", "http"], JWKS_EXAMPLE);
        if url.as_deref().is_some_and(can_be_changed_on_the_way) {
            let problem =
                "begins with http://, so that whoever is on the way can put in keys; only this machine is asked so";
            reader.report(JWT_JWKS_URL, problem, JWKS_EXAMPLE);
        }
        let keys = match (secret, url) {
            (Some(_), Some(_)) => {
                reader.report(JWT_SECRET, "is set, and JWT_JWKS_URL too: tokens are checked by one of them", "");
                None
            }
            (Some(secret), None) => Some(TokenKeys::Secret(secret)),
            (None, url) => url.map(TokenKeys::JwksUrl),
        };
        if auth == AuthMode::Jwt && keys_of_tokens.is_none() {
            let problem = "is not set, and JWT_JWKS_URL neither, but AUTH=jwt needs one of them";
            reader.report(JWT_SECRET, problem, "the-secret-of-the-gateway");
        }
        let (issuer, audience) = (reader.text(JWT_ISSUER), reader.text(JWT_AUDIENCE));
        Self {
            mode: auth,
            tokens: keys.filter(|_| auth == AuthMode::Jwt).map(|keys| TokenConfig { keys, issuer, audience }),
            internal_api_key: reader.text(INTERNAL_API_KEY).map(Secret::new),
        }
    }
}

/// Whether what is fetched from a URL is neither encrypted nor of this machine.
fn can_be_changed_on_the_way(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_of_this_machine = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() == "http" && !is_of_this_machine
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, InvalidSetting};

    fn mistakes(place: EntryPoint, variables: &[(&str, &str)]) -> Vec<InvalidSetting> {
        let value = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        Config::read_for(place, &value).err().map_or_else(Vec::new, |mistakes| mistakes.0)
    }

    fn problem(place: EntryPoint, variables: &[(&str, &str)]) -> String {
        let mistakes = mistakes(place, variables);
        let [mistake] = mistakes.as_slice() else { panic!("{mistakes:?}") };
        format!("{} {}", mistake.variable, mistake.problem)
    }

    #[test]
    fn a_function_has_no_gateway_before_it() {
        let gateway = [(AUTH, "gateway")];
        assert!(mistakes(EntryPoint::Server, &gateway).is_empty());
        assert!(problem(EntryPoint::Function, &gateway).starts_with("AUTH is gateway"));
    }

    #[test]
    fn keys_of_tokens_without_a_word_on_whether_tokens_are_checked_are_a_mistake() {
        let secret = (JWT_SECRET, "a-secret-of-thirty-two-bytes----");
        let url = (JWT_JWKS_URL, "https://issuer.example.com/keys");
        let provider = ("LLM_API_KEY", "k");
        for place in [EntryPoint::Server, EntryPoint::Function] {
            assert!(problem(place, &[secret]).starts_with("AUTH is not set, but JWT_SECRET is"));
            assert!(problem(place, &[url, provider]).starts_with("AUTH is not set, but JWT_JWKS_URL is"));
            for said in ["none", "jwt"] {
                assert!(mistakes(place, &[secret, (AUTH, said)]).is_empty(), "{said}");
            }
        }
        assert!(mistakes(EntryPoint::Server, &[secret, (AUTH, "gateway")]).is_empty());
    }

    #[test]
    fn keys_of_an_issuer_are_fetched_in_the_clear_from_this_machine_alone() {
        let read = |url: &str| mistakes(EntryPoint::Server, &[(AUTH, "jwt"), (JWT_JWKS_URL, url)]);
        for url in
            ["http://localhost:8080/keys", "http://127.0.0.1/keys", "http://[::1]:1/keys", "https://issuer.example/"]
        {
            assert!(read(url).is_empty(), "{url}");
        }
        for url in ["http://issuer.example/keys", "http://10.0.0.1/keys", "http://localhost.example/keys"] {
            assert_eq!(read(url).first().map(|mistake| mistake.variable), Some(JWT_JWKS_URL), "{url}");
        }
    }
}
