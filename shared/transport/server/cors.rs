//! CORS, and the defence against DNS rebinding where it does not apply.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::{AllowedOrigin, Origin, ServerConfig};

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
/// Only browsers send it, and no page can set it.
const SEC_FETCH_SITE: &str = "sec-fetch-site";
const PREFLIGHT_MAX_AGE: Duration = Duration::from_hours(2);

/// Web pages that may call: those of the configured origins or, if there are none, those of the browser's machine. Without
/// authentication the latter need to be listed too, unless the server answers that machine only.
#[derive(Debug, Clone)]
pub(super) struct Cors {
    allowed: Arc<[AllowedOrigin]>,
    /// Callers are not authenticated here: a call may name any user.
    is_open: bool,
    /// The server listens on a loopback address.
    is_local: bool,
    allowed_headers: AllowHeaders,
}

impl Cors {
    pub(super) fn from_config(config: &ServerConfig) -> Self {
        let allowed = config.allowed_origins.clone().into();
        Self {
            allowed,
            is_open: !config.authenticates_callers,
            is_local: config.host.is_loopback(),
            allowed_headers: allowed_headers(config),
        }
    }

    pub(super) fn layer(&self) -> CorsLayer {
        let origins = if self.allowed.contains(&AllowedOrigin::Any) {
            AllowOrigin::any()
        } else {
            let cors = self.clone();
            let allows_loopback = cors.allowed.is_empty() && (cors.is_local || !cors.is_open);
            AllowOrigin::predicate(move |origin: &HeaderValue, _: &Parts| {
                parse(origin).is_some_and(|origin| cors.is_listed(&origin) || allows_loopback && origin.is_loopback())
            })
        };
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::POST])
            .allow_headers(self.allowed_headers.clone())
            .expose_headers(RESPONSE_HEADERS.map(HeaderName::from_static))
            .max_age(PREFLIGHT_MAX_AGE)
    }

    /// Guards against DNS rebinding: an attacker's page lets its own host name resolve to this machine after loading, so that the
    /// browser sees a same-origin request and sends no CORS preflight. Harmless where callers authenticate with tokens, which
    /// such a page does not have. Other clients than browsers send no `Origin`.
    pub(super) fn rejects(&self, headers: &HeaderMap, host: Option<&str>) -> bool {
        if !self.is_open {
            return false;
        }
        let own =
            ["http", "https"].map(|scheme| Origin::parse(&format!("{scheme}://{}", host.unwrap_or_default())).ok());
        let is_allowed = |origin: &Origin| {
            self.is_listed(origin)
                || self.is_local && origin.is_loopback()
                || origin.has_fixed_address() && own.iter().flatten().any(|own| own == origin)
        };
        let mut origins = headers.get_all(header::ORIGIN).iter().peekable();
        if origins.peek().is_some() {
            return !origins.all(|origin| parse(origin).as_ref().is_some_and(is_allowed));
        }
        // A browser whose user has turned `Origin` off: a page calls its own host.
        let Some(site) = headers.get(SEC_FETCH_SITE) else { return false };
        site != "same-origin" || !own.iter().flatten().any(is_allowed)
    }

    fn is_listed(&self, origin: &Origin) -> bool {
        self.allowed.iter().any(|allowed| matches!(allowed, AllowedOrigin::Listed(listed) if listed == origin))
    }
}

fn parse(origin: &HeaderValue) -> Option<Origin> {
    Origin::parse(origin.to_str().ok()?).ok()
}

/// `*` allows what the preflight asks for, by name.
fn allowed_headers(config: &ServerConfig) -> AllowHeaders {
    if config.cors_headers.iter().any(|name| name == "*") {
        return AllowHeaders::mirror_request();
    }
    let further = config.cors_headers.iter().filter_map(|name| HeaderName::try_from(name.as_str()).ok());
    AllowHeaders::list(REQUEST_HEADERS.map(HeaderName::from_static).into_iter().chain(further))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Option<&str> = Some("localhost:50051");

    fn cors(is_open: bool, listed: &[&str]) -> Cors {
        let listed = listed.iter().map(|origin| AllowedOrigin::Listed(Origin::parse(origin).unwrap()));
        Cors { allowed: listed.collect(), is_open, is_local: true, allowed_headers: AllowHeaders::list([]) }
    }

    fn rejects(cors: &Cors, headers: &[(&'static str, &'static str)], host: Option<&str>) -> bool {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        cors.rejects(&headers.collect(), host)
    }

    #[test]
    fn origin_of_an_open_server_must_be_listed_or_of_this_machine() {
        let open = cors(true, &["https://app.example.com", "http://[2001:db8::a]:8080"]);
        for origin in [
            "https://app.example.com",
            "HTTPS://APP.example.com:443",
            "http://[2001:db8:0::a]:8080",
            "http://localhost:5173",
            "http://[::1]:50051",
        ] {
            assert!(!rejects(&open, &[("origin", origin)], OWN), "{origin}");
        }
        for origin in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.example",
            "https://app.example.com.",
            "https://app.example.com@evil.example",
            "https://app.example.com/",
            "https://sub.app.example.com",
            "http://localhost.evil.example:50051",
            "http://rebound.example:50051",
            "file://localhost",
            "null",
            "",
        ] {
            assert!(rejects(&open, &[("origin", origin)], OWN), "{origin}");
        }
        assert!(!rejects(&open, &[], Some("anything.example")), "other clients send no origin");
        assert!(rejects(&open, &[("origin", "https://app.example.com"), ("origin", "https://evil.example")], OWN));
        assert!(!rejects(&cors(false, &[]), &[("origin", "https://evil.example")], OWN), "callers send tokens");
    }

    #[test]
    fn page_of_a_reachable_server_must_be_listed_or_its_own() {
        let reachable = Cors { is_local: false, ..cors(true, &["capacitor://localhost"]) };
        for (origin, host, is_rejected) in [
            ("http://10.0.0.5:50051", "10.0.0.5:50051", false),
            ("https://10.0.0.5:50051", "10.0.0.5:50051", false),
            ("http://[2001:db8::a]:50051", "[2001:db8:0::a]:50051", false),
            ("http://localhost:50051", "localhost:50051", false),
            ("capacitor://localhost", "10.0.0.5:50051", false),
            ("http://localhost:5173", "10.0.0.5:50051", true),
            ("http://localhost:5173", "localhost:50051", true),
            ("http://10.0.0.5:8080", "10.0.0.5:50051", true),
            ("http://rebound.example:50051", "rebound.example:50051", true),
            ("capacitor://other", "10.0.0.5:50051", true),
        ] {
            assert_eq!(rejects(&reachable, &[("origin", origin)], Some(host)), is_rejected, "{origin} {host}");
        }
    }

    #[test]
    fn browser_without_origin_must_call_a_known_host() {
        let open = cors(true, &["https://app.example.com"]);
        for (site, host, is_rejected) in [
            ("same-origin", Some("localhost:50051"), false),
            ("same-origin", Some("127.0.0.1:50051"), false),
            ("same-origin", Some("app.example.com"), false),
            ("same-origin", Some("rebound.example:50051"), true),
            ("same-origin", Some("app.example.com:50051"), true),
            ("same-origin", Some("localhost@rebound.example"), true),
            ("same-origin", None, true),
            ("same-site", Some("localhost:50051"), true),
            ("cross-site", Some("localhost:50051"), true),
        ] {
            assert_eq!(rejects(&open, &[("sec-fetch-site", site)], host), is_rejected, "{site} {host:?}");
        }
    }
}
