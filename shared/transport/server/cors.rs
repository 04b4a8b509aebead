//! CORS, and the defence against DNS rebinding where it does not apply.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{self, InvalidHeaderValue},
    request::Parts,
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::ServerConfig;

/// By name: in a preflight, `*` does not cover `authorization`. Further ones can be configured.
const REQUEST_HEADERS: [&str; 20] = [
    "authorization",
    "baggage",
    "content-type",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "sentry-trace",
    "traceparent",
    "tracestate",
    "user-id",
    "x-detach-seconds",
    "x-grpc-web",
    "x-internal-api-key",
    "x-last-response-id",
    "x-recall",
    "x-request-id",
    "x-store",
    "x-timezone",
    "x-trace-id",
    "x-user-agent",
];
/// Includes the gRPC status, because an error without a body arrives in the headers.
const RESPONSE_HEADERS: [&str; 6] = [
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "grpc-accept-encoding",
    "grpc-retry-pushback-ms",
    "x-retrieval",
];
const PREFLIGHT_MAX_AGE: Duration = Duration::from_hours(2);

/// The configured origins or, if there are none, those of this machine.
#[derive(Debug, Clone)]
pub(super) struct Cors {
    /// `None` = all.
    listed: Option<Arc<[HeaderValue]>>,
    /// No authentication: everybody who reaches the port is served.
    is_open: bool,
    allowed_headers: AllowHeaders,
}

impl Cors {
    pub(super) fn from_config(config: &ServerConfig) -> Result<Self, InvalidHeaderValue> {
        let configured = &config.allowed_origins;
        let listed = if configured.iter().any(|origin| origin == "*") {
            None
        } else {
            Some(configured.iter().map(|origin| origin.parse()).collect::<Result<_, _>>()?)
        };
        Ok(Self { listed, is_open: !config.authenticates_callers, allowed_headers: allowed_headers(config) })
    }

    pub(super) fn layer(&self) -> CorsLayer {
        let origins = match &self.listed {
            None => AllowOrigin::any(),
            Some(listed) if listed.is_empty() => {
                AllowOrigin::predicate(|origin: &HeaderValue, _: &Parts| is_loopback(origin))
            }
            Some(listed) => AllowOrigin::list(listed.iter().cloned()),
        };
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::POST])
            .allow_headers(self.allowed_headers.clone())
            .expose_headers(RESPONSE_HEADERS.map(HeaderName::from_static))
            .max_age(PREFLIGHT_MAX_AGE)
    }

    /// Guards against DNS rebinding: an attacker's page lets its own host name resolve to this machine after loading, so that the
    /// browser sees a same-origin request and sends no CORS preflight. Harmless where callers authenticate.
    pub(super) fn rejects(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN).filter(|_| self.is_open) else { return false };
        self.listed.as_ref().is_some_and(|listed| !listed.contains(origin) && !is_loopback(origin))
    }
}

/// `*` allows what the preflight asks for, by name.
fn allowed_headers(config: &ServerConfig) -> AllowHeaders {
    if config.cors_headers.iter().any(|name| name == "*") {
        return AllowHeaders::mirror_request();
    }
    let further = config.cors_headers.iter().filter_map(|name| HeaderName::try_from(name.as_str()).ok());
    AllowHeaders::list(REQUEST_HEADERS.map(HeaderName::from_static).into_iter().chain(further))
}

/// `localhost` and the names below it always resolve to this machine (RFC 6761, section 6.3), in browsers without DNS.
fn is_loopback(origin: &HeaderValue) -> bool {
    let Some((_scheme, authority)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else {
        return false;
    };
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    let host = host.to_ascii_lowercase();
    host == "localhost"
        || host.strip_suffix(".localhost").is_some_and(|name| !name.is_empty())
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_origin_is_matched_by_its_whole_host() {
        let is_loopback = |origin| super::is_loopback(&HeaderValue::from_static(origin));
        for origin in [
            "http://localhost:5173",
            "https://127.0.0.1",
            "http://127.0.0.2:80",
            "http://[::1]:80",
            "http://[::1]",
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
            "http://localhost@evil.example",
            "http://user:localhost",
            "http://128.0.0.1",
            "localhost",
            "http://",
        ] {
            assert!(!is_loopback(origin), "{origin}");
        }
    }
}
