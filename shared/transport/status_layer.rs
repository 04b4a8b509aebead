//! Deadlines of calls, and the statuses of requests that tonic rejects itself.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::service::Deadline;

/// Between the deadline of a turn and that of its call, for the turn's last frame; at most an eighth of the call's time.
const LAST_FRAME_MARGIN: Duration = Duration::from_millis(300);
/// nginx and others that know the header pass each frame on at once.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Follows <https://grpc.io/docs/guides/status-codes/>: a message that is too large is RESOURCE_EXHAUSTED (tonic: OUT_OF_RANGE),
/// one that is malformed is INVALID_ARGUMENT and one that is missing is UNIMPLEMENTED (tonic: INTERNAL), and a call that exceeds
/// its `grpc-timeout` ends with DEADLINE_EXCEEDED, before its first message or after. A turn is told to end a little earlier, so
/// that it ends with a frame.
#[derive(Debug, Clone)]
pub(super) struct StatusLayer;

impl<S> Layer<S> for StatusLayer {
    type Service = StatusService<S>;

    fn layer(&self, inner: S) -> StatusService<S> {
        StatusService { inner }
    }
}

/// When a turn ends whose call has this much time.
pub(super) fn turn_deadline(time: Duration) -> Deadline {
    Deadline(Instant::now() + time.saturating_sub(LAST_FRAME_MARGIN.min(time / 8)))
}

#[derive(Debug, Clone)]
pub(super) struct StatusService<S> {
    inner: S,
}

impl<S, In> Service<Request<In>> for StatusService<S>
where
    S: Service<Request<In>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = StatusFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let timeout = timeout(request.headers());
        if let Some(timeout) = timeout
            // A function has set its own, which is not later.
            && request.extensions().get::<Deadline>().is_none()
        {
            request.extensions_mut().insert(turn_deadline(timeout));
        }
        let deadline = timeout.map(|timeout| Box::pin(sleep_until(Instant::now() + timeout)));
        StatusFuture { inner: Box::pin(self.inner.call(request)), deadline }
    }
}

pub(super) struct StatusFuture<F> {
    inner: Pin<Box<F>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<F, E> Future for StatusFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if let Poll::Ready(result) = self.inner.as_mut().poll(context) {
            let deadline = self.deadline.take();
            return Poll::Ready(result.map(|response| finish(response, deadline)));
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(context).map(|()| Ok(deadline_exceeded().into_http())),
            None => Poll::Pending,
        }
    }
}

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

fn finish(mut response: Response<Body>, deadline: Option<Pin<Box<Sleep>>>) -> Response<Body> {
    let headers = response.headers_mut();
    correct_status(headers);
    if headers.contains_key("grpc-status") {
        return response;
    }
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    match deadline {
        Some(deadline) => response.map(|body| Body::new(BoundedBody { body: Some(body), deadline })),
        None => response,
    }
}

/// The messages of a call with a deadline.
struct BoundedBody {
    /// `None` = has ended.
    body: Option<Body>,
    deadline: Pin<Box<Sleep>>,
}

impl http_body::Body for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        // Checked first: a body that is always ready would never let the timer be polled.
        let is_over = this.deadline.deadline() <= Instant::now();
        if !is_over {
            let next = Pin::new(body).poll_frame(context);
            if next.is_ready() || this.deadline.as_mut().poll(context).is_pending() {
                return next;
            }
        }
        // Dropping the messages ends the call.
        this.body = None;
        Poll::Ready(Some(Ok(Frame::trailers(trailers(deadline_exceeded())))))
    }
}

/// A status as the trailers of a response that has begun.
pub(super) fn trailers(status: Status) -> HeaderMap {
    let mut trailers = status.into_http::<()>().into_parts().0.headers;
    trailers.remove(header::CONTENT_TYPE);
    trailers
}

const INVALID_COMPRESSION_FLAG: &str =
    "protocol%20error:%20received%20message%20with%20invalid%20compression%20flag:%20";

/// tonic rejects a request before its handler runs, so the status is in the headers. The message tells tonic's own statuses from
/// the same statuses of a handler.
fn correct_status(headers: &mut HeaderMap) {
    // Not among them: a compressed message without `grpc-encoding`, which the specification answers with INTERNAL.
    const CORRECTIONS: [(&str, &str, HeaderValue); 5] = [
        ("11", "Error,%20decoded%20message%20length%20too%20large", HeaderValue::from_static("8")),
        ("13", "Error%20decompressing:%20", HeaderValue::from_static("3")),
        ("13", "Unexpected%20EOF%20decoding%20stream", HeaderValue::from_static("3")),
        ("13", INVALID_COMPRESSION_FLAG, HeaderValue::from_static("3")),
        ("13", "Missing%20request%20message", HeaderValue::from_static("12")),
    ];
    let starts_with = |name: &str, prefix: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes().starts_with(prefix.as_bytes()))
    };
    let correction = CORRECTIONS
        .into_iter()
        .find(|(status, message, _)| starts_with("grpc-status", status) && starts_with("grpc-message", message));
    if let Some((_, _, status)) = correction {
        headers.insert("grpc-status", status);
    }
}

/// The header `grpc-timeout`: at most eight digits and a unit,
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>. A malformed one counts as absent.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    // `parse` accepts a sign.
    let is_amount = digits.len() <= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let amount: u64 = digits.parse().ok().filter(|_| is_amount)?;
    Some(match unit {
        "H" => Duration::from_hours(amount),
        "M" => Duration::from_mins(amount),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_errors_are_corrected_and_handler_statuses_stay() {
        let status_after = |status: Status| {
            let mut headers = status.into_http::<()>().into_parts().0.headers;
            correct_status(&mut headers);
            headers["grpc-status"].clone()
        };
        let too_large = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert_eq!(status_after(Status::out_of_range(too_large)), "8");
        assert_eq!(status_after(Status::out_of_range("the day is not in this year")), "11");
        assert_eq!(
            status_after(Status::internal("Error decompressing: corrupt deflate stream, while sending request")),
            "3"
        );
        assert_eq!(status_after(Status::internal("Missing request message.")), "12");
        assert_eq!(status_after(Status::internal("Unexpected EOF decoding stream.")), "3");
        let flag = "protocol error: received message with invalid compression flag: 2 (valid flags are 0 and 1)";
        assert_eq!(status_after(Status::internal(flag)), "3");
        let no_encoding = "protocol error: received message with compressed-flag but no grpc-encoding was specified";
        for message in [no_encoding, "a defect"] {
            assert_eq!(status_after(Status::internal(message)), "13", "{message}");
        }
    }

    #[test]
    fn timeout_is_parsed_in_each_unit_or_absent() {
        let read = |value: &'static str| {
            timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_static(value))]))
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("50m"), Some(Duration::from_millis(50)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("1n"), Some(Duration::from_nanos(1)));
        for malformed in ["", "S", "5", "-5S", "+5S", "+S", " 5S", "5 S", "999999999S", "5x"] {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }
}
