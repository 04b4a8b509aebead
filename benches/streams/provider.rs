//! What the service adds to talking to a provider directly: a provider in a process of its own writes into each delta when it
//! sent it, and a client reads the deltas from it and through the service.

use std::time::{Duration, Instant};

use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient, chat_response::Content};
use futures_util::StreamExt as _;
use tokio::{runtime::Runtime, task::JoinSet, time::timeout};

use crate::{
    LOG_LEVEL, Outcome,
    load::Target,
    paced_provider::lateness,
    process::ServerProcess,
    report::{number, quantile},
    request,
    server::Role,
};

/// Time between two deltas.
pub const PACE: Duration = Duration::from_millis(20);
/// Deltas of an answer.
pub const DELTAS: usize = 100;
/// What a round may take beyond its own length before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many streams at once, and how often.
pub struct Plan {
    pub streams: &'static [usize],
    pub rounds: usize,
}

/// What the clients of one way saw, in milliseconds.
#[derive(Default)]
pub struct Seen {
    pub first_frames: Vec<f64>,
    pub first_tokens: Vec<f64>,
    pub lateness: Vec<f64>,
}

/// Measures both ways in turn and prints what the service adds.
pub fn run(runtime: &Runtime, plan: &Plan) -> Outcome<()> {
    let provider = ServerProcess::start(Role::Provider, PACE, &[], LOG_LEVEL)?;
    let service = ServerProcess::start_with(Role::Proxy, Duration::ZERO, &[], LOG_LEVEL, &[provider.address()])?;
    println!("\nThrough the service beside directly: {DELTAS} deltas, one every {PACE:?}, {} rounds", plan.rounds);
    println!("{:>8}  {:<28}{:>12}{:>12}{:>12}", "streams", "ms", "directly", "through", "added");
    for &streams in plan.streams {
        let (mut directly, mut through) = (Seen::default(), Seen::default());
        runtime.block_on(async {
            // The first round opens the connections.
            for round in 0..=plan.rounds {
                let (direct, proxied) = (
                    timeout(PATIENCE, direct_round(provider.address(), streams)).await??,
                    timeout(PATIENCE, proxied_round(service.address(), streams)).await??,
                );
                if round > 0 {
                    directly.add(direct);
                    through.add(proxied);
                }
            }
            Outcome::Ok(())
        })?;
        let mut row = |what, of: fn(&mut Seen) -> &mut Vec<f64>, share| {
            let (directly, through) = (quantile(of(&mut directly), share), quantile(of(&mut through), share));
            let added = number(through - directly);
            println!("{streams:>8}  {what:<28}{:>12}{:>12}{added:>12}", number(directly), number(through));
        };
        row("to the first token, p50", |seen| &mut seen.first_tokens, 0.5);
        row("to the first token, p99", |seen| &mut seen.first_tokens, 0.99);
        row("of a frame, p50", |seen| &mut seen.lateness, 0.5);
        row("of a frame, p99", |seen| &mut seen.lateness, 0.99);
    }
    Ok(())
}

impl Seen {
    pub fn add(&mut self, mut other: Self) {
        self.first_frames.append(&mut other.first_frames);
        self.first_tokens.append(&mut other.first_tokens);
        self.lateness.append(&mut other.lateness);
    }

    /// Notes a delta, which says when it was sent.
    fn delta(&mut self, asked: Instant, text: &str) -> Outcome<()> {
        if self.first_tokens.is_empty() {
            self.first_tokens.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        self.lateness.push(lateness(text).ok_or("a delta does not say when it was sent")?);
        Ok(())
    }
}

async fn gathered(mut streams: JoinSet<Outcome<Seen>>) -> Outcome<Seen> {
    let mut all = Seen::default();
    while let Some(seen) = streams.join_next().await {
        let seen = seen??;
        if seen.lateness.len() != DELTAS {
            return Err(format!("a stream had {} deltas", seen.lateness.len()).into());
        }
        all.add(seen);
    }
    Ok(all)
}

async fn direct_round(address: &str, streams: usize) -> Outcome<Seen> {
    // An error means that it was chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let call = client.post(format!("{address}/v1/chat/completions")).body("{}");
        tasks.spawn(async move {
            let (asked, mut seen) = (Instant::now(), Seen::default());
            let mut body = call.send().await?.bytes_stream();
            let mut bytes = Vec::new();
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece?);
                while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
                    let event: Vec<u8> = bytes.drain(..end + 2).collect();
                    let event = String::from_utf8(event)?;
                    if let Some(text) = event.split("\"content\":\"").nth(1).and_then(|rest| rest.split('"').next()) {
                        seen.delta(asked, text)?;
                    }
                }
            }
            Outcome::Ok(seen)
        });
    }
    gathered(tasks).await
}

/// Turns through the service, all at once, each of a user of its own.
pub async fn proxied_round(address: &str, streams: usize) -> Outcome<Seen> {
    let target = Target::connect(address).await?;
    let mut tasks = JoinSet::new();
    for number in 0..streams {
        let mut client = AgentServiceClient::new(target.channel(number));
        tasks.spawn(async move {
            let (asked, mut seen) = (Instant::now(), Seen::default());
            let asking = pb::ChatRequest { user_id: format!("user-{number}"), ..request() };
            let mut frames = client.stream_chat(asking).await?.into_inner();
            while let Some(frame) = frames.message().await? {
                if seen.first_frames.is_empty() {
                    seen.first_frames.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                if let Some(Content::Delta(text)) = frame.content {
                    seen.delta(asked, &text)?;
                }
            }
            Outcome::Ok(seen)
        });
    }
    gathered(tasks).await
}
