//! Health for those who speak HTTP only: `/healthz` of the process, `/readyz` of its database. Without authentication.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;

use super::answering::Answer;

const ALIVE: &str = "/healthz";
const READY: &str = "/readyz";

/// Whether the server can answer calls that need the database.
#[derive(Debug, Clone, Default)]
pub(super) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(super) fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Probes {
    is_enabled: bool,
    readiness: Readiness,
}

impl Probes {
    pub(super) fn new(is_enabled: bool) -> Self {
        Self { is_enabled, readiness: Readiness::default() }
    }

    pub(super) fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    pub(super) fn serves(&self, path: &str) -> bool {
        self.is_enabled && matches!(path, ALIVE | READY)
    }

    /// The body of a response to HEAD is empty: hyper would send it over HTTP/2, which is an error of the protocol.
    fn respond(&self, path: &str, is_head: bool) -> Response<Body> {
        let is_ok = path == ALIVE || self.readiness.is_ready();
        let (status, text) = if is_ok {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the database is not ready\n")
        };
        let body = if is_head { Body::empty() } else { Body::new(http_body_util::Full::from(text)) };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl Answer for Probes {
    fn answer(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let is_head = request.method() == Method::HEAD;
        let is_read = is_head || request.method() == Method::GET;
        let path = request.uri().path();
        (is_read && self.serves(path)).then(|| self.respond(path, is_head))
    }
}
