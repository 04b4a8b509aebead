//! One event of Lambda: an HTTP request, most likely of gRPC-Web.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use lambda_http::{RequestExt as _, Service};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body};

use super::answer::AnswerBody;
use crate::service::Deadline;

/// Kept of the function's time to end a stream in order, but no more than a quarter of it.
const MARGIN: Duration = Duration::from_secs(1);
/// Kept of that for the last frame of a turn that was told to end.
const LAST_WORDS: Duration = Duration::from_millis(300);
const GRPC_WEB: &str = "application/grpc-web";
const GRPC_WEB_TEXT: &str = "application/grpc-web-text";

/// Answers an event. Whatever goes wrong is told in the way that the client reads.
pub(super) async fn answer<S>(
    mut service: S,
    name: &str,
    methods: &[&str],
    event: lambda_http::Request,
) -> Response<AnswerBody>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let time_left = time_left(event.lambda_context_ref().map(|context| context.deadline));
    let path = event.raw_http_path().to_owned();
    let (mut parts, body) = event.into_parts();
    let is_text = match admit(&parts) {
        Ok(is_text) => is_text,
        Err(refused) => return refused.map(|()| AnswerBody::empty()),
    };
    let Some(method) = method_of(&path, name).filter(|method| methods.contains(method)) else {
        let unknown = Status::unimplemented(format!("this function answers {name}: {}", methods.join(", ")));
        return refusal(unknown, is_text);
    };
    // A stage or a prefix in front of the path is none of the service's.
    let Ok(uri) = format!("/{name}/{method}").parse() else { return refusal(Status::internal("a defect"), is_text) };
    parts.uri = uri;

    let time_left = client_timeout(&parts.headers).map_or(time_left, |asked| asked.min(time_left));
    let end = Instant::now() + time_left;
    parts.extensions.insert(Deadline(end.checked_sub(LAST_WORDS.min(time_left / 8)).unwrap_or(end)));
    if is_text {
        // The answer is in the mode of the question, also where a client does not say what it accepts.
        parts.headers.insert(header::ACCEPT, http::HeaderValue::from_static(GRPC_WEB_TEXT));
    }
    let bytes = match body {
        lambda_http::Body::Text(text) => text.into_bytes(),
        lambda_http::Body::Binary(bytes) => bytes,
        _ => Vec::new(),
    };
    let request = Request::from_parts(parts, Body::new(Full::from(bytes)));
    let response = timeout_at(end, AssertUnwindSafe(service.call(request)).catch_unwind()).await;
    match response {
        Ok(Ok(Ok(response))) => streamed(response, is_text, end),
        Ok(Err(_panic)) => refusal(Status::internal("an internal defect"), is_text),
        Err(_) => refusal(Status::deadline_exceeded("the time for the call is over"), is_text),
    }
}

/// Whether a request is of gRPC-Web, and then whether in text mode.
fn admit(parts: &Parts) -> Result<bool, Response<()>> {
    let refused = |status, name, value| {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
        Err(response)
    };
    if parts.method != Method::POST {
        // A preflight that comes this far is one that the edge does not answer, so that no origin is allowed.
        return refused(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "POST");
    }
    let content_type =
        parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is = |kind: &str| {
        content_type.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';', ' ']))
    };
    match (is(GRPC_WEB), is(GRPC_WEB_TEXT)) {
        (_, true) => Ok(true),
        (true, _) => Ok(accepts_text(&parts.headers)),
        _ => refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            header::ACCEPT,
            "application/grpc-web+proto, application/grpc-web-text",
        ),
    }
}

/// Answers are in text mode where the client asks for it.
fn accepts_text(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.starts_with(GRPC_WEB_TEXT))
}

/// The method that a path names, if it is one of the service.
fn method_of<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    let (before, method) = path.rsplit_once('/')?;
    let (_, service) = before.rsplit_once('/')?;
    (service == name).then_some(method)
}

/// What is left of the function's time, but for what it takes to end in order.
fn time_left(deadline_ms: Option<u64>) -> Duration {
    // Lambda's longest; where nothing is known, the limits of a turn still hold.
    const LONGEST: Duration = Duration::from_mins(15);
    let Some(deadline) = deadline_ms else { return LONGEST };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deadline = Duration::from_millis(deadline);
    // `cargo lambda watch` tells how long, where Lambda tells until when.
    let left = if deadline <= LONGEST { deadline } else { deadline.saturating_sub(now).min(LONGEST) };
    left.saturating_sub(MARGIN.min(left / 4))
}

/// `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let amount: u64 = (digits.len() <= 8).then(|| digits.parse().ok())??;
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

/// An answer that is nothing but a status.
fn refusal(status: Status, is_text: bool) -> Response<AnswerBody> {
    let (parts, ()) = status.into_http::<()>().into_parts();
    in_body(parts.headers, is_text)
}

/// An answer as it comes, with a status in its headers moved to where browsers read it.
fn streamed(response: Response<Body>, is_text: bool, end: Instant) -> Response<AnswerBody> {
    let (parts, body) = response.into_parts();
    if parts.headers.contains_key("grpc-status") {
        return in_body(parts.headers, is_text);
    }
    Response::from_parts(parts, AnswerBody::streaming(body, is_text, end))
}

/// The edge shows a page only the headers that it was told to, but all of the body.
fn in_body(mut trailers: HeaderMap, is_text: bool) -> Response<AnswerBody> {
    let content_type = if is_text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
    let content_type = http::HeaderValue::from_static(content_type);
    trailers.remove(header::CONTENT_TYPE);
    let mut response = Response::new(AnswerBody::trailers(&trailers, is_text));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use bytes::Bytes;
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::{BodyExt as _, StreamBody};
    use tower::service_fn;

    use super::*;

    fn event(time_left: Duration) -> lambda_http::Request {
        let mut context = lambda_http::Context::default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        context.deadline = u64::try_from((now + time_left).as_millis()).unwrap();
        let request = Request::post("/x.Y/Z").header(header::CONTENT_TYPE, "application/grpc-web+proto");
        let request = request.body(lambda_http::Body::Empty).unwrap();
        request.with_raw_http_path("/x.Y/Z").with_lambda_context(context)
    }

    /// What is answered by a service that answers so: all that reaches the client.
    async fn answered<F>(respond: impl Fn() -> F + Clone, time_left: Duration) -> String
    where
        F: Future<Output = Result<Response<Body>, Infallible>>,
    {
        let service = service_fn(move |_: Request<Body>| respond());
        let response = answer(service, "x.Y", &["Z"], event(time_left)).await;
        assert_eq!(response.status(), StatusCode::OK);
        String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned()
    }

    fn body(
        frames: impl futures_util::Stream<Item = Result<Frame<Bytes>, Status>> + Send + 'static,
    ) -> Result<Response<Body>, Infallible> {
        Ok(Response::new(Body::new(StreamBody::new(frames))))
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_and_what_was_said_before_it_stays() {
        let minute = Duration::from_mins(1);
        let at_once = answered(|| async { panic!("of no importance") }, minute).await;
        assert!(at_once.contains("grpc-status: 13") && !at_once.contains("importance"), "{at_once}");
        let midway = || async {
            let mut polls = 0;
            body(stream::poll_fn(move |_| {
                polls += 1;
                if polls == 1 { Poll::Ready(Some(Ok(Frame::data("said".into())))) } else { panic!("of no importance") }
            }))
        };
        let midway = answered(midway, minute).await;
        assert!(midway.starts_with("said") && midway.contains("grpc-status: 13"), "{midway}");
    }

    #[tokio::test]
    async fn errors_and_trailers_of_a_stream_stand_in_its_body() {
        let failing =
            || async { body(stream::iter([Ok(Frame::data("said".into())), Err(Status::unavailable("gone\r\nx: y"))])) };
        let failed = answered(failing, Duration::from_mins(1)).await;
        assert!(failed.starts_with("said") && failed.contains("grpc-status: 14"), "{failed}");
        assert!(!failed.contains("\r\nx: y"), "a message makes no trailers of its own");
        let trailers =
            || async { body(stream::iter([Ok(Frame::trailers(Status::ok("").metadata().clone().into_headers()))])) };
        assert!(answered(trailers, Duration::from_mins(1)).await.starts_with('\u{fffd}'), "a frame of trailers");
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_runs_out_ends_a_call_and_a_stream() {
        let never = answered(std::future::pending, Duration::from_secs(3)).await;
        assert!(never.contains("grpc-status: 4"), "{never}");
        let stalled = || async { body(stream::pending()) };
        let stalled = answered(stalled, Duration::from_secs(3)).await;
        assert!(stalled.contains("grpc-status: 4"), "{stalled}");
    }

    #[test]
    fn a_method_is_found_behind_any_prefix_and_only_of_the_service() {
        assert_eq!(method_of("/agent.v1.AgentService/StreamChat", "agent.v1.AgentService"), Some("StreamChat"));
        assert_eq!(method_of("/prod/agent.v1.AgentService/StreamChat", "agent.v1.AgentService"), Some("StreamChat"));
        for other in ["/", "", "/StreamChat", "/agent.v1.Other/StreamChat", "/agent.v1.AgentService/"] {
            assert!(!matches!(method_of(other, "agent.v1.AgentService"), Some("StreamChat")), "{other}");
        }
    }

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        let read = |value: &str| {
            client_timeout(
                &[(http::HeaderName::from_static("grpc-timeout"), value.parse().unwrap())].into_iter().collect(),
            )
        };
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        for bad in ["S", "", "123456789S", "1x", "-1S", "1 S", "秒"] {
            assert!(bad.parse::<http::HeaderValue>().is_err() || read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn some_of_the_time_is_kept_to_end_in_order() {
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        assert!(time_left(Some(now + 60_000)) <= Duration::from_secs(59));
        let short = time_left(Some(now + 1_000));
        assert!(short <= Duration::from_millis(750) && short > Duration::from_millis(500), "{short:?}");
        assert_eq!(time_left(Some(now - 5_000)), Duration::ZERO);
        assert_eq!(time_left(Some(600_000)), Duration::from_secs(599), "as cargo lambda watch tells it");
    }
}
