//! Statuses that tonic gives a name of its own, put right.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tower::{Layer, Service};

/// Maps tonic's OUT_OF_RANGE for a message that is too large to RESOURCE_EXHAUSTED, and answers a call whose `grpc-timeout`
/// has passed before a handler answered with DEADLINE_EXCEEDED where tonic says CANCELLED, as
/// <https://grpc.io/docs/guides/status-codes/> has them.
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
    Out: Default,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        // A moment before tonic's own timer, which would answer CANCELLED.
        let before = |timeout: Duration| timeout.saturating_sub((timeout / 10).min(Duration::from_millis(5)));
        let deadline = timeout(request.headers()).map(|timeout| Box::pin(sleep(before(timeout))));
        Answer { inner: Box::pin(self.inner.call(request)), deadline }
    }
}

/// An answer with its status put right.
pub(super) struct Answer<F> {
    inner: Pin<Box<F>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<F, Out, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<Out>, E>>,
    Out: Default,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if let Poll::Ready(mut result) = self.inner.as_mut().poll(context) {
            if let Ok(response) = &mut result {
                put_right(response.headers_mut());
            }
            return Poll::Ready(result);
        }
        match &mut self.deadline {
            Some(deadline) => deadline
                .as_mut()
                .poll(context)
                .map(|()| Ok(Status::deadline_exceeded("the deadline of the call has passed").into_http())),
            None => Poll::Pending,
        }
    }
}

/// A message that is too large is found before a handler runs, hence told in the headers of an answer without a body. It is
/// known by tonic's words, because a handler may have an OUT_OF_RANGE of its own.
fn put_right(headers: &mut HeaderMap) {
    const OUT_OF_RANGE: &str = "11";
    const TOO_LARGE: &[u8] = b"Error,%20decoded%20message%20length%20too%20large";
    const RESOURCE_EXHAUSTED: HeaderValue = HeaderValue::from_static("8");
    if headers.get("grpc-status").is_some_and(|status| status == OUT_OF_RANGE)
        && headers.get("grpc-message").is_some_and(|message| message.as_bytes().starts_with(TOO_LARGE))
    {
        headers.insert("grpc-status", RESOURCE_EXHAUSTED);
    }
}

/// The time that a client gives a call: at most eight digits and a unit,
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>. A malformed one counts as absent.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
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
    fn a_message_that_is_too_large_exhausts_a_resource_and_a_handlers_own_status_stays() {
        let status_after = |message: &str| {
            let mut headers = Status::out_of_range(message).into_http::<()>().into_parts().0.headers;
            put_right(&mut headers);
            headers["grpc-status"].clone()
        };
        let too_large = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert_eq!(status_after(too_large), "8");
        assert_eq!(status_after("the day is not in this year"), "11");
    }

    #[test]
    fn a_timeout_is_read_in_each_unit_and_a_malformed_one_counts_as_absent() {
        let read = |value: &'static str| {
            timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_static(value))]))
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("50m"), Some(Duration::from_millis(50)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("1n"), Some(Duration::from_nanos(1)));
        for malformed in ["", "S", "5", "-5S", "999999999S", "5x"] {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }
}
