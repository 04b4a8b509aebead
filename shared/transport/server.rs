//! The local server: gRPC and gRPC-Web on one port, for a gateway, a browser and the command line.

mod cors;
mod lingering_close;
mod page;

use std::{io, net::SocketAddr, time::Duration};

use http::{Request, Response, StatusCode};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    server::NamedService,
    service::Routes,
    transport::{Identity, Server as TonicServer, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower_http::validate_request::{ValidateRequest, ValidateRequestHeaderLayer};

use crate::{
    config::{ServerConfig, TlsFiles},
    error::with_causes,
    proto::{
        DESCRIPTOR,
        agent_v1::{
            agent_service_server::AgentServiceServer, conversation_service_server::ConversationServiceServer,
            memory_service_server::MemoryServiceServer,
        },
    },
    service::{AgentApi, Apis, ConversationApi, MemoryApi},
    transport::{agent_service, conversation_service, memory_service, request_filter, status_layer::StatusLayer},
};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams of one connection. A gateway puts all its users on one, and hyper's default of 200 would make the rest wait.
const MAX_STREAMS: u32 = 10_000;
/// Streams of one connection that a client may have reset before we noticed. A gateway that loses many users at once is no
/// attacker; with hyper's default of 20 its connection would be closed.
const MAX_PENDING_RESETS: usize = 10_000;
/// What a client may send ahead on one connection: enough for large uploads, bounded for memory.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Connections that may wait to be accepted. Of more than these that come at once, as when the pages of many users connect anew,
/// the rest asks again after a second; the usual 128 are few.
const WAITING_CONNECTIONS: u32 = 4096;
/// How long streams that were told to end may take to write their last frame.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why the server can not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address can not be listened on.
    #[error("can not listen on {address}: {source}; set GRPC_PORT to a free port, or stop the program that holds it")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A TLS file can not be read.
    #[error("{variable} can not be read: {source}")]
    TlsFile {
        /// The variable that names the file.
        variable: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// An origin is no header value.
    #[error("ALLOWED_ORIGINS has an entry that can not be sent as a header")]
    Origin(#[from] http::header::InvalidHeaderValue),
    /// Reflection can not be built.
    #[error("reflection can not be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The TLS files hold no certificate with its key.
    #[error("TLS_CERT_FILE and TLS_KEY_FILE can not be used: {0}")]
    Tls(String),
    /// The transport failed.
    #[error("the transport failed: {}", with_causes(.0))]
    Transport(#[from] tonic::transport::Error),
}

/// A port that is listened on, and what each call to it passes on its way to a service and back: the limits of HTTP, TLS, CORS,
/// the web page, gRPC-Web and the statuses put right. It knows none of the services, so that a test can try it with one of its own.
pub struct Listener {
    server: TonicServer,
    socket: TcpListener,
    address: SocketAddr,
    origins: cors::AllowedOrigins,
    page: page::PageLayer,
}

impl Listener {
    /// Reads the TLS files and takes the address, so that what is wrong with them is known before anything else is started.
    ///
    /// # Errors
    /// A TLS file or an origin can not be used, or the address can not be listened on.
    pub async fn bind(config: &ServerConfig) -> Result<Self, ServerError> {
        let server = configured(config)?;
        let origins = cors::AllowedOrigins::from_config(config)?;
        let address = config.address();
        let bind = |source| ServerError::Bind { address, source };
        let socket = listen(address).map_err(bind)?;
        let address = socket.local_addr().map_err(bind)?;
        Ok(Self { server, socket, address, origins, page: page::PageLayer { is_on: config.web_page } })
    }

    /// The address that is listened on, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `routes` until `stop` is cancelled; then accepts nothing new and waits for the open streams, however long.
    ///
    /// # Errors
    /// The transport fails.
    pub async fn serve(self, routes: Routes, stop: CancellationToken) -> Result<(), ServerError> {
        // The builder's own setting counts only where the builder listens.
        let incoming = TcpIncoming::from(self.socket).with_nodelay(Some(true));
        let origins = self.origins;
        self.server
            .layer(origins.layer())
            .layer(self.page)
            .layer(lingering_close::LingeringCloseLayer)
            .layer(ValidateRequestHeaderLayer::custom(RequestValidator { origins }))
            .layer(tonic_web::GrpcWebLayer::new())
            .layer(StatusLayer)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await?;
        Ok(())
    }
}

/// Listens as [`TcpListener::bind`] does, with room for more connections that were not accepted yet.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port can be taken again at once after a restart. On Windows it would let two programs take it.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_CONNECTIONS)
}

/// A server that listens but does not answer yet.
pub struct Server {
    listener: Listener,
    config: ServerConfig,
    apis: Apis,
}

impl Server {
    /// Takes the address of the configuration, see [`Listener::bind`].
    ///
    /// # Errors
    /// A TLS file or an origin can not be used, or the address can not be listened on.
    pub async fn bind(config: &ServerConfig, apis: Apis) -> Result<Self, ServerError> {
        Ok(Self { listener: Listener::bind(config).await?, config: config.clone(), apis })
    }

    /// The address that is listened on, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Serves until `stop` is cancelled; then accepts nothing new, lets streams finish within the configured grace and ends
    /// the rest with an error frame. `ready` tells whether the database can be used.
    ///
    /// # Errors
    /// The server can not be set up, or its transport fails.
    pub async fn serve(self, mut ready: watch::Receiver<bool>, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { listener, config, apis } = self;
        let drain = apis.drain.clone();
        let (reporter, health) = tonic_health::server::health_reporter();
        report(&reporter, false).await;

        let mut routes = Routes::builder();
        routes
            .add_service(agent_service(apis.agent))
            .add_service(memory_service(apis.memory))
            .add_service(conversation_service(apis.conversation));
        let mut files = vec![DESCRIPTOR, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET];
        if config.health {
            routes.add_service(health);
            files.push(tonic_health::pb::FILE_DESCRIPTOR_SET);
        }
        if config.reflection {
            let builder = || {
                files.iter().fold(tonic_reflection::server::Builder::configure(), |builder, file| {
                    builder.register_encoded_file_descriptor_set(file)
                })
            };
            routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?);
        }

        let serving = listener.serve(routes.routes(), stop.clone());
        let health = async {
            loop {
                // A database that comes up while the server stops makes it no better a choice.
                let is_ready = *ready.borrow_and_update() && !stop.is_cancelled();
                report(&reporter, is_ready).await;
                if ready.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        let deadline = async {
            stop.cancelled().await;
            report(&reporter, false).await;
            let grace_over = Instant::now() + config.shutdown_grace;
            tokio::select! {
                () = drain.wait_until_idle() => {}
                () = sleep_until(grace_over) => {
                    drain.cancel_calls();
                    // Whoever does not read its last frame by then has had its chance.
                    let _ = timeout(LAST_WORDS, drain.wait_until_idle()).await;
                }
            }
        };
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            result = &mut serving => return result,
            () = deadline => {}
            () = health => {}
        }
        // Frames that were made are still on their way to the sockets, and an idle watcher of the health never leaves.
        match timeout(LAST_WORDS, serving).await {
            Ok(result) => result,
            Err(_) => Ok(()),
        }
    }
}

/// The HTTP server with its limits and, where it is configured, its certificate.
fn configured(config: &ServerConfig) -> Result<TonicServer, ServerError> {
    let server = TonicServer::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW);
    match &config.tls {
        Some(files) => {
            let tls = ServerTlsConfig::new().identity(identity(files)?);
            server.tls_config(tls).map_err(|error| ServerError::Tls(with_causes(&error)))
        }
        None => Ok(server),
    }
}

/// Lets calls of gRPC and gRPC-Web pass, but for those of pages that must not call.
#[derive(Clone)]
struct RequestValidator {
    origins: cors::AllowedOrigins,
}

impl<B> ValidateRequest<B> for RequestValidator {
    type ResponseBody = Body;

    fn validate(&mut self, request: &mut Request<B>) -> Result<(), Response<Body>> {
        let method = request.method().clone();
        let admitted =
            request_filter::require_grpc_post(&method, request.headers_mut(), request_filter::GRPC_AND_GRPC_WEB);
        admitted.map(drop).map_err(|refused| refused.map(|()| Body::empty()))?;
        if self.origins.rejects(request.headers()) {
            let mut refused = Response::new(Body::empty());
            *refused.status_mut() = StatusCode::FORBIDDEN;
            return Err(refused);
        }
        Ok(())
    }
}

/// Tells the health of each service, and of the server as a whole (the empty name).
async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    let names = [
        "",
        AgentServiceServer::<AgentApi>::NAME,
        ConversationServiceServer::<ConversationApi>::NAME,
        MemoryServiceServer::<MemoryApi>::NAME,
    ];
    for service in names {
        reporter.set_service_status(service, status).await;
    }
}

fn identity(files: &TlsFiles) -> Result<Identity, ServerError> {
    let read = |variable, path: &std::path::Path| {
        std::fs::read(path).map_err(|source| ServerError::TlsFile { variable, source })
    };
    Ok(Identity::from_pem(read("TLS_CERT_FILE", &files.certificate)?, read("TLS_KEY_FILE", &files.key)?))
}
