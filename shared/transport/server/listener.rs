//! The listening socket and the layers that each request passes: CORS, web page, HTTP rules, gRPC-Web, status mapping.
//! Independent of our services, so that tests can put others behind it.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response, header, uri::Authority};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::{ServiceBuilder, util::BoxCloneSyncService};
use tower_http::validate_request::{ValidateRequest, ValidateRequestHeaderLayer};

use super::{
    accept::Acceptor,
    answering::AnswerLayer,
    body_timeout,
    connection::{self, ConnectionContext, HttpService},
    cors::Cors,
    descriptors::descriptor_limit,
    error::ServerError,
    lingering_close::LingeringCloseLayer,
    message_budget,
    page::{self, Page},
    probes::{self, Probes},
    tls::TlsCertificate,
};
use crate::{
    config::ServerConfig,
    transport::{
        connection_slot::UnauthenticatedConnections,
        request_filter::{self, GRPC_AND_GRPC_WEB, ResponseMode, RpcPaths},
        status_layer::StatusLayer,
        text_body,
    },
};

/// When many clients reconnect at once, the usual backlog of 128 overflows, and the rest retries after a second.
const ACCEPT_BACKLOG: u32 = 4096;
/// Bounds what strangers can take: descriptors, and the buffers of connections.
const MAX_UNAUTHENTICATED_CONNECTIONS: usize = 1_024;
/// The others are for authenticated connections, the database, providers and files.
const UNAUTHENTICATED_SHARE_OF_DESCRIPTORS: usize = 4;

/// A bound port with all layers between HTTP and a gRPC service. It knows no service of ours, so that tests can bring their own.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    cors: Cors,
    page: Page,
    probes: Probes,
    tls: Option<Arc<TlsCertificate>>,
    keepalive: Duration,
    stall_timeout: Duration,
}

/// Reads the TLS files of a running server again.
#[derive(Clone)]
pub struct TlsReload(Option<Arc<TlsCertificate>>);

impl TlsReload {
    /// New connections get the new certificate. If the files are invalid, the old one stays. Without TLS it does nothing.
    pub fn reload(&self) {
        match self.0.as_ref().map(|tls| tls.reload()) {
            Some(Ok(())) => tracing::info!("TLS certificate reloaded"),
            Some(Err(error)) => tracing::error!(%error, "TLS certificate not reloaded; the old one stays in use"),
            None => tracing::debug!("no TLS certificate to reload"),
        }
    }
}

impl Listener {
    /// Reads the TLS files and binds the address, so that configuration errors show before anything else is started.
    pub async fn bind(config: &ServerConfig) -> Result<Self, ServerError> {
        let tls = config.tls.as_ref().map(TlsCertificate::load).transpose()?.map(Arc::new);
        let cors = Cors::from_config(config);
        let address = config.address();
        let bind_error = |source| ServerError::Bind { address, source };
        let socket = listen(address).map_err(bind_error)?;
        let address = socket.local_addr().map_err(bind_error)?;
        let page = Page { is_enabled: config.web_page };
        let probes = Probes::new(config.health);
        let (keepalive, stall_timeout) = (config.http1_keepalive, config.stall_timeout);
        Ok(Self { socket, address, cors, page, probes, tls, keepalive, stall_timeout })
    }

    /// With the real port if the configured one is 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For a signal that asks for it.
    #[must_use]
    pub fn tls_reload(&self) -> TlsReload {
        TlsReload(self.tls.clone())
    }

    /// `/readyz` reports it; `false` before the first call.
    pub(super) fn readiness(&self) -> probes::Readiness {
        self.probes.readiness()
    }

    /// Serves `routes`, whose calls are at `paths`. Once `stop` is cancelled, accepts no more connections and waits for open
    /// streams without a limit. Dropping the future closes all connections.
    pub async fn serve(self, routes: Routes, paths: RpcPaths, stop: CancellationToken) {
        let service = self.service(routes, paths);
        let Self { socket, tls, keepalive, stall_timeout, .. } = self;
        let context = Arc::new(ConnectionContext { service, tls, keepalive, stall_timeout, stop: stop.clone() });
        let share = descriptor_limit() / UNAUTHENTICATED_SHARE_OF_DESCRIPTORS;
        let unauthenticated = UnauthenticatedConnections::new(share.min(MAX_UNAUTHENTICATED_CONNECTIONS));
        let mut acceptor = Acceptor::new(unauthenticated);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                (stream, guard) = acceptor.next(|| socket.accept()) => {
                    connections.spawn(connection::serve(stream, guard, context.clone()));
                }
                Some(_) = connections.join_next() => {}
            }
        }
        // New clients are refused at once instead of waiting for an answer.
        drop(socket);
        while connections.join_next().await.is_some() {}
    }

    fn service(&self, routes: Routes, paths: RpcPaths) -> HttpService {
        let validator =
            RequestValidator { cors: self.cors.clone(), paths, page: self.page, probes: self.probes.clone() };
        let service = ServiceBuilder::new()
            .layer(self.cors.layer())
            .layer(AnswerLayer(self.probes.clone()))
            .layer(AnswerLayer(self.page))
            .layer(LingeringCloseLayer)
            .layer(ValidateRequestHeaderLayer::custom(validator))
            .layer(tonic_web::GrpcWebLayer::new())
            .map_request(text_body::decode)
            .map_request(body_timeout::limit)
            .map_request(message_budget::limit)
            .layer(StatusLayer)
            .service(routes.prepare());
        BoxCloneSyncService::<_, Response<Body>, Infallible>::new(service)
    }
}

/// [`TcpListener::bind`] with a larger backlog.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Allows a restart while old connections are in TIME_WAIT. On Windows the option would let two programs share the port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(ACCEPT_BACKLOG)
}

#[derive(Clone)]
struct RequestValidator {
    cors: Cors,
    paths: RpcPaths,
    page: Page,
    probes: Probes,
}

impl RequestValidator {
    /// Refines the rejection of a request that is no gRPC call.
    fn reject(&self, path: &str, rejection: Response<()>) -> Response<Body> {
        let is_resource = self.probes.serves(path) || (self.page.is_enabled && page::has_file(path));
        let response = match rejection {
            _ if is_resource => request_filter::read_only_resource(),
            rejection if self.paths.contains(path) => rejection,
            _ => request_filter::not_found(),
        };
        response.map(|()| Body::empty())
    }
}

impl<B> ValidateRequest<B> for RequestValidator {
    type ResponseBody = Body;

    fn validate(&mut self, request: &mut Request<B>) -> Result<(), Response<Body>> {
        let method = request.method().clone();
        let filtered = request_filter::require_grpc_post(&method, request.headers_mut(), GRPC_AND_GRPC_WEB);
        let content_type = filtered.map_err(|rejection| self.reject(request.uri().path(), rejection))?;
        if self.cors.rejects(request.headers(), host_of(request)) {
            return Err(request_filter::forbidden().map(|()| Body::empty()));
        }
        ResponseMode::of(content_type, request.headers()).apply(request);
        Ok(())
    }
}

/// HTTP/2 names it in the pseudo-header `:authority`.
fn host_of<B>(request: &Request<B>) -> Option<&str> {
    let authority = request.uri().authority().map(Authority::as_str);
    authority.or_else(|| request.headers().get(header::HOST)?.to_str().ok())
}
