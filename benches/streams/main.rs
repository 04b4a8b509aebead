//! How much the service costs on top of its gRPC library: it and a bare tonic server stream the same frames in one run.
//!
//! `cargo bench --bench streams` runs everything in about three minutes. Arguments after `--` choose: `frames`, `paced`,
//! `provider`, `conversations` and `retrieval` name parts, and `--quick` makes a run of seconds that shows no more than that the benchmark works. Servers
//! are processes of their own, so that their memory and processor time can be told from those of the load.
//!
//! It reports and never judges: on a shared machine only the ratios of one run mean something.

mod conversations;
mod load;
mod paced;
mod paced_provider;
mod process;
mod provider;
mod quantile;
mod report;
mod retrieval;
mod server;

use std::{process::ExitCode, thread::available_parallelism, time::Duration};

use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient, chat_response::Content};
use tokio::runtime::Runtime;

use crate::{
    load::Target,
    process::ServerProcess,
    report::{Table, median},
    server::Role,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Its canned answer is among the longest, about a hundred chunks.
const QUESTION: &str = "What is the difference between eigenvalues and eigenvectors?";
/// Streams of the closed loop.
const STREAMS: usize = 64;
const LOG_LEVEL: &str = "warn";

/// How long and how often everything is measured.
struct Plan {
    /// Of one measurement.
    span: Duration,
    /// Measurements of each server in turn, whose median counts.
    rounds: usize,
    paced: paced::Plan,
    provider: provider::Plan,
    retrieval: retrieval::Plan,
}

impl Plan {
    const FULL: Self = Self {
        span: Duration::from_secs(5),
        rounds: 5,
        paced: paced::Plan { streams: 3_000, ramp: Duration::from_millis(1_500), rounds: 3 },
        provider: provider::Plan { streams: &[1, 16, 256], rounds: 5 },
        retrieval: retrieval::Plan { users: 50, memories: 200, callers: 16, span: Duration::from_secs(5) },
    };
    const QUICK: Self = Self {
        span: Duration::from_millis(300),
        rounds: 1,
        paced: paced::Plan { streams: 100, ramp: Duration::from_millis(200), rounds: 1 },
        provider: provider::Plan { streams: &[4], rounds: 1 },
        retrieval: retrieval::Plan { users: 2, memories: 20, callers: 4, span: Duration::from_millis(500) },
    };
}

fn main() -> Outcome<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [process::SERVE, role, rest @ ..] = arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        server::run(Role::parse(role)?, rest)?;
        return Ok(ExitCode::SUCCESS);
    }
    // `cargo test --all-targets` starts benchmarks as well, without this.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("nothing is measured without --bench, which `cargo bench` passes");
        return Ok(ExitCode::SUCCESS);
    }
    let (mut plan, mut parts) = (Plan::FULL, Vec::new());
    for argument in &arguments {
        match argument.as_str() {
            "--bench" => {}
            "--quick" => plan = Plan::QUICK,
            part @ ("frames" | "paced" | "provider" | "conversations" | "retrieval") => parts.push(part),
            other => {
                let known = "--quick, frames, paced, provider, conversations, retrieval";
                return Err(format!("{other:?} is none of {known}").into());
            }
        }
    }
    let wanted = |part| parts.is_empty() || parts.contains(&part);

    let runtime = Runtime::new()?;
    println!("{} cores, shared by the load and the server; logs at {LOG_LEVEL}", available_parallelism()?);
    if wanted("frames") || wanted("paced") {
        let service = ServerProcess::start(Role::Service, Duration::ZERO, &[], LOG_LEVEL)?;
        let turn = runtime.block_on(record(service.address()))?;
        if wanted("frames") {
            frames(&runtime, &plan, service, &turn)?;
        }
        if wanted("paced") {
            paced::run(&runtime, &plan.paced, &turn)?;
        }
    }
    if wanted("provider") {
        provider::run(&runtime, &plan.provider)?;
    }
    if wanted("conversations") {
        conversations::run(&runtime, &plan.provider)?;
    }
    if wanted("retrieval") {
        retrieval::run(&runtime, &plan.retrieval)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A turn without retrieval.
fn request() -> pb::ChatRequest {
    pb::ChatRequest {
        user_id: "user-0".to_owned(),
        input: Some(pb::chat_request::Input::Message(QUESTION.to_owned())),
        user_profile: Some(pb::UserProfile { language: "en".to_owned(), ..Default::default() }),
        use_document_context: Some(false),
        ..Default::default()
    }
}

/// The frames of one turn of the service, for the bare server to repeat.
async fn record(address: &str) -> Outcome<Vec<pb::ChatResponse>> {
    let mut client = AgentServiceClient::new(Target::connect(address).await?.channel(0));
    let mut stream = client.stream_chat(request()).await?.into_inner();
    let mut frames = Vec::new();
    while let Some(frame) = stream.message().await? {
        frames.push(frame);
    }
    if matches!(frames.last(), Some(pb::ChatResponse { content: Some(Content::FullText(_)), .. })) {
        Ok(frames)
    } else {
        Err("the turn to be repeated has no answer".into())
    }
}

/// Frames a second as fast as they can be read.
fn frames(runtime: &Runtime, plan: &Plan, service: ServerProcess, turn: &[pb::ChatResponse]) -> Outcome<()> {
    let logging = ServerProcess::start(Role::Service, Duration::ZERO, &[], "info")?;
    let bare = ServerProcess::start(Role::Bare, Duration::ZERO, turn, LOG_LEVEL)?;
    let servers = [service, bare, logging];
    let mut measured = [const { Vec::new() }; 3];
    runtime.block_on(async {
        let mut targets = Vec::new();
        for server in &servers {
            let target = Target::connect(server.address()).await?;
            load::saturate(&target, STREAMS, plan.span / 5, &request()).await?;
            targets.push(target);
        }
        for _ in 0..plan.rounds {
            for ((server, target), measured) in servers.iter().zip(&targets).zip(&mut measured) {
                let cpu = server.cpu_seconds();
                let done = load::saturate(target, STREAMS, plan.span, &request()).await?;
                if done.frames != done.turns * turn.len() {
                    return Err(format!("{} turns had {} frames", done.turns, done.frames).into());
                }
                let frames = done.frames as f64;
                let cpu_a_frame = (server.cpu_seconds() - cpu) * 1e6 / frames;
                measured.push((frames / done.elapsed.as_secs_f64(), cpu_a_frame));
            }
        }
        Outcome::Ok(())
    })?;

    println!(
        "\nUnpaced: {STREAMS} streams in a closed loop, turns of {} frames, {} rounds of {:?}",
        turn.len(),
        plan.rounds,
        plan.span
    );
    let [service, bare, logging] = &measured;
    let rate = |of: &[(f64, f64)]| median(of.iter().map(|(rate, _)| *rate));
    let cpu = |of: &[(f64, f64)]| median(of.iter().map(|(_, cpu)| *cpu));
    let mut table = Table::new();
    table.row("frames a second", rate(service), rate(bare));
    table.row("  of these, logs at info, discarded", rate(logging), rate(bare));
    table.row("server CPU a frame, µs", cpu(service), cpu(bare));
    // Each round is a pair of neighbours in time, so that what else the machine does weighs on both alike.
    let ratios = service.iter().zip(bare).map(|((service, _), (bare, _))| service / bare);
    println!("median of the ratios of the rounds: {:.2}", median(ratios));
    Ok(())
}
