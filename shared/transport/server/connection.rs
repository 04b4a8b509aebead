//! One connection: TLS handshake, HTTP/1.1 or HTTP/2, and its graceful end.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use super::{
    message_budget::MessageBudget,
    preface::PrefaceWatch,
    stalled::{StreamExecutor, WatchedBody, WriteTimeout},
    tls::TlsCertificate,
};
use crate::{
    service::HalfClose,
    transport::connection_slot::{ConnectionGuard, ConnectionSlot},
};

pub(super) type HttpService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// For TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the first head of HTTP/1.1, or the first frame of HTTP/2.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Per connection. A gateway multiplexes all its users over one connection; hyper's default of 200 would queue the others
/// (head-of-line blocking).
const MAX_STREAMS: u32 = 10_000;
/// Per connection. A gateway that loses many users resets many streams at once; hyper's default of 20, meant against rapid-reset
/// attacks, would close its connection. The same bound for streams that the server has to reset; hyper's default is 1,024 in the
/// whole life of a connection.
const MAX_RESETS: usize = 10_000;
/// HTTP/2 flow control (backpressure): what a client may send before a method reads it. `message_budget` bounds what is read.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Response bytes that wait for a client that reads slowly: of a stream over HTTP/2, and of a connection over HTTP/1.1, where it
/// also bounds the head of a request. hyper's default of 400 KiB each would hold hundreds of megabytes for a thousand streams.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Shared by all connections of a listener.
pub(super) struct ConnectionContext {
    pub(super) service: HttpService,
    pub(super) tls: Option<Arc<TlsCertificate>>,
    /// How long an HTTP/1.1 connection may wait for its next request.
    pub(super) keepalive: Duration,
    /// After which a response that cannot be sent ends.
    pub(super) stall_timeout: Duration,
    /// Ends idle connections, and busy ones after their last response.
    pub(super) stop: CancellationToken,
}

/// Returns when the connection is closed. Its errors are those of the client or the network.
pub(super) async fn serve(stream: TcpStream, guard: ConnectionGuard, context: Arc<ConnectionContext>) {
    // Without it, a small frame may wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let slot = guard.0.clone();
    tokio::select! {
        () = Box::pin(serve_stream(stream, slot.clone(), &context)) => {}
        () = slot.closing() => tracing::debug!("an unauthenticated connection was closed for newer ones"),
    }
}

async fn serve_stream(stream: TcpStream, slot: ConnectionSlot, context: &ConnectionContext) {
    let state = Arc::new(ConnectionState::new(slot));
    let socket = Socket { stream, state: state.clone() };
    let Some(tls) = &context.tls else { return Box::pin(serve_http(socket, context, &state)).await };
    let handshake = TlsAcceptor::from(tls.current()).accept(socket);
    match timeout(HANDSHAKE_TIMEOUT, Box::pin(handshake)).await {
        Ok(Ok(encrypted)) => Box::pin(serve_http(encrypted, context, &state)).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn serve_http(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    context: &ConnectionContext,
    state: &Arc<ConnectionState>,
) {
    let request_state = state.clone();
    let service = context.service.clone().map_request(move |mut request: Request<Incoming>| {
        request_state.has_begun.store(true, Ordering::Relaxed);
        let extensions = request.extensions_mut();
        extensions.insert(request_state.slot.clone());
        extensions.insert(request_state.budget.clone());
        if request.version() < Version::HTTP_2 {
            request_state.is_http1.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(request_state.half_close.clone());
        }
        request.map(Body::new)
    });
    let service = service.map_response(|response: Response<Body>| response.map(WatchedBody::new));
    let builder = http_builder(context);
    let io = PrefaceWatch::new(WriteTimeout::new(io, context.stall_timeout), state.has_begun.clone());
    let connection = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let mut is_stopping = false;
    // Until then, hyper-util waits without a limit for the preface, and HTTP/1.1 as long as for any next request. Afterwards
    // HTTP/1.1 has a timeout of its own and HTTP/2 has pings.
    let mut first_request_timeout = std::pin::pin!(sleep(FIRST_REQUEST_TIMEOUT).fuse());
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection failed");
                }
                return;
            }
            () = context.stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut first_request_timeout => {
                if !state.has_begun.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

fn http_builder(context: &ConnectionContext) -> Builder<StreamExecutor> {
    let mut builder = Builder::new(StreamExecutor { timeout: context.stall_timeout });
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper reads the next head as soon as a response is sent, so this is also the time that a connection may be idle.
        .header_read_timeout(context.keepalive)
        .max_buf_size(SEND_BUFFER_BYTES)
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES);
    builder
}

struct ConnectionState {
    /// With a request or, in HTTP/2, with the client's first frame.
    has_begun: Arc<AtomicBool>,
    is_http1: AtomicBool,
    half_close: HalfClose,
    slot: ConnectionSlot,
    budget: MessageBudget,
}

impl ConnectionState {
    fn new(slot: ConnectionSlot) -> Self {
        let budget = MessageBudget::new(slot.clone());
        Self {
            has_begun: Arc::default(),
            is_http1: AtomicBool::default(),
            half_close: HalfClose::default(),
            slot,
            budget,
        }
    }
}

/// A TCP stream that notices when an HTTP/1.1 client closes its sending side during a response, which hyper does not read then.
struct Socket {
    stream: TcpStream,
    state: Arc<ConnectionState>,
}

impl Socket {
    /// hyper flushes each time that it is polled. In HTTP/1.1 it reads nothing during a response, so that the waker of the
    /// reader is free. A client that has sent a further request already is not watched.
    fn watch_for_half_close(&self, context: &mut Context<'_>) {
        let (half_close, is_http1) = (&self.state.half_close, &self.state.is_http1);
        if !is_http1.load(Ordering::Relaxed) || half_close.is_closed() {
            return;
        }
        if self.stream.poll_read_ready(context).is_ready()
            && let Some(Ok(ready)) = self.stream.ready(Interest::READABLE).now_or_never()
            && ready.is_read_closed()
        {
            half_close.set_closed();
            // The body of the response has been polled before.
            context.waker().wake_by_ref();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch_for_half_close(context);
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
