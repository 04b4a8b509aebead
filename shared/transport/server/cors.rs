//! CORS, and the defence against DNS rebinding where it does not apply.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{self, InvalidHeaderValue},
    request::Parts,
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::ServerConfig;

/// By name: in a preflight, `*` does not cover `authorization`.
const REQUEST_HEADERS: [&str; 12] = [
    "authorization",
    "content-type",
    "grpc-timeout",
    "traceparent",
    "tracestate",
    "user-id",
    "x-grpc-web",
    "x-internal-api-key",
    "x-last-response-id",
    "x-timezone",
    "x-trace-id",
    "x-user-agent",
];
/// Includes the gRPC status, because an error without a body arrives in the headers.
const RESPONSE_HEADERS: [&str; 5] =
    ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms", "x-retrieval"];
const PREFLIGHT_MAX_AGE: Duration = Duration::from_hours(2);

/// The configured origins or, if there are none, those of this machine.
#[derive(Debug, Clone)]
pub(super) struct AllowedOrigins {
    /// `None` = all.
    listed: Option<Arc<[HeaderValue]>>,
    /// No authentication: everybody who reaches the port is served.
    is_open: bool,
}

impl AllowedOrigins {
    pub(super) fn from_config(config: &ServerConfig) -> Result<Self, InvalidHeaderValue> {
        let configured = &config.allowed_origins;
        let listed = if configured.iter().any(|origin| origin == "*") {
            None
        } else {
            Some(configured.iter().map(|origin| origin.parse()).collect::<Result<_, _>>()?)
        };
        Ok(Self { listed, is_open: !config.authenticates_callers })
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
            .allow_headers(REQUEST_HEADERS.map(HeaderName::from_static))
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

fn is_loopback(origin: &HeaderValue) -> bool {
    let Some((_scheme, host)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else { return false };
    ["localhost", "127.0.0.1", "[::1]"]
        .iter()
        .any(|name| host.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_origin_is_matched_by_its_whole_host() {
        let is_loopback = |origin| super::is_loopback(&HeaderValue::from_static(origin));
        assert!(
            is_loopback("http://localhost:5173") && is_loopback("https://127.0.0.1") && is_loopback("http://[::1]:80")
        );
        assert!(
            !is_loopback("http://localhost.evil.example")
                && !is_loopback("null")
                && !is_loopback("http://127.0.0.1.evil.example")
        );
    }
}
