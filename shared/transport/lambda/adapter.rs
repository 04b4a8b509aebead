//! One event of Lambda: an HTTP request, most likely of gRPC-Web.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body, server::NamedService};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer as _, Service, util::BoxCloneSyncService};

use super::{event::HttpEvent, response_body::ResponseBody};
use crate::{
    service::Deadline,
    transport::{
        request_filter,
        status_layer::{self, StatusLayer, StatusService},
    },
};

/// Kept of the function's time to end a stream in order, but no more than a quarter of it.
const MARGIN: Duration = Duration::from_secs(1);
/// Kept of that for the last frame of a turn that was told to end.
const LAST_WORDS: Duration = Duration::from_millis(300);
const GRPC_WEB: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const GRPC_WEB_TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");

/// What can be served: a service as tonic generates it.
pub trait GrpcService:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + NamedService
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> GrpcService for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Services of gRPC behind events of Lambda, whose answers stream as gRPC-Web. It knows none of our services, so that a test can
/// try it with one of its own.
#[derive(Clone)]
pub struct Adapter {
    routes: Vec<Route>,
}

#[derive(Clone)]
struct Route {
    name: &'static str,
    methods: &'static [&'static str],
    service: GrpcWebService<StatusService<AnyService>>,
}

/// Any service as tonic generates it.
type AnyService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

impl Adapter {
    /// Answers these methods of a service, and no others.
    pub fn new<S: GrpcService>(service: S, methods: &'static [&'static str]) -> Self {
        Self { routes: Vec::new() }.add_service(service, methods)
    }

    /// Answers these methods of another service as well.
    #[must_use]
    pub fn add_service<S: GrpcService>(mut self, service: S, methods: &'static [&'static str]) -> Self {
        let service = GrpcWebLayer::new().layer(StatusLayer.layer(BoxCloneSyncService::new(service)));
        self.routes.push(Route { name: S::NAME, methods, service });
        self
    }

    /// What is told of a path that leads nowhere.
    fn known(&self) -> String {
        let known = self.routes.iter().map(|Route { name, methods, .. }| format!("{name}: {}", methods.join(", ")));
        format!("this function answers {}", known.collect::<Vec<_>>().join("; "))
    }

    /// Answers an event before a deadline, which Lambda tells in milliseconds since 1970. Whatever goes wrong is told in the way
    /// that the client reads.
    pub async fn handle(&self, event: Value, deadline_ms: u64) -> Response<ResponseBody> {
        let Some(HttpEvent { method, path, mut headers, body }) = HttpEvent::read(event) else {
            return without_body(StatusCode::BAD_REQUEST);
        };
        let content_type = match request_filter::require_grpc_post(&method, &mut headers, request_filter::GRPC_WEB) {
            Ok(content_type) => content_type,
            // A preflight that comes this far is one that the edge does not answer, so that no origin is allowed.
            Err(refused) => return refused.map(|()| ResponseBody::empty()),
        };
        // The answer is in the mode of the question, also where a client does not say what it accepts.
        let is_text = content_type.starts_with("application/grpc-web-text") || accepts_text(&headers);
        headers.insert(header::ACCEPT, if is_text { GRPC_WEB_TEXT } else { GRPC_WEB });

        let route = self.routes.iter().find_map(|route| {
            let method = method_of(&path, route.name).filter(|method| route.methods.contains(method))?;
            Some((route, method))
        });
        let Some((Route { name, service, .. }, method)) = route else {
            return refusal(Status::unimplemented(self.known()), is_text);
        };
        let Ok(body) = body else {
            return refusal(Status::invalid_argument("the body of the request is not valid base64"), is_text);
        };
        let time_left = time_left(deadline_ms);
        let time_left = status_layer::timeout(&headers).map_or(time_left, |asked| asked.min(time_left));
        let end = Instant::now() + time_left;

        let mut request = Request::new(Body::new(Full::new(Bytes::from(body))));
        *request.method_mut() = http::Method::POST;
        // A stage or a prefix in front of the path is none of the service's.
        let Ok(uri) = format!("/{name}/{method}").parse() else { return refusal(defect(), is_text) };
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(Deadline(end.checked_sub(LAST_WORDS.min(time_left / 8)).unwrap_or(end)));
        let mut service = service.clone();
        let call = AssertUnwindSafe(async move { service.call(request).await }).catch_unwind();
        match timeout_at(end, call).await {
            Ok(Ok(Ok(response))) => streamed(response, is_text, end),
            Ok(Err(_panic)) => refusal(defect(), is_text),
            Err(_) => refusal(Status::deadline_exceeded("the time for the call is over"), is_text),
        }
    }
}

fn defect() -> Status {
    Status::internal("an internal defect")
}

fn without_body(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

/// Answers are in text mode where the client asks for it.
fn accepts_text(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.starts_with("application/grpc-web-text"))
}

/// The method that a path names, if it is one of the service.
fn method_of<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    let (before, method) = path.rsplit_once('/')?;
    let (_, service) = before.rsplit_once('/')?;
    (service == name).then_some(method)
}

/// What is left of the function's time, but for what it takes to end in order.
fn time_left(deadline_ms: u64) -> Duration {
    /// Lambda's longest.
    const LONGEST: Duration = Duration::from_mins(15);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deadline = Duration::from_millis(deadline_ms);
    // `cargo lambda watch` tells how long, where Lambda tells until when.
    let left = if deadline <= LONGEST { deadline } else { deadline.saturating_sub(now).min(LONGEST) };
    left.saturating_sub(MARGIN.min(left / 4))
}

/// An answer that is nothing but a status.
fn refusal(status: Status, is_text: bool) -> Response<ResponseBody> {
    let (parts, ()) = status.into_http::<()>().into_parts();
    in_body(parts.headers, is_text)
}

/// An answer as it comes, with a status in its headers moved to where browsers read it.
fn streamed(response: Response<Body>, is_text: bool, end: Instant) -> Response<ResponseBody> {
    let (parts, body) = response.into_parts();
    if parts.headers.contains_key("grpc-status") {
        return in_body(parts.headers, is_text);
    }
    Response::from_parts(parts, ResponseBody::streaming(body, is_text, end))
}

/// The edge shows a page only the headers that it was told to, but all of the body.
fn in_body(mut trailers: HeaderMap, is_text: bool) -> Response<ResponseBody> {
    trailers.remove(header::CONTENT_TYPE);
    let mut response = Response::new(ResponseBody::trailers(&trailers, is_text));
    response.headers_mut().insert(header::CONTENT_TYPE, if is_text { GRPC_WEB_TEXT } else { GRPC_WEB });
    response
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::{StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use serde_json::json;
    use tower::util::{BoxCloneSyncService, service_fn};

    use super::*;

    #[derive(Clone)]
    struct Answering(BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>);

    impl NamedService for Answering {
        const NAME: &'static str = "x.Y";
    }

    impl Service<Request<Body>> for Answering {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = futures_util::future::BoxFuture<'static, Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
            self.0.poll_ready(context)
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            self.0.call(request)
        }
    }

    /// What is answered by a service that answers so: all that reaches the client.
    async fn answered<F>(respond: impl Fn() -> F + Clone + Send + Sync + 'static, time_left: Duration) -> String
    where
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        let service = Answering(BoxCloneSyncService::new(service_fn(move |_: Request<Body>| respond())));
        let event = json!({
            "rawPath": "/x.Y/Z",
            "headers": {"content-type": "application/grpc-web+proto"},
            "requestContext": {"http": {"method": "POST"}},
        });
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time_left;
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap();
        let response = Adapter::new(service, &["Z"]).handle(event, deadline_ms).await;
        assert_eq!(response.status(), StatusCode::OK);
        let pieces: Vec<_> = response.into_body().map(Result::unwrap).collect().await;
        String::from_utf8_lossy(&pieces.concat()).into_owned()
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
        // A service of tonic ends a stream by trailers; a body that breaks is a defect.
        assert!(failed.starts_with("said") && failed.contains("grpc-status: 13"), "{failed}");
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

    #[tokio::test]
    async fn time_that_runs_out_ends_a_stream_that_never_pauses() {
        let talking = || async {
            let began = std::time::Instant::now();
            let nothing = stream::repeat_with(|| Ok(Frame::data(Bytes::new())));
            body(nothing.take_while(move |_| std::future::ready(began.elapsed() < Duration::from_secs(20))))
        };
        let ended = answered(talking, Duration::from_millis(100)).await;
        assert!(ended.contains("grpc-status: 4"), "{ended}");
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
    fn some_of_the_time_is_kept_to_end_in_order() {
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        assert!(time_left(now + 60_000) <= Duration::from_secs(59));
        let short = time_left(now + 1_000);
        assert!(short <= Duration::from_millis(750) && short > Duration::from_millis(500), "{short:?}");
        assert_eq!(time_left(now - 5_000), Duration::ZERO);
        assert_eq!(time_left(600_000), Duration::from_secs(599), "as cargo lambda watch tells it");
    }
}
