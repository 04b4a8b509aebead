//! The listening socket and the layers that each request passes: HTTP limits, TLS, CORS, web page, gRPC-Web, status mapping.
//! Independent of our services, so that tests can put others behind it.

use std::{io, net::SocketAddr, time::Duration};

use http::{Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    service::Routes,
    transport::{Identity, Server as TonicServer, ServerTlsConfig, server::TcpIncoming},
};
use tower_http::validate_request::{ValidateRequest, ValidateRequestHeaderLayer};

use super::{cors::AllowedOrigins, error::ServerError, lingering_close::LingeringCloseLayer, page::PageLayer};
use crate::{
    config::{ServerConfig, TlsFiles},
    error::with_causes,
    transport::{request_filter, status_layer::StatusLayer},
};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Per connection. A gateway multiplexes all its users over one connection; hyper's default of 200 would queue the others
/// (head-of-line blocking).
const MAX_STREAMS: u32 = 10_000;
/// Per connection. A gateway that loses many users resets many streams at once; hyper's default of 20, meant against rapid-reset
/// attacks, would close its connection.
const MAX_PENDING_RESETS: usize = 10_000;
/// HTTP/2 flow control: enough for large uploads, and a bound on the memory of a connection (backpressure).
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// When many clients reconnect at once, the usual backlog of 128 overflows, and the rest retries after a second.
const ACCEPT_BACKLOG: u32 = 4096;

/// A bound port with all layers between HTTP and a gRPC service. It knows no service of ours, so that tests can bring their own.
pub struct Listener {
    server: TonicServer,
    socket: TcpListener,
    address: SocketAddr,
    origins: AllowedOrigins,
    page: PageLayer,
}

impl Listener {
    /// Reads the TLS files and binds the address, so that configuration errors show before anything else is started.
    pub async fn bind(config: &ServerConfig) -> Result<Self, ServerError> {
        let server = http_server(config)?;
        let origins = AllowedOrigins::from_config(config)?;
        let address = config.address();
        let bind_error = |source| ServerError::Bind { address, source };
        let socket = listen(address).map_err(bind_error)?;
        let address = socket.local_addr().map_err(bind_error)?;
        Ok(Self { server, socket, address, origins, page: PageLayer { is_enabled: config.web_page } })
    }

    /// With the real port if the configured one is 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `routes`. Once `stop` is cancelled, accepts no more connections and waits for open streams without a limit.
    pub async fn serve(self, routes: Routes, stop: CancellationToken) -> Result<(), ServerError> {
        // Set here because the builder's own setting applies only to sockets that it opens.
        let incoming = TcpIncoming::from(self.socket).with_nodelay(Some(true));
        let origins = self.origins;
        self.server
            .layer(origins.layer())
            .layer(self.page)
            .layer(LingeringCloseLayer)
            .layer(ValidateRequestHeaderLayer::custom(RequestValidator { origins }))
            .layer(tonic_web::GrpcWebLayer::new())
            .layer(StatusLayer)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await?;
        Ok(())
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

fn http_server(config: &ServerConfig) -> Result<TonicServer, ServerError> {
    let server = TonicServer::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES);
    match &config.tls {
        Some(files) => {
            let tls = ServerTlsConfig::new().identity(read_identity(files)?);
            server.tls_config(tls).map_err(|error| ServerError::Tls(with_causes(&error)))
        }
        None => Ok(server),
    }
}

fn read_identity(files: &TlsFiles) -> Result<Identity, ServerError> {
    let read = |variable, path: &std::path::Path| {
        std::fs::read(path).map_err(|source| ServerError::TlsFile { variable, source })
    };
    Ok(Identity::from_pem(read("TLS_CERT_FILE", &files.certificate)?, read("TLS_KEY_FILE", &files.key)?))
}

#[derive(Clone)]
struct RequestValidator {
    origins: AllowedOrigins,
}

impl<B> ValidateRequest<B> for RequestValidator {
    type ResponseBody = Body;

    fn validate(&mut self, request: &mut Request<B>) -> Result<(), Response<Body>> {
        let method = request.method().clone();
        request_filter::require_grpc_post(&method, request.headers_mut(), request_filter::GRPC_AND_GRPC_WEB)
            .map_err(|rejection| rejection.map(|()| Body::empty()))?;
        if self.origins.rejects(request.headers()) {
            let mut rejection = Response::new(Body::empty());
            *rejection.status_mut() = StatusCode::FORBIDDEN;
            return Err(rejection);
        }
        Ok(())
    }
}
