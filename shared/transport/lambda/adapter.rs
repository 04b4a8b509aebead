//! Serves gRPC services behind Lambda events, with streamed gRPC-Web responses. Independent of our services, so that tests can use
//! others.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body, server::NamedService};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{
    Layer as _, Service,
    util::{BoxCloneSyncService, MapRequest},
};

use super::{
    event::{EventBody, HttpEvent},
    response_body::ResponseBody,
};
use crate::transport::{
    request_filter::{self, GRPC_WEB, ResponseMode},
    status_layer::{self, StatusLayer, StatusService},
    text_body,
};

/// Reserved at the end of the function's time to end a stream properly; at most a quarter of that time.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(1);
/// The maximum timeout of a Lambda function.
const MAX_FUNCTION_TIME: Duration = Duration::from_mins(15);
const WEB: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const WEB_TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
/// Stays in the header, where clients look for it.
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

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

type StatusCorrectingService = StatusService<BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>>;
type RouteService = GrpcWebService<MapRequest<StatusCorrectingService, fn(Request<Body>) -> Request<Body>>>;

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
        let service = StatusLayer.layer(BoxCloneSyncService::new(service));
        let service = MapRequest::new(service, read_body as fn(_) -> _);
        let service = GrpcWebLayer::new().layer(service);
        self.routes.push(Route { service_name: S::NAME, methods, service });
        self
    }

    /// `deadline_ms` is Lambda's, in milliseconds since 1970. Every failure becomes a gRPC-Web response, and the response always
    /// ends before the deadline.
    pub async fn handle(&self, event: Value, deadline_ms: u64) -> Response<ResponseBody> {
        let Some(mut event) = HttpEvent::parse(event) else { return empty_response(StatusCode::BAD_REQUEST) };
        let filtered = request_filter::require_grpc_post(&event.method, &mut event.headers, GRPC_WEB);
        let content_type = match filtered {
            Ok(content_type) => content_type,
            // Includes a CORS preflight that the edge did not answer: its origin is not allowed.
            Err(rejection) if self.find(&event.path).is_some() => return rejection.map(|()| ResponseBody::empty()),
            Err(_) => return request_filter::not_found().map(|()| ResponseBody::empty()),
        };
        let mode = ResponseMode::of(content_type, &event.headers);
        match self.route(event, mode, time_left(deadline_ms)) {
            Ok(call) => call.run(mode.is_text()).await,
            Err(status) => status_response(status, mode.is_text()),
        }
    }

    fn find<'p>(&self, path: &'p str) -> Option<(&Route, &'p str)> {
        self.routes.iter().find_map(|route| {
            let method = method_of(path, route.service_name).filter(|method| route.methods.contains(method))?;
            Some((route, method))
        })
    }

    fn route(&self, event: HttpEvent, mode: ResponseMode, function_time: Duration) -> Result<RoutedCall, Status> {
        let HttpEvent { path, headers, body, .. } = event;
        let (route, method) = self.find(&path).ok_or_else(|| Status::unimplemented(self.describe_routes()))?;
        let time_left = status_layer::timeout(&headers).map_or(function_time, |timeout| timeout.min(function_time));
        let deadline = Instant::now() + time_left;

        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(body);
        *request.method_mut() = Method::POST;
        // Drops the stage or prefix in front of the path.
        *request.uri_mut() = format!("/{}/{method}", route.service_name).parse().map_err(|_| internal_defect())?;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(status_layer::turn_deadline(time_left));
        mode.apply(&mut request);
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

/// Stands behind tonic-web, so that the client gets the error of the decoder itself.
fn read_body(mut request: Request<Body>) -> Request<Body> {
    if let Some(body) = request.extensions_mut().remove::<EventBody>() {
        request = request.map(|_| Body::new(StreamBody::new(stream::once(async { decode(body) }))));
    }
    text_body::decode(request)
}

fn decode(body: EventBody) -> Result<Frame<Bytes>, Status> {
    let body = body.decode().map_err(|_| Status::invalid_argument("the body of the request is not valid base64"))?;
    Ok(Frame::data(body.into()))
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
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, if is_text { WEB_TEXT } else { WEB });
    if let Some(accepted) = trailers.remove(ACCEPT_ENCODING) {
        headers.insert(ACCEPT_ENCODING, accepted);
    }
    response
}

#[cfg(test)]
mod tests;
