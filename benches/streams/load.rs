//! The load: many streams over a few connections, as a gateway makes them.

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

use crate::Outcome;

const CONNECTIONS: usize = 8;
/// What a server may send ahead, so that the load never holds it up.
const WINDOW: u32 = 4 * 1024 * 1024;

/// A server under load.
pub struct Target {
    channels: Vec<Channel>,
}

impl Target {
    /// Connects.
    pub async fn connect(address: &str) -> Outcome<Self> {
        let endpoint = Endpoint::from_shared(address.to_owned())?
            .tcp_nodelay(true)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW);
        Ok(Self { channels: try_join_all((0..CONNECTIONS).map(|_| endpoint.connect())).await? })
    }

    /// One of the connections.
    pub fn channel(&self, number: usize) -> Channel {
        self.channels[number % CONNECTIONS].clone()
    }

    /// A caller on one of the connections.
    pub fn caller(&self, number: usize) -> Caller {
        Caller { grpc: Grpc::new(self.channel(number)) }
    }
}

/// Asks one question after the other.
pub struct Caller {
    grpc: Grpc<Channel>,
}

impl Caller {
    /// Begins a turn.
    pub async fn ask(&mut self, request: ChatRequest) -> Outcome<Streaming<()>> {
        let path = PathAndQuery::from_static("/agent.v1.AgentService/StreamChat");
        self.grpc.ready().await?;
        Ok(self.grpc.server_streaming(Request::new(request), path, Uninterested).await?.into_inner())
    }
}

/// Counts messages without reading them: what a client does with frames is not measured.
struct Uninterested;

impl Codec for Uninterested {
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

impl Decoder for Uninterested {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        message.advance(message.remaining());
        Ok(Some(()))
    }
}

/// What a closed loop did.
#[derive(Debug, Default)]
pub struct Done {
    pub turns: usize,
    pub frames: usize,
    /// Until the last turn had ended.
    pub elapsed: Duration,
    /// Of each turn, in seconds, to its first frame and to its end.
    pub first_frames: Vec<f64>,
    pub ends: Vec<f64>,
}

/// Callers that begin a turn as soon as their last one has ended, each about `span` long.
pub async fn saturate(target: &Target, callers: usize, span: Duration, request: &ChatRequest) -> Outcome<Done> {
    let requests = (0..callers).map(|_| request.clone());
    saturate_with(target, requests, span).await
}

/// A caller for each request, which makes it again and again for about `span`.
pub async fn saturate_with(
    target: &Target,
    requests: impl IntoIterator<Item = ChatRequest>,
    span: Duration,
) -> Outcome<Done> {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for (number, request) in requests.into_iter().enumerate() {
        let mut caller = target.caller(number);
        callers.spawn(async move {
            let mut done = Done::default();
            while began.elapsed() < span {
                let asked = Instant::now();
                let mut frames = caller.ask(request.clone()).await?;
                let mut first = None;
                while frames.message().await?.is_some() {
                    first.get_or_insert_with(|| asked.elapsed());
                    done.frames += 1;
                }
                done.turns += 1;
                done.first_frames.extend(first.map(|first| first.as_secs_f64()));
                done.ends.push(asked.elapsed().as_secs_f64());
            }
            Outcome::Ok(done)
        });
    }
    let mut all = Done::default();
    while let Some(done) = callers.join_next().await {
        let done = done??;
        all.turns += done.turns;
        all.frames += done.frames;
        all.first_frames.extend(done.first_frames);
        all.ends.extend(done.ends);
    }
    all.elapsed = began.elapsed();
    Ok(all)
}
