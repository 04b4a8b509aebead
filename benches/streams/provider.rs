//! The latency that the service adds to a provider: a client reads timestamped deltas directly and through the service.

use crate::{
    common::{BenchResult, DELTAS, LOG_LEVEL, PACE, STALL_TIMEOUT, milliseconds, request, without_retrieval},
    load::Target,
    paced_provider::lateness,
    process::ServerProcess,
    report::{number, quantile},
    server::ServerRole,
    table::Table,
};
use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient, chat_response::Content};
use futures_util::StreamExt as _;
use std::time::{Duration, Instant};
use tokio::{runtime::Runtime, task::JoinSet, time::timeout};

pub struct Plan {
    pub streams: &'static [usize],
    pub rounds: usize,
}

/// Latencies in milliseconds.
#[derive(Default)]
pub struct Latencies {
    pub first_frames: Vec<f64>,
    pub first_tokens: Vec<f64>,
    pub lateness: Vec<f64>,
}

pub fn run(runtime: &Runtime, plan: &Plan) -> BenchResult<()> {
    let provider = ServerProcess::start(ServerRole::Provider, PACE, &[], LOG_LEVEL)?;
    let service = ServerProcess::start_with(ServerRole::Proxy, Duration::ZERO, &[], LOG_LEVEL, &[provider.address()])?;
    let caption = format!("{DELTAS} deltas, one every {PACE:?}, {} rounds; milliseconds.", plan.rounds);
    let table =
        Table::new("streams/provider", caption, &["streams", "measured", "directly", "through the service", "added"]);
    for &streams in plan.streams {
        let (mut directly, mut through) = (Latencies::default(), Latencies::default());
        runtime.block_on(async {
            // The first round opens the connections.
            for round in 0..=plan.rounds {
                let (direct, proxied) = (
                    timeout(STALL_TIMEOUT, direct_round(provider.address(), streams)).await??,
                    timeout(STALL_TIMEOUT, proxied_round(service.address(), streams)).await??,
                );
                if round > 0 {
                    directly.add(direct);
                    through.add(proxied);
                }
            }
            BenchResult::Ok(())
        })?;
        let mut row = |what, of: fn(&mut Latencies) -> &mut Vec<f64>, share| {
            let (directly, through) = (quantile(of(&mut directly), share), quantile(of(&mut through), share));
            let numbers = [directly, through, through - directly].map(number);
            table.row([streams.to_string(), String::from(what)].into_iter().chain(numbers));
        };
        row("first token, p50", |latencies| &mut latencies.first_tokens, 0.5);
        row("first token, p99", |latencies| &mut latencies.first_tokens, 0.99);
        row("later frame, p50", |latencies| &mut latencies.lateness, 0.5);
        row("later frame, p99", |latencies| &mut latencies.lateness, 0.99);
    }
    Ok(())
}

impl Latencies {
    pub fn add(&mut self, mut other: Self) {
        self.first_frames.append(&mut other.first_frames);
        self.first_tokens.append(&mut other.first_tokens);
        self.lateness.append(&mut other.lateness);
    }

    fn add_delta(&mut self, started: Instant, text: &str) -> BenchResult<()> {
        if self.first_tokens.is_empty() {
            self.first_tokens.push(milliseconds(started.elapsed()));
        }
        self.lateness.push(lateness(text).ok_or("a delta does not say when it was sent")?);
        Ok(())
    }
}

async fn collect_latencies(mut streams: JoinSet<BenchResult<Latencies>>) -> BenchResult<Latencies> {
    let mut total = Latencies::default();
    while let Some(latencies) = streams.join_next().await {
        let latencies = latencies??;
        if latencies.lateness.len() != DELTAS {
            return Err(format!("a stream had {} deltas", latencies.lateness.len()).into());
        }
        total.add(latencies);
    }
    Ok(total)
}

async fn direct_round(address: &str, streams: usize) -> BenchResult<Latencies> {
    // Fails if it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let call = client.post(format!("{address}/v1/chat/completions")).body("{}");
        tasks.spawn(async move {
            let (started, mut latencies) = (Instant::now(), Latencies::default());
            let mut body = call.send().await?.bytes_stream();
            let mut bytes = Vec::new();
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece?);
                while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
                    let event: Vec<u8> = bytes.drain(..end + 2).collect();
                    let event = String::from_utf8(event)?;
                    if let Some(text) = event.split("\"content\":\"").nth(1).and_then(|rest| rest.split('"').next()) {
                        latencies.add_delta(started, text)?;
                    }
                }
            }
            BenchResult::Ok(latencies)
        });
    }
    collect_latencies(tasks).await
}

pub async fn proxied_round(address: &str, streams: usize) -> BenchResult<Latencies> {
    let target = Target::connect(address).await?;
    let mut tasks = JoinSet::new();
    for number in 0..streams {
        let mut client = AgentServiceClient::new(target.channel(number));
        tasks.spawn(async move {
            let (started, mut latencies) = (Instant::now(), Latencies::default());
            let request = pb::ChatRequest { user_id: format!("user-{number}"), ..request() };
            let mut frames = client.stream_chat(without_retrieval(request)).await?.into_inner();
            while let Some(frame) = frames.message().await? {
                if latencies.first_frames.is_empty() {
                    latencies.first_frames.push(milliseconds(started.elapsed()));
                }
                if let Some(Content::Delta(text)) = frame.content {
                    latencies.add_delta(started, &text)?;
                }
            }
            BenchResult::Ok(latencies)
        });
    }
    collect_latencies(tasks).await
}
