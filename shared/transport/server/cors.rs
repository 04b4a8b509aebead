//! Which web pages may call.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{self, InvalidHeaderValue},
    request::Parts,
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::ServerConfig;

/// Headers that clients send. They are listed by name, because `*` does not cover `authorization`.
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
/// Headers that a page may read: an error without a body arrives in them.
const RESPONSE_HEADERS: [&str; 5] =
    ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms", "x-retrieval"];
const MAX_AGE: Duration = Duration::from_hours(2);

/// Origins of pages that may call: those that are configured or, if none is, pages that this machine serves.
#[derive(Debug, Clone)]
pub(super) struct AllowedOrigins {
    /// `None` = all.
    listed: Option<Arc<[HeaderValue]>>,
    /// Whoever can reach the port is let in, because no caller proves who it is.
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

    /// Tells browsers which pages may call.
    pub(super) fn layer(&self) -> CorsLayer {
        let origins = match &self.listed {
            None => AllowOrigin::any(),
            Some(listed) if listed.is_empty() => {
                AllowOrigin::predicate(|origin: &HeaderValue, _: &Parts| is_of_this_machine(origin))
            }
            Some(listed) => AllowOrigin::list(listed.iter().cloned()),
        };
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::POST])
            .allow_headers(REQUEST_HEADERS.map(HeaderName::from_static))
            .expose_headers(RESPONSE_HEADERS.map(HeaderName::from_static))
            .max_age(MAX_AGE)
    }

    /// Whether a call is of a page that must not be let in. A page whose host's name comes to mean this machine only after it was
    /// loaded is of the same origin for the browser, which then asks nobody. Only where callers prove who they are is that no harm.
    pub(super) fn rejects(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN).filter(|_| self.is_open) else { return false };
        self.listed.as_ref().is_some_and(|listed| !listed.contains(origin) && !is_of_this_machine(origin))
    }
}

fn is_of_this_machine(origin: &HeaderValue) -> bool {
    let Some((_scheme, host)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else { return false };
    ["localhost", "127.0.0.1", "[::1]"]
        .iter()
        .any(|name| host.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_this_machine_is_known_by_its_host_and_not_by_its_beginning() {
        let is_own = |origin| is_of_this_machine(&HeaderValue::from_static(origin));
        assert!(is_own("http://localhost:5173") && is_own("https://127.0.0.1") && is_own("http://[::1]:80"));
        assert!(
            !is_own("http://localhost.evil.example") && !is_own("null") && !is_own("http://127.0.0.1.evil.example")
        );
    }
}
