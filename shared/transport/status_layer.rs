//! Corrects the statuses of requests that tonic and tonic-web reject themselves.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tower::{Layer, Service};

/// Follows <https://grpc.io/docs/guides/status-codes/>: a message that is too large is RESOURCE_EXHAUSTED (tonic: OUT_OF_RANGE),
/// invalid base64 is INVALID_ARGUMENT (tonic-web: INTERNAL), and a `grpc-timeout` that passes before the handler answers is
/// DEADLINE_EXCEEDED (tonic: CANCELLED).
#[derive(Debug, Clone)]
pub(super) struct StatusLayer;

impl<S> Layer<S> for StatusLayer {
    type Service = StatusService<S>;

    fn layer(&self, inner: S) -> StatusService<S> {
        StatusService { inner }
    }
}

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
    type Future = StatusFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        // Shortly before tonic's own timer, which would answer CANCELLED.
        let shortened = |timeout: Duration| timeout.saturating_sub((timeout / 10).min(Duration::from_millis(5)));
        let deadline = timeout(request.headers()).map(|timeout| Box::pin(sleep(shortened(timeout))));
        StatusFuture { inner: Box::pin(self.inner.call(request)), deadline }
    }
}

pub(super) struct StatusFuture<F> {
    inner: Pin<Box<F>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<F, Out, E> Future for StatusFuture<F>
where
    F: Future<Output = Result<Response<Out>, E>>,
    Out: Default,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if let Poll::Ready(mut result) = self.inner.as_mut().poll(context) {
            if let Ok(response) = &mut result {
                correct_status(response.headers_mut());
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

/// tonic rejects a request before its handler runs, so the status is in the headers. The message tells tonic's own statuses from
/// the same statuses of a handler.
fn correct_status(headers: &mut HeaderMap) {
    const CORRECTIONS: [(&str, &str, HeaderValue); 2] = [
        ("11", "Error,%20decoded%20message%20length%20too%20large", HeaderValue::from_static("8")),
        // Also sent for a body that breaks off, but then the client is gone.
        ("13", "tonic-web:%20", HeaderValue::from_static("3")),
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
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
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
        assert_eq!(status_after(Status::internal("tonic-web: Invalid symbol 33, offset 0.")), "3");
        assert_eq!(status_after(Status::internal("a defect")), "13");
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
        for malformed in ["", "S", "5", "-5S", "999999999S", "5x"] {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }
}
