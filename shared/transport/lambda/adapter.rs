//! Serves gRPC services behind Lambda events, with streamed gRPC-Web responses. Independent of our services, so that tests can use
//! others.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
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

/// Reserved at the end of the function's time to end a stream properly; at most a quarter of that time.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(1);
/// Between the deadline of the turn and that of its call, for the turn's last frame.
const LAST_FRAME_MARGIN: Duration = Duration::from_millis(300);
/// The maximum timeout of a Lambda function.
const MAX_FUNCTION_TIME: Duration = Duration::from_mins(15);
const GRPC_WEB: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const GRPC_WEB_TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");

/// A service as tonic generates it.
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

/// gRPC services as handlers of Lambda events.
#[derive(Clone)]
pub struct Adapter {
    routes: Vec<Route>,
}

#[derive(Clone)]
struct Route {
    service_name: &'static str,
    methods: &'static [&'static str],
    service: RouteService,
}

type RouteService = GrpcWebService<StatusService<BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>>>;

struct RoutedCall {
    service: RouteService,
    request: Request<Body>,
    deadline: Instant,
}

impl Adapter {
    /// Serves only these methods of the service.
    pub fn new<S: GrpcService>(service: S, methods: &'static [&'static str]) -> Self {
        Self { routes: Vec::new() }.add_service(service, methods)
    }

    /// Serves these methods of another service as well.
    #[must_use]
    pub fn add_service<S: GrpcService>(mut self, service: S, methods: &'static [&'static str]) -> Self {
        let service = GrpcWebLayer::new().layer(StatusLayer.layer(BoxCloneSyncService::new(service)));
        self.routes.push(Route { service_name: S::NAME, methods, service });
        self
    }

    /// `deadline_ms` is Lambda's, in milliseconds since 1970. Every failure becomes a gRPC-Web response, and the response always
    /// ends before the deadline.
    pub async fn handle(&self, event: Value, deadline_ms: u64) -> Response<ResponseBody> {
        let Some(mut event) = HttpEvent::parse(event) else { return empty_response(StatusCode::BAD_REQUEST) };
        let filtered = request_filter::require_grpc_post(&event.method, &mut event.headers, request_filter::GRPC_WEB);
        let content_type = match filtered {
            Ok(content_type) => content_type,
            // Includes a CORS preflight that the edge did not answer: its origin is not allowed.
            Err(rejection) => return rejection.map(|()| ResponseBody::empty()),
        };
        // The response is in the mode of the request, even if the client does not say what it accepts.
        let is_text = content_type.starts_with("application/grpc-web-text") || accepts_text(&event.headers);
        event.headers.insert(header::ACCEPT, if is_text { GRPC_WEB_TEXT } else { GRPC_WEB });
        match self.route(event, time_left(deadline_ms)) {
            Ok(call) => call.run(is_text).await,
            Err(status) => status_response(status, is_text),
        }
    }

    fn route(&self, event: HttpEvent, function_time: Duration) -> Result<RoutedCall, Status> {
        let HttpEvent { path, headers, body, .. } = event;
        let matching = self.routes.iter().find_map(|route| {
            let method = method_of(&path, route.service_name).filter(|method| route.methods.contains(method))?;
            Some((route, method))
        });
        let (route, method) = matching.ok_or_else(|| Status::unimplemented(self.describe_routes()))?;
        let body = body.map_err(|_| Status::invalid_argument("the body of the request is not valid base64"))?;
        let time_left = status_layer::timeout(&headers).map_or(function_time, |timeout| timeout.min(function_time));
        let deadline = Instant::now() + time_left;
        let turn_deadline = deadline.checked_sub(LAST_FRAME_MARGIN.min(time_left / 8)).unwrap_or(deadline);

        let mut request = Request::new(Body::new(Full::new(Bytes::from(body))));
        *request.method_mut() = Method::POST;
        // Drops the stage or prefix in front of the path.
        *request.uri_mut() = format!("/{}/{method}", route.service_name).parse().map_err(|_| internal_defect())?;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(Deadline(turn_deadline));
        Ok(RoutedCall { service: route.service.clone(), request, deadline })
    }

    fn describe_routes(&self) -> String {
        let routes = self.routes.iter().map(|route| format!("{}: {}", route.service_name, route.methods.join(", ")));
        format!("this function answers {}", routes.collect::<Vec<_>>().join("; "))
    }
}

impl RoutedCall {
    async fn run(self, is_text: bool) -> Response<ResponseBody> {
        let Self { mut service, request, deadline } = self;
        let call = AssertUnwindSafe(async move { service.call(request).await }).catch_unwind();
        match timeout_at(deadline, call).await {
            Ok(Ok(Ok(response))) => streamed_response(response, is_text, deadline),
            Ok(Err(_panic)) => status_response(internal_defect(), is_text),
            Err(_) => status_response(Status::deadline_exceeded("the time for the call is over"), is_text),
        }
    }
}

fn accepts_text(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.starts_with("application/grpc-web-text"))
}

/// The last segment of a path if the one before it is the service.
fn method_of<'p>(path: &'p str, service_name: &str) -> Option<&'p str> {
    let (before, method) = path.rsplit_once('/')?;
    let (_, service) = before.rsplit_once('/')?;
    (service == service_name).then_some(method)
}

fn time_left(deadline_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deadline = Duration::from_millis(deadline_ms);
    // `cargo lambda watch` sends a duration where Lambda sends an instant.
    let left =
        if deadline <= MAX_FUNCTION_TIME { deadline } else { deadline.saturating_sub(now).min(MAX_FUNCTION_TIME) };
    left.saturating_sub(SHUTDOWN_MARGIN.min(left / 4))
}

fn internal_defect() -> Status {
    Status::internal("an internal defect")
}

fn empty_response(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

fn status_response(status: Status, is_text: bool) -> Response<ResponseBody> {
    let (parts, ()) = status.into_http::<()>().into_parts();
    trailers_response(parts.headers, is_text)
}

fn streamed_response(response: Response<Body>, is_text: bool, deadline: Instant) -> Response<ResponseBody> {
    let (parts, body) = response.into_parts();
    if parts.headers.contains_key("grpc-status") {
        return trailers_response(parts.headers, is_text);
    }
    Response::from_parts(parts, ResponseBody::streaming(body, is_text, deadline))
}

/// Moves the status into the body: the edge exposes to a page only the headers in its CORS configuration, but the whole body.
fn trailers_response(mut trailers: HeaderMap, is_text: bool) -> Response<ResponseBody> {
    trailers.remove(header::CONTENT_TYPE);
    let mut response = Response::new(ResponseBody::trailers(&trailers, is_text));
    response.headers_mut().insert(header::CONTENT_TYPE, if is_text { GRPC_WEB_TEXT } else { GRPC_WEB });
    response
}

#[cfg(test)]
mod tests;
