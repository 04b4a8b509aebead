//! The response body: well-formed gRPC-Web frames, even after a panic, an error or the deadline.

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

use crate::transport::status_layer;

/// The flag of a trailers frame (gRPC-Web, "Message framing").
const TRAILERS_FLAG: u8 = 0x80;

/// Ends with a trailers frame unless it is empty.
pub struct ResponseBody {
    state: BodyState,
    is_text: bool,
}

enum BodyState {
    Streaming(Body, Pin<Box<Sleep>>),
    Last(Bytes),
    Ended,
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self { state: BodyState::Ended, is_text: false }
    }

    pub(super) fn trailers(trailers: &HeaderMap, is_text: bool) -> Self {
        Self { state: BodyState::Last(trailers_frame(trailers, is_text)), is_text }
    }

    pub(super) fn streaming(body: Body, is_text: bool, deadline: Instant) -> Self {
        Self { state: BodyState::Streaming(body, Box::pin(sleep_until(deadline))), is_text }
    }

    fn deadline_exceeded(&self) -> Bytes {
        self.status_frame(Status::deadline_exceeded("the time for the call is over"))
    }

    fn status_frame(&self, status: Status) -> Bytes {
        trailers_frame(&status_layer::trailers(status), self.is_text)
    }
}

impl Stream for ResponseBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let last = match &mut self.state {
            BodyState::Ended => return Poll::Ready(None),
            BodyState::Last(bytes) => std::mem::take(bytes),
            // Checked first: a body that is always ready would never let the timer be polled.
            BodyState::Streaming(_, timer) if timer.deadline() <= Instant::now() => self.deadline_exceeded(),
            BodyState::Streaming(body, timer) => {
                // Unwind safety: after a panic the body is not polled again.
                let next = catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(context)));
                match next {
                    Ok(Poll::Pending) if timer.as_mut().poll(context).is_pending() => return Poll::Pending,
                    Ok(Poll::Pending) => self.deadline_exceeded(),
                    Ok(Poll::Ready(Some(Ok(frame)))) => match frame.into_data() {
                        Ok(data) => return Poll::Ready(Some(Ok(data))),
                        // Lambda does not support HTTP trailers.
                        Err(frame) => trailers_frame(&frame.into_trailers().unwrap_or_default(), self.is_text),
                    },
                    Ok(Poll::Ready(Some(Err(status)))) => self.status_frame(status),
                    Ok(Poll::Ready(None)) => {
                        self.state = BodyState::Ended;
                        return Poll::Ready(None);
                    }
                    Err(_panic) => self.status_frame(Status::internal("an internal defect")),
                }
            }
        };
        self.state = BodyState::Ended;
        Poll::Ready(Some(Ok(last)))
    }
}

/// Trailers are encoded as HTTP/1 headers.
fn trailers_frame(trailers: &HeaderMap, is_text: bool) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(lines.len() + 5);
    frame.put_u8(TRAILERS_FLAG);
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    if is_text { STANDARD.encode(&frame).into() } else { frame.freeze() }
}
