//! The load generator: many streams over a few connections, as behind a gateway.

use std::time::{Duration, Instant};

use agent_service::proto::agent_v1::ChatRequest;
use bytes::Buf as _;
use futures_util::future::try_join_all;
use http::uri::PathAndQuery;
use tokio::task::JoinSet;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder},
    transport::{Channel, Endpoint},
};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::common::{BenchResult, without_retrieval};

const CONNECTIONS: usize = 8;
/// Large enough that flow control never throttles a server.
const WINDOW: u32 = 4 * 1024 * 1024;

pub struct Target {
    channels: Vec<Channel>,
    recalls: bool,
}

impl Target {
    pub async fn connect(address: &str) -> BenchResult<Self> {
        let endpoint = Endpoint::from_shared(address.to_owned())?
            .tcp_nodelay(true)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW);
        let channels = try_join_all((0..CONNECTIONS).map(|_| endpoint.connect())).await?;
        Ok(Self { channels, recalls: false })
    }

    /// Turns retrieve memories.
    pub fn with_retrieval(self) -> Self {
        Self { recalls: true, ..self }
    }

    pub fn channel(&self, number: usize) -> Channel {
        self.channels[number % CONNECTIONS].clone()
    }

    pub fn caller(&self, number: usize) -> LoadClient {
        LoadClient { grpc: Grpc::new(self.channel(number)), recalls: self.recalls }
    }
}

pub struct LoadClient {
    grpc: Grpc<Channel>,
    recalls: bool,
}

impl LoadClient {
    pub async fn ask(&mut self, request: ChatRequest) -> BenchResult<Streaming<()>> {
        let path = PathAndQuery::from_static("/agent.v1.AgentService/StreamChat");
        self.grpc.ready().await?;
        let request = if self.recalls { Request::new(request) } else { without_retrieval(request) };
        Ok(self.grpc.server_streaming(request, path, DiscardingCodec).await?.into_inner())
    }
}

/// Discards messages without decoding them: the cost of a client is not measured.
struct DiscardingCodec;

impl Codec for DiscardingCodec {
    type Encode = ChatRequest;
    type Decode = ();
    type Encoder = ProstEncoder<ChatRequest>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<ChatRequest, ()>::default().encoder()
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for DiscardingCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        message.advance(message.remaining());
        Ok(Some(()))
    }
}

#[derive(Debug, Default)]
pub struct LoadReport {
    pub turns: usize,
    pub frames: usize,
    /// Until the end of the last turn.
    pub elapsed: Duration,
    /// Seconds from the call to the first frame, one for each turn.
    pub first_frames: Vec<f64>,
    /// Seconds from the call to the end, one for each turn.
    pub ends: Vec<f64>,
}

/// A closed loop: each of `callers` starts a turn as soon as its last one ends, for about `span`.
pub async fn saturate(
    target: &Target,
    callers: usize,
    span: Duration,
    request: &ChatRequest,
) -> BenchResult<LoadReport> {
    let requests = (0..callers).map(|_| request.clone());
    saturate_with(target, requests, span).await
}

/// A closed loop with one caller a request.
pub async fn saturate_with(
    target: &Target,
    requests: impl IntoIterator<Item = ChatRequest>,
    span: Duration,
) -> BenchResult<LoadReport> {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for (number, request) in requests.into_iter().enumerate() {
        let mut caller = target.caller(number);
        callers.spawn(async move {
            let mut report = LoadReport::default();
            while began.elapsed() < span {
                let started = Instant::now();
                let mut frames = caller.ask(request.clone()).await?;
                let mut first = None;
                while frames.message().await?.is_some() {
                    first.get_or_insert_with(|| started.elapsed());
                    report.frames += 1;
                }
                report.turns += 1;
                report.first_frames.extend(first.map(|first| first.as_secs_f64()));
                report.ends.push(started.elapsed().as_secs_f64());
            }
            BenchResult::Ok(report)
        });
    }
    let mut total = LoadReport::default();
    while let Some(report) = callers.join_next().await {
        let report = report??;
        total.turns += report.turns;
        total.frames += report.frames;
        total.first_frames.extend(report.first_frames);
        total.ends.extend(report.ends);
    }
    total.elapsed = began.elapsed();
    Ok(total)
}
