//! Which web pages may call.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header::InvalidHeaderValue, request::Parts};
use tower_http::cors::{AllowOrigin, CorsLayer};

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

/// Lets in the origins that are configured or, if none is, pages that this machine serves.
pub(super) fn layer(allowed_origins: &[String]) -> Result<CorsLayer, InvalidHeaderValue> {
    let origins = if allowed_origins.is_empty() {
        AllowOrigin::predicate(|origin: &HeaderValue, _: &Parts| is_of_this_machine(origin))
    } else if allowed_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(allowed_origins.iter().map(|origin| origin.parse()).collect::<Result<Vec<_>, _>>()?)
    };
    Ok(CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers(REQUEST_HEADERS.map(HeaderName::from_static))
        .expose_headers(RESPONSE_HEADERS.map(HeaderName::from_static))
        .max_age(MAX_AGE))
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
