//! A time limit for receiving the body of a request. tonic reads the message before the handler applies the
//! limits of the caller, so they do not bound a client that never completes its request.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

/// For each [`MIN_PROGRESS_BYTES`] of a body, or what is left of it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that sends a byte now and then makes no progress. The slowest mobile networks are ten times as fast.
const MIN_PROGRESS_BYTES: usize = 16 * 1024;

/// Ends the body of a request that is not received in time with DEADLINE_EXCEEDED, which tonic answers. Stands behind tonic-web,
/// so that the status is not wrapped in another.
pub(super) fn limit(request: Request<Body>) -> Request<Body> {
    request.map(|body| Body::new(TimedBody { body, wait: None, progress: 0 }))
}

struct TimedBody {
    body: Body,
    /// Begins when the reader has to wait, so that the time of a slow reader does not count. Most bodies need none.
    wait: Option<Pin<Box<Sleep>>>,
    /// Bytes since the last wait began.
    progress: usize,
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
            this.progress += data.map_or(0, Bytes::len);
            if this.progress >= MIN_PROGRESS_BYTES {
                (this.wait, this.progress) = (None, 0);
            }
            return Poll::Ready(frame);
        }
        ready!(this.wait.get_or_insert_with(|| Box::pin(sleep(BODY_TIMEOUT))).as_mut().poll(context));
        this.body = Body::empty();
        Poll::Ready(Some(Err(Status::deadline_exceeded("the request was not received in time"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
