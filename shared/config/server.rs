use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{AuthMode, EnvReader, Origin};

pub(super) const GRPC_HOST: &str = "GRPC_HOST";
pub(super) const GRPC_PORT: &str = "GRPC_PORT";
pub(super) const TLS_CERT_FILE: &str = "TLS_CERT_FILE";
pub(super) const TLS_KEY_FILE: &str = "TLS_KEY_FILE";
pub(super) const GRPC_REFLECTION: &str = "GRPC_REFLECTION";
pub(super) const GRPC_HEALTH: &str = "GRPC_HEALTH";
pub(super) const WEB_PAGE: &str = "WEB_PAGE";
pub(super) const SHUTDOWN_GRACE_SECONDS: &str = "SHUTDOWN_GRACE_SECONDS";
pub(super) const ALLOWED_ORIGINS: &str = "ALLOWED_ORIGINS";
pub(super) const CORS_ALLOWED_HEADERS: &str = "CORS_ALLOWED_HEADERS";
pub(super) const HTTP1_KEEPALIVE_SECONDS: &str = "HTTP1_KEEPALIVE_SECONDS";
pub(super) const STATUS_INTERVAL_SECONDS: &str = "STATUS_INTERVAL_SECONDS";

#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub host: IpAddr,
    /// 0 = any free port.
    pub port: u16,
    pub tls: Option<TlsFiles>,
    /// gRPC server reflection, which needs no authentication.
    pub reflection: bool,
    /// The gRPC health service, which needs no authentication.
    pub health: bool,
    /// The web page at `/`. The page needs no authentication; its calls do.
    pub web_page: bool,
    pub shutdown_grace: Duration,
    /// Callers present tokens. If not, calls of pages with a foreign origin are refused, because each call may name any user.
    pub authenticates_callers: bool,
    /// Web pages that may call; empty = those that this machine serves.
    pub allowed_origins: Vec<AllowedOrigin>,
    /// Request headers of web pages beside those that the service knows; `*` = all.
    pub cors_headers: Vec<String>,
    /// Of an idle HTTP/1.1 connection.
    pub http1_keepalive: Duration,
    /// After which a silent chat repeats its last status; `None` = never.
    pub status_interval: Option<Duration>,
    /// After which a response that its client does not read ends.
    pub stall_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigin {
    Any,
    Listed(Origin),
}

/// PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl ServerConfig {
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    pub(super) fn read(reader: &mut EnvReader<'_>, auth: AuthMode, stall_timeout: Duration) -> Self {
        let host = read_host(reader);
        if auth == AuthMode::None && !host.is_loopback() {
            let problem = "is reachable from other machines, but callers are not authenticated: listen on a loopback address, \
                           or set AUTH=jwt, or AUTH=gateway if only a trusted gateway can reach the port";
            reader.report(GRPC_HOST, problem, "127.0.0.1");
        }
        Self {
            host,
            port: reader.integer(GRPC_PORT, 0, 65_535, "50051").and_then(|n| u16::try_from(n).ok()).unwrap_or(50_051),
            tls: read_tls(reader),
            reflection: reader.switch(GRPC_REFLECTION).unwrap_or(true),
            health: reader.switch(GRPC_HEALTH).unwrap_or(true),
            web_page: reader.switch(WEB_PAGE).unwrap_or(true),
            shutdown_grace: reader.seconds(SHUTDOWN_GRACE_SECONDS, 5.0, false),
            authenticates_callers: auth == AuthMode::Jwt,
            allowed_origins: read_origins(reader, auth),
            cors_headers: read_cors_headers(reader),
            http1_keepalive: reader.seconds(HTTP1_KEEPALIVE_SECONDS, 75.0, true),
            status_interval: Some(reader.seconds(STATUS_INTERVAL_SECONDS, 15.0, false)).filter(|time| !time.is_zero()),
            stall_timeout,
        }
    }
}

fn read_host(reader: &mut EnvReader<'_>) -> IpAddr {
    let host = reader.text(GRPC_HOST).unwrap_or_else(|| "localhost".to_owned());
    if host == "localhost" {
        return Ipv4Addr::LOCALHOST.into();
    }
    host.parse().unwrap_or_else(|_| {
        reader.report(GRPC_HOST, "is not an IP address", "127.0.0.1");
        Ipv4Addr::LOCALHOST.into()
    })
}

fn read_tls(reader: &mut EnvReader<'_>) -> Option<TlsFiles> {
    let is_set = |variable| reader.text(variable).is_some();
    let (has_certificate, has_key) = (is_set(TLS_CERT_FILE), is_set(TLS_KEY_FILE));
    if has_certificate && !has_key {
        reader.report(TLS_KEY_FILE, "is not set, but TLS_CERT_FILE is", "key.pem");
    }
    if has_key && !has_certificate {
        reader.report(TLS_CERT_FILE, "is not set, but TLS_KEY_FILE is", "cert.pem");
    }
    let certificate = reader.file(TLS_CERT_FILE, "cert.pem")?;
    let key = reader.file(TLS_KEY_FILE, "key.pem")?;
    Some(TlsFiles { certificate, key })
}

fn read_origins(reader: &mut EnvReader<'_>, auth: AuthMode) -> Vec<AllowedOrigin> {
    const EXAMPLE: &str = "https://app.example.com,http://localhost:5173";
    let mut origins = Vec::new();
    for (index, entry) in reader.list(ALLOWED_ORIGINS).iter().enumerate() {
        match (entry.as_str(), Origin::parse(entry)) {
            ("*", _) if auth == AuthMode::Jwt => origins.push(AllowedOrigin::Any),
            ("*", _) => {
                let problem = "is *, but AUTH is not jwt, so that every web page that a user opens could act as any user: list \
                               the origins of your pages";
                reader.report(ALLOWED_ORIGINS, problem, EXAMPLE);
            }
            (_, Ok(origin)) => origins.push(AllowedOrigin::Listed(origin)),
            (_, Err(error)) => {
                reader.report(ALLOWED_ORIGINS, format!("is not valid: entry {} {error}", index + 1), EXAMPLE);
            }
        }
    }
    origins
}

fn read_cors_headers(reader: &mut EnvReader<'_>) -> Vec<String> {
    let headers = reader.list(CORS_ALLOWED_HEADERS);
    // Header names are tokens (RFC 9110, section 5.6.2).
    let is_token = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    if !headers.iter().all(is_token) {
        reader.report(
            CORS_ALLOWED_HEADERS,
            "is neither * nor a comma-separated list of header names",
            "x-tenant,x-app",
        );
    }
    headers
}

#[cfg(test)]
mod tests {
    use crate::config::{AllowedOrigin, Config};

    fn read(auth: &str, origins: &str) -> Result<Vec<AllowedOrigin>, String> {
        let source = |name: &str| match name {
            "AUTH" => Some(auth.to_owned()),
            "JWT_SECRET" => Some("a secret of thirty-two bytes-----".to_owned()).filter(|_| auth == "jwt"),
            "ALLOWED_ORIGINS" => Some(origins.to_owned()),
            _ => None,
        };
        Config::read(&source).map(|config| config.server.allowed_origins).map_err(|errors| errors.to_string())
    }

    #[test]
    fn wildcard_origin_requires_tokens() {
        for auth in ["none", "gateway"] {
            for origins in ["*", "https://app.example.com, *"] {
                let error = read(auth, origins).unwrap_err();
                assert!(error.contains("ALLOWED_ORIGINS: is *, but AUTH is not jwt"), "{auth}: {error}");
                assert!(error.contains("ALLOWED_ORIGINS=https://app.example.com,http://localhost:5173"), "{error}");
            }
        }
        assert_eq!(read("jwt", "*"), Ok(vec![AllowedOrigin::Any]));
    }

    #[test]
    fn invalid_origins_are_reported_with_what_to_change() {
        for (origins, problem) in [
            ("https://app.example.com/", "entry 1 has a path, a query or a slash at the end: remove"),
            (
                "http://localhost:5173,app.example.com",
                "entry 2 does not begin with https://, http:// or the scheme of an app",
            ),
            ("null", "entry 1 is null, which every sandboxed page sends: list the origin"),
            ("https://*.example.com", "entry 1 has a wildcard: list each origin"),
            ("https://sk-secret@app.example.com", "entry 1 has a user or password: remove it"),
            ("https://app.example.com.", "entry 1 has a dot at the end of its host: remove it"),
        ] {
            let error = read("none", origins).unwrap_err();
            assert!(error.contains(&format!("ALLOWED_ORIGINS: is not valid: {problem}")), "{origins}: {error}");
            assert!(!error.contains("sk-secret"), "{error}");
        }
        assert_eq!(read("none", "https://app.example.com,http://localhost:5173").map(|origins| origins.len()), Ok(2));
    }
}
