//! Web origins (RFC 6454): where a page comes from.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use reqwest::Url;

/// Two are equal if a browser takes them for the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin(Inner);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Inner {
    /// Normalized: lower case, punycode, the default port written out. An IPv6 address stands in brackets.
    Web { is_https: bool, host: String, port: u16 },
    /// Of a browser's extension or an app, such as `chrome-extension://…` or `capacitor://localhost`. In lower case.
    App(String),
}

/// Origins of these are `null`, or are no pages.
const SCHEMES_WITHOUT_PAGES: [&str; 8] = ["about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"];

/// Each message continues a sentence that begins with the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("is null, which every sandboxed page sends: list the origin of the page itself")]
    Null,
    #[error("does not begin with https://, http:// or the scheme of an app")]
    Scheme,
    #[error("has a user or password: remove it, up to the @")]
    UserInfo,
    #[error("has a path, a query or a slash at the end: remove everything after the host and the port")]
    Path,
    #[error("has a wildcard: list each origin, or * alone for all")]
    Wildcard,
    #[error("has a dot at the end of its host: remove it")]
    TrailingDot,
    #[error("has a host or a port that does not exist in a URL")]
    Authority,
}

impl Origin {
    /// An `Origin` header, or an entry of a list of origins.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        if text.eq_ignore_ascii_case("null") {
            return Err(OriginError::Null);
        }
        let (scheme, authority) = text.split_once("://").ok_or(OriginError::Scheme)?;
        let scheme = scheme.to_ascii_lowercase();
        if !is_scheme(&scheme) || SCHEMES_WITHOUT_PAGES.contains(&scheme.as_str()) {
            return Err(OriginError::Scheme);
        }
        check_authority(authority)?;
        let is_https = scheme == "https";
        if !is_https && scheme != "http" {
            return Ok(Self(Inner::App(format!("{scheme}://{}", authority.to_lowercase()))));
        }
        // The URL parser is that of browsers. It ignores some characters and repairs others, none of which is left here.
        let url = Url::parse(text).map_err(|_| OriginError::Authority)?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default().filter(|port| *port != 0)) else {
            return Err(OriginError::Authority);
        };
        match host {
            host if host.ends_with('.') => Err(OriginError::TrailingDot),
            host if !host.starts_with('[') && host.split('.').any(str::is_empty) => Err(OriginError::Authority),
            host => Ok(Self(Inner::Web { is_https, host: host.to_owned(), port })),
        }
    }

    /// Of a page that this machine serves. `localhost` and the names below it always resolve to this machine (RFC 6761, section
    /// 6.3), in browsers without DNS.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let Inner::Web { host, .. } = &self.0 else { return false };
        match ip_address(host) {
            Some(IpAddr::V4(address)) => address.is_loopback(),
            Some(IpAddr::V6(address)) => is_loopback_v6(address),
            None => host == "localhost" || host.ends_with(".localhost"),
        }
    }

    /// No DNS server can let the host of this page mean another machine.
    #[must_use]
    pub fn has_fixed_address(&self) -> bool {
        self.is_loopback() || matches!(&self.0, Inner::Web { host, .. } if ip_address(host).is_some())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (is_https, host, port) = match &self.0 {
            Inner::Web { is_https, host, port } => (*is_https, host, *port),
            Inner::App(origin) => return f.write_str(origin),
        };
        let (scheme, default_port) = if is_https { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{host}")?;
        if port == default_port { Ok(()) } else { write!(f, ":{port}") }
    }
}

fn ip_address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// By RFC 3986, section 3.1, in lower case.
fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
}

fn is_loopback_v6(address: Ipv6Addr) -> bool {
    match address.to_ipv4_mapped() {
        Some(address) => address.is_loopback(),
        None => address.is_loopback(),
    }
}

fn check_authority(authority: &str) -> Result<(), OriginError> {
    let is_forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '%' | ',');
    match authority {
        _ if authority.contains('@') => Err(OriginError::UserInfo),
        _ if authority.contains(['/', '\\', '?', '#']) => Err(OriginError::Path),
        _ if authority.contains('*') => Err(OriginError::Wildcard),
        _ if authority.is_empty() || authority.ends_with(':') || authority.contains(is_forbidden) => {
            Err(OriginError::Authority)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, OriginError> {
        Origin::parse(text).map(|origin| origin.to_string())
    }

    #[test]
    fn origins_are_normalized_as_browsers_do() {
        for (text, normalized) in [
            ("https://app.example.com", "https://app.example.com"),
            ("HTTPS://App.Example.COM:443", "https://app.example.com"),
            ("http://app.example.com:80", "http://app.example.com"),
            ("http://app.example.com:443", "http://app.example.com:443"),
            ("https://app.example.com:0443", "https://app.example.com"),
            ("http://LOCALHOST:5173", "http://localhost:5173"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("http://[0:0:0:0:0:0:0:1]:50051", "http://[::1]:50051"),
            ("http://[2001:DB8::A]", "http://[2001:db8::a]"),
            ("http://0x7f.1:8080", "http://127.0.0.1:8080"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("Capacitor://localhost", "capacitor://localhost"),
        ] {
            assert_eq!(parsed(text), Ok(normalized.to_owned()), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_origins() {
        use OriginError::{Authority, Null, Path, Scheme, TrailingDot, UserInfo, Wildcard};
        for (text, error) in [
            ("null", Null),
            ("NULL", Null),
            ("", Scheme),
            ("app.example.com", Scheme),
            ("localhost:5173", Scheme),
            ("//app.example.com", Scheme),
            ("http:app.example.com", Scheme),
            ("ftp://app.example.com", Scheme),
            ("file://localhost", Scheme),
            ("chrome-extension://abcdef/page", Path),
            ("chrome-extension://*", Wildcard),
            ("capacitor://", Authority),
            ("javascript://app.example.com", Scheme),
            (" https://app.example.com", Scheme),
            ("https://user@app.example.com", UserInfo),
            ("https://app.example.com:443@evil.example", UserInfo),
            ("https://app.example.com/", Path),
            ("https://app.example.com/chat", Path),
            ("https://app.example.com?x", Path),
            ("https://app.example.com#x", Path),
            ("https:///app.example.com", Path),
            ("https://app.example.com\\evil.example", Path),
            ("https://*.example.com", Wildcard),
            ("https://*", Wildcard),
            ("https://app.example.com.", TrailingDot),
            ("https://app..example.com", Authority),
            ("https://.example.com", Authority),
            ("https://", Authority),
            ("https://app.example.com:", Authority),
            ("https://app.example.com:0", Authority),
            ("https://app.example.com:65536", Authority),
            ("https://app.example.com:https", Authority),
            ("https://:443", Authority),
            ("https://app.example.com https://evil.example", Path),
            ("https://app example.com", Authority),
            ("https://app.exam\tple.com", Authority),
            ("https://app%2eexample.com", Authority),
            ("http://[::1", Authority),
            ("http://::1", Authority),
            ("http://1.2.3.4.5", Authority),
        ] {
            assert_eq!(parsed(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn loopback_is_matched_by_the_whole_host() {
        let is_loopback = |text| Origin::parse(text).is_ok_and(|origin| origin.is_loopback());
        for origin in [
            "http://localhost:5173",
            "https://127.0.0.1",
            "http://127.0.0.2:80",
            "http://[::1]:80",
            "http://[::1]",
            "http://[::ffff:127.0.0.1]",
            "http://app.localhost:3000",
            "https://a.b.localhost",
        ] {
            assert!(is_loopback(origin), "{origin}");
        }
        for origin in [
            "http://localhost.evil.example",
            "null",
            "http://127.0.0.1.evil.example",
            "http://evillocalhost",
            "http://.localhost",
            "http://[::2]",
            "http://[::ffff:128.0.0.1]",
            "http://localhost@evil.example",
            "http://localhost:80@evil.example",
            "http://user:localhost",
            "http://128.0.0.1",
            "http://0.0.0.0",
            "localhost",
            "http://",
        ] {
            assert!(!is_loopback(origin), "{origin}");
        }
    }
}
