//! Answers over HTTP/1.1 that are there before the request has arrived as a whole.

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

/// What is read of a request that was refused, in bytes: any that is a little too large.
const MOST_BYTES: usize = 2 * crate::transport::MAX_MESSAGE_BYTES;
/// How long it may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lets a client send its request to the end before it is told that it was refused. Otherwise the connection is closed while
/// the client is still writing; its system then throws away the answer, and the client sees a broken connection
/// (RFC 9112, section 9.6). Over HTTP/2 a stream ends by itself.
#[derive(Debug, Clone)]
pub(super) struct LingeringCloseLayer;

impl<S> Layer<S> for LingeringCloseLayer {
    type Service = LingeringCloseService<S>;

    fn layer(&self, inner: S) -> LingeringCloseService<S> {
        LingeringCloseService { inner }
    }
}

/// The service of [`UnreadLayer`].
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
        let answer = self.inner.call(Request::from_parts(parts, Body::new(SharedBody(body.clone()))));
        Box::pin(async move {
            let answer = answer.await;
            // Nobody else has the body: the answer does not depend on what is still to come.
            if let Some(body) = Arc::into_inner(body) {
                let _ = timeout(PATIENCE, read(body.into_inner().unwrap_or_else(PoisonError::into_inner))).await;
            }
            answer
        })
    }
}

async fn read(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MOST_BYTES {
            return;
        }
    }
}

/// The body of a request, which comes back when the reader has dropped it.
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
