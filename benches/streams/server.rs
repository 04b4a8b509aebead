//! The servers of the child processes: the service, bare tonic, or a provider.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io::{Read as _, Write as _},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use agent_service::{
    composition::App,
    config::Config,
    postgres::Database,
    proto::agent_v1::{self as pb, chat_response::Content},
    telemetry,
    transport::server::Server,
};
use async_stream::stream;
use futures_util::{Stream, future::BoxFuture};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService},
    transport::server::TcpIncoming,
};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::{
    common::{BenchResult, DELTAS},
    paced_provider,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// The service without a database.
    Service,
    /// The service with conversations in its embedded Postgres.
    Persistent,
    /// The service with its embedded Postgres.
    Retrieval,
    /// Tonic alone.
    Bare,
    Provider,
    /// The service in front of the provider, without a database.
    Proxy,
    /// The service in front of the provider, with conversations in its embedded Postgres or in `CONVERSATIONS`.
    PersistentProxy,
    /// The service with its defaults, which stores turns and learns from them, in a given data directory.
    Defaults,
    /// As `Defaults`, with the default quotas.
    Limited,
}

impl ServerRole {
    const ALL: [Self; 9] = [
        Self::Service,
        Self::Persistent,
        Self::Retrieval,
        Self::Bare,
        Self::Provider,
        Self::Proxy,
        Self::PersistentProxy,
        Self::Defaults,
        Self::Limited,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Persistent => "persistent",
            Self::Retrieval => "retrieval",
            Self::Bare => "bare",
            Self::Provider => "provider",
            Self::Proxy => "proxy",
            Self::PersistentProxy => "persistent-proxy",
            Self::Defaults => "defaults",
            Self::Limited => "limited",
        }
    }

    fn has_database(self) -> bool {
        matches!(self, Self::Persistent | Self::Retrieval | Self::PersistentProxy) || self.has_defaults()
    }

    fn has_defaults(self) -> bool {
        matches!(self, Self::Defaults | Self::Limited)
    }

    fn persists(self) -> bool {
        matches!(self, Self::Persistent | Self::PersistentProxy)
    }

    pub fn parse(name: &str) -> BenchResult<Self> {
        Ok(Self::ALL.into_iter().find(|role| role.name() == name).ok_or("no such server")?)
    }
}

/// Runs a server until its input ends. Prints its URL once it accepts calls.
pub fn run(role: ServerRole, arguments: &[&str]) -> BenchResult<()> {
    let pace = Duration::from_millis(arguments.first().ok_or("the pace is missing")?.parse()?);
    let turn = read_turn()?;
    telemetry::init(None);
    let stop = CancellationToken::new();
    let input_ended = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        input_ended.cancel();
    });
    // Dropped after the runtime, whose shutdown waits for an unpacking Postgres.
    let data = tempfile::tempdir()?;
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        match role {
            ServerRole::Bare => serve_bare(turn, pace, stop).await,
            ServerRole::Provider => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                announce(listener.local_addr()?)?;
                tokio::select! {
                    result = paced_provider::serve(listener, pace, DELTAS) => result,
                    () = stop.cancelled() => Ok(()),
                }
            }
            ServerRole::Defaults | ServerRole::Limited => {
                serve(role, pace, None, Path::new(arguments.get(1).ok_or("the data directory is missing")?), stop).await
            }
            ServerRole::Service
            | ServerRole::Persistent
            | ServerRole::Retrieval
            | ServerRole::Proxy
            | ServerRole::PersistentProxy => serve(role, pace, arguments.get(1).copied(), data.path(), stop).await,
        }
    })
}

/// Reads the frames that the bare server repeats from the start of the input.
fn read_turn() -> BenchResult<Vec<pb::ChatResponse>> {
    let mut input = std::io::stdin().lock();
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(length))?];
    input.read_exact(&mut bytes)?;
    let (mut rest, mut frames) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        frames.push(pb::ChatResponse::decode_length_delimited(&mut rest)?);
    }
    Ok(frames)
}

fn announce(address: std::net::SocketAddr) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "http://{address}")?;
    out.flush()
}

async fn serve(
    role: ServerRole,
    pace: Duration,
    provider: Option<&str>,
    data: &Path,
    stop: CancellationToken,
) -> BenchResult<()> {
    let config = Config::read(&|name| {
        Some(match name {
            "LLM_PROVIDER" if provider.is_some() => "compatible".to_owned(),
            "LLM_API_BASE_URL" => format!("{}/v1", provider?),
            "LLM_MODEL_NAME" => "model".to_owned(),
            "DEMO_MODE" if provider.is_some() => "off".to_owned(),
            "GRPC_PORT" | "DEMO_THINKING_DELAY_MS" | "SHUTDOWN_GRACE_SECONDS" => "0".to_owned(),
            "DEMO_MODE" => "on".to_owned(),
            "DEMO_CHUNK_DELAY_MS" => pace.as_millis().to_string(),
            "EMBEDDING_PROVIDER" => "hashed".to_owned(),
            // Unreachable: without retrieval a turn must not need a database.
            "DATABASE_URL" if !role.has_database() => "postgres://nobody@127.0.0.1:1/none".to_owned(),
            "CONVERSATIONS" if role.persists() => std::env::var(name).unwrap_or_else(|_| "postgres".to_owned()),
            "CONVERSATIONS" if role.has_defaults() => return None,
            "RATE_LIMITS" if role == ServerRole::Limited => return None,
            "CONVERSATIONS" | "RATE_LIMITS" => "off".to_owned(),
            // Many streams start at once.
            "ADMISSION_TIMEOUT_MS" if !role.has_defaults() => "20000".to_owned(),
            // Streams of clients that are gone would count in the memory of those that are open.
            "RESUME_GRACE_SECONDS" if role == ServerRole::Persistent => "0".to_owned(),
            "MAX_CONCURRENT_STREAMS" if !role.has_defaults() => "100000".to_owned(),
            "AGENT_DATA_DIR" => data.to_str()?.to_owned(),
            _ => return None,
        })
    })?;
    let database = Database::from_config(&config.stores.database)?;
    let app = App::from_config(&config, database.pools())?;
    let server = Server::bind(&config.server, app.apis).await?;
    let address = server.address();
    let (ready, is_ready) = watch::channel(false);
    let mut can_begin = is_ready.clone();
    let announcing = async {
        if role.has_database() {
            can_begin.wait_for(|ready| *ready).await?;
        }
        announce(address)?;
        std::future::pending().await
    };
    let worker = app.extraction_worker.filter(|_| role.has_defaults());
    let (learning_ready, learning_stop) = (is_ready.clone(), stop.clone());
    let learning = async {
        if let Some(worker) = worker {
            worker.run(learning_ready, learning_stop).await;
        }
        std::future::pending().await
    };
    let keeping = async {
        if role.has_database() {
            Ok(database.supervise(&ready, Arc::new(|_| {})).await?)
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        result = server.serve(is_ready, stop) => Ok(result?),
        result = announcing => result,
        result = keeping => result,
        result = learning => result,
    }
}

/// Repeats the same frames for every call. Written by hand, because the generated service has our codec.
#[derive(Clone)]
struct BareService {
    turn: Arc<[pb::ChatResponse]>,
    pace: Duration,
}

type BareFrames = Pin<Box<dyn Stream<Item = Result<pb::ChatResponse, Status>> + Send>>;

impl NamedService for BareService {
    const NAME: &'static str = "agent.v1.AgentService";
}

impl Service<http::Request<Body>> for BareService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let chat = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).server_streaming(chat, request).await) })
    }
}

impl ServerStreamingService<pb::ChatRequest> for BareService {
    type Response = pb::ChatResponse;
    type ResponseStream = BareFrames;
    type Future = Ready<Result<Response<BareFrames>, Status>>;

    fn call(&mut self, _request: Request<pb::ChatRequest>) -> Self::Future {
        let (turn, pace) = (self.turn.clone(), self.pace);
        let frames: BareFrames = Box::pin(stream! {
            let mut due = Instant::now();
            for frame in turn.iter() {
                if !pace.is_zero() && matches!(frame.content, Some(Content::Delta(_))) {
                    sleep_until(due).await;
                    due += pace;
                }
                yield Ok(frame.clone());
            }
        });
        ready(Ok(Response::new(frames)))
    }
}

async fn serve_bare(turn: Vec<pb::ChatResponse>, pace: Duration, stop: CancellationToken) -> BenchResult<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(listener.local_addr()?)?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    // The HTTP/2 settings of the service, without its layers.
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(10_000)
        .initial_connection_window_size(4 * 1024 * 1024)
        .initial_stream_window_size(1024 * 1024)
        .add_service(BareService { turn: turn.into(), pace })
        .serve_with_incoming(incoming);
    tokio::select! {
        result = serving => Ok(result?),
        () = stop.cancelled() => Ok(()),
    }
}
