//! Health for those who speak HTTP only: `/healthz` of the process, `/readyz` of its database. Without authentication.

use std::{
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tower::{Layer, Service};

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
pub(super) struct ProbeLayer {
    is_enabled: bool,
    readiness: Readiness,
}

impl ProbeLayer {
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

impl<S> Layer<S> for ProbeLayer {
    type Service = ProbeService<S>;

    fn layer(&self, inner: S) -> ProbeService<S> {
        ProbeService { inner, probes: self.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct ProbeService<S> {
    inner: S,
    probes: ProbeLayer,
}

impl<S> Service<Request<Body>> for ProbeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_head = request.method() == Method::HEAD;
        let is_read = is_head || request.method() == Method::GET;
        match request.uri().path() {
            path if is_read && self.probes.serves(path) => Either::Left(ready(Ok(self.probes.respond(path, is_head)))),
            _ => Either::Right(self.inner.call(request)),
        }
    }
}
