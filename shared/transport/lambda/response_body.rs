//! The body of an answer: frames of gRPC-Web and nothing else, whatever happens.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::Stream;
use http::HeaderMap;
use http_body::Body as _;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};

/// The flag of a frame with trailers (gRPC-Web, "Message framing").
const TRAILERS: u8 = 0x80;

/// The body of an answer, piece by piece. It ends with trailers, or there is none.
pub struct ResponseBody {
    source: Source,
    is_text: bool,
}

enum Source {
    /// Frames as the service makes them, until a deadline.
    Streaming(Body, Pin<Box<Sleep>>),
    /// The last bytes.
    Last(Bytes),
    Ended,
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self { source: Source::Ended, is_text: false }
    }

    /// Nothing but trailers.
    pub(super) fn trailers(trailers: &HeaderMap, is_text: bool) -> Self {
        Self { source: Source::Last(framed(trailers, is_text)), is_text }
    }

    /// What the service says, until its end or `end`.
    pub(super) fn streaming(body: Body, is_text: bool, end: Instant) -> Self {
        Self { source: Source::Streaming(body, Box::pin(sleep_until(end))), is_text }
    }

    fn out_of_time(&self) -> Bytes {
        self.status(Status::deadline_exceeded("the time for the call is over"))
    }

    fn status(&self, status: Status) -> Bytes {
        let (parts, ()) = status.into_http::<()>().into_parts();
        let mut trailers = parts.headers;
        trailers.remove(http::header::CONTENT_TYPE);
        framed(&trailers, self.is_text)
    }
}

impl Stream for ResponseBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let last = match &mut self.source {
            Source::Ended => return Poll::Ready(None),
            Source::Last(bytes) => std::mem::take(bytes),
            // Looked at first, because a body that always has something to say never gets to the timer.
            Source::Streaming(_, end) if end.deadline() <= Instant::now() => self.out_of_time(),
            Source::Streaming(body, end) => {
                // After a panic the body is never polled again, so that no broken state can be seen.
                let next = catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(context)));
                match next {
                    Ok(Poll::Pending) if end.as_mut().poll(context).is_pending() => return Poll::Pending,
                    Ok(Poll::Pending) => self.out_of_time(),
                    Ok(Poll::Ready(Some(Ok(frame)))) => match frame.into_data() {
                        Ok(data) => return Poll::Ready(Some(Ok(data))),
                        // Lambda knows no trailers.
                        Err(frame) => framed(&frame.into_trailers().unwrap_or_default(), self.is_text),
                    },
                    Ok(Poll::Ready(Some(Err(status)))) => self.status(status),
                    Ok(Poll::Ready(None)) => {
                        self.source = Source::Ended;
                        return Poll::Ready(None);
                    }
                    Err(_panic) => self.status(Status::internal("an internal defect")),
                }
            }
        };
        self.source = Source::Ended;
        Poll::Ready(Some(Ok(last)))
    }
}

/// A frame of trailers, as HTTP/1 writes headers.
fn framed(trailers: &HeaderMap, is_text: bool) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(lines.len() + 5);
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    if is_text { STANDARD.encode(&frame).into() } else { frame.freeze() }
}
