//! Statuses that tonic gives a name of its own, put right.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderValue, Request, Response};
use tower::{Layer, Service};

/// Maps tonic's OUT_OF_RANGE for a message that is too large to RESOURCE_EXHAUSTED, and its CANCELLED for a deadline that
/// has passed to DEADLINE_EXCEEDED, as <https://grpc.io/docs/guides/status-codes/> has them.
///
/// Both are given before a handler runs, hence in the headers of an answer without a body.
#[derive(Debug, Clone)]
pub(super) struct StatusLayer;

impl<S> Layer<S> for StatusLayer {
    type Service = StatusService<S>;

    fn layer(&self, inner: S) -> StatusService<S> {
        StatusService { inner }
    }
}

/// The service of [`StatusLayer`].
#[derive(Debug, Clone)]
pub(super) struct StatusService<S> {
    inner: S,
}

impl<S, In, Out> Service<Request<In>> for StatusService<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Mapped<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        Mapped { inner: Box::pin(self.inner.call(request)) }
    }
}

/// An answer with its status put right.
pub(super) struct Mapped<F> {
    inner: Pin<Box<F>>,
}

impl<F, Out, E> Future for Mapped<F>
where
    F: Future<Output = Result<Response<Out>, E>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let mut result = ready!(self.inner.as_mut().poll(context));
        if let Ok(response) = &mut result {
            put_right(response.headers_mut());
        }
        Poll::Ready(result)
    }
}

fn put_right(headers: &mut HeaderMap) {
    const OUT_OF_RANGE: &str = "11";
    const CANCELLED: &str = "1";
    let Some(status) = headers.get("grpc-status").and_then(|status| status.to_str().ok()) else { return };
    let message = headers.get("grpc-message").and_then(|message| message.to_str().ok()).unwrap_or_default();
    let right = match status {
        OUT_OF_RANGE => HeaderValue::from_static("8"),
        // Percent-encoded, as the message travels.
        CANCELLED if message.starts_with("Timeout%20expired") || message.starts_with("Timeout expired") => {
            HeaderValue::from_static("4")
        }
        _ => return,
    };
    headers.insert("grpc-status", right);
}
