//! Lingering close: HTTP/1.1 responses that are ready before the request has been received completely.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

/// Of a rejected request: enough for one that is a little too large.
const MAX_DISCARDED_BYTES: usize = 2 * crate::transport::services::MAX_MESSAGE_BYTES;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the rest of a rejected request before it responds. Otherwise the connection is closed while the client still writes; its
/// system then discards the response, and the client sees a connection reset (RFC 9112, section 9.6). HTTP/2 closes only the stream.
#[derive(Debug, Clone)]
pub(super) struct LingeringCloseLayer;

impl<S> Layer<S> for LingeringCloseLayer {
    type Service = LingeringCloseService<S>;

    fn layer(&self, inner: S) -> LingeringCloseService<S> {
        LingeringCloseService { inner }
    }
}

#[derive(Debug, Clone)]
pub(super) struct LingeringCloseService<S> {
    inner: S,
}

impl<S, Out> Service<Request<Body>> for LingeringCloseService<S>
where
    S: Service<Request<Body>, Response = Response<Out>, Error: Send, Future: Send + 'static>,
    Out: Send,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.version() >= Version::HTTP_2 {
            return Box::pin(self.inner.call(request));
        }
        let (parts, body) = request.into_parts();
        let body = Arc::new(Mutex::new(body));
        let response = self.inner.call(Request::from_parts(parts, Body::new(SharedBody(body.clone()))));
        Box::pin(async move {
            let response = response.await;
            // The handler has dropped its half, so the response does not depend on the rest of the body.
            if let Some(body) = Arc::into_inner(body) {
                let _ =
                    timeout(DISCARD_TIMEOUT, discard(body.into_inner().unwrap_or_else(PoisonError::into_inner))).await;
            }
            response
        })
    }
}

async fn discard(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_DISCARDED_BYTES {
            return;
        }
    }
}

/// A request body that stays available after the handler has dropped it.
struct SharedBody(Arc<Mutex<Body>>);

impl http_body::Body for SharedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
