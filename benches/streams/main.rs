//! The overhead of the service over its gRPC library: it and a bare tonic server stream the same frames in one run.
//!
//! `cargo bench --bench streams` runs everything but `soak` and `hostile` in about ten minutes. Arguments after `--` select parts
//! (`frames`, `memory`, `paced`, `provider`, `conversations`, `kept-turns`, `scale`, `retrieval`, `soak`, `hostile`); `--quick`
//! runs all for seconds and shows only that the benchmark works. Servers are processes of their own, so that their memory and CPU time are measured
//! apart from the load.
//!
//! It has no thresholds: on a shared machine only the ratios within one run are meaningful.

#![expect(clippy::large_futures, reason = "only the server holds many futures")]

use crate::{
    arguments::Arguments,
    common::{BenchResult, LOG_LEVEL, request, without_retrieval},
    load::Target,
    process::ServerProcess,
    report::{Comparison, median},
    server::ServerRole,
};
use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient, chat_response::Content};
use std::{process::ExitCode, thread::available_parallelism, time::Duration};
use tokio::runtime::Runtime;

#[path = "../support/arguments.rs"]
mod arguments;
mod common;
mod conversations;

mod hostile;

mod kept_turns;

mod load;

mod paced;

#[path = "../support/measurements.rs"]
mod measurements;

#[path = "../support/paced_provider.rs"]
mod paced_provider;

mod process;

mod provider;

#[path = "../support/quantile.rs"]
mod quantile;

mod report;

mod retrieval;

mod scale;

mod server;

mod soak;

#[path = "../support/table.rs"]
mod table;

const STREAMS: usize = 64;

struct Plan {
    span: Duration,
    /// Measurements of each server in turn; the median is reported.
    rounds: usize,
    memory: paced::Plan,
    paced: paced::Plan,
    provider: provider::Plan,
    retrieval: retrieval::Plan,
    kept_turns: kept_turns::Plan,
    scale: scale::Plan,
    soak: soak::Plan,
    hostile: hostile::Plan,
}

impl Plan {
    const FULL: Self = Self {
        span: Duration::from_secs(5),
        rounds: 5,
        // Slow enough that all streams are open at once, also while others are admitted by Postgres.
        memory: paced::Plan { streams: 500, ramp: Duration::from_secs(2), pace: Duration::from_millis(100), rounds: 3 },
        paced: paced::Plan {
            streams: 3_000,
            ramp: Duration::from_millis(1_500),
            pace: Duration::from_millis(30),
            rounds: 3,
        },
        provider: provider::Plan { streams: &[1, 16, 256], rounds: 5 },
        retrieval: retrieval::Plan { users: 50, memories: 200, callers: 16, span: Duration::from_secs(5) },
        kept_turns: kept_turns::Plan { callers: &[1, 64], span: Duration::from_secs(10) },
        scale: scale::Plan { turns: &[100, 1_000, 10_000, 50_000], users: 10_000, calls: 9 },
        soak: soak::Plan { callers: 40, spans: 7, span: Duration::from_mins(1) },
        hostile: hostile::Plan { alone: Duration::from_mins(2), beside: Duration::from_mins(10), memories: 500 },
    };
    const QUICK: Self = Self {
        span: Duration::from_millis(300),
        rounds: 1,
        memory: paced::Plan {
            streams: 50,
            ramp: Duration::from_millis(200),
            pace: Duration::from_millis(30),
            rounds: 1,
        },
        paced: paced::Plan {
            streams: 100,
            ramp: Duration::from_millis(200),
            pace: Duration::from_millis(30),
            rounds: 1,
        },
        provider: provider::Plan { streams: &[4], rounds: 1 },
        retrieval: retrieval::Plan { users: 2, memories: 20, callers: 4, span: Duration::from_millis(500) },
        kept_turns: kept_turns::Plan { callers: &[1, 8], span: Duration::from_millis(500) },
        scale: scale::Plan { turns: &[100, 1_000], users: 20, calls: 3 },
        soak: soak::Plan { callers: 4, spans: 2, span: Duration::from_millis(500) },
        hostile: hostile::Plan { alone: Duration::from_secs(3), beside: Duration::from_secs(6), memories: 20 },
    };
}

fn main() -> BenchResult<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [process::SERVE, role, rest @ ..] = arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        server::run(ServerRole::parse(role)?, rest)?;
        return Ok(ExitCode::SUCCESS);
    }
    let parts = [
        "frames",
        "memory",
        "paced",
        "provider",
        "conversations",
        "kept-turns",
        "scale",
        "retrieval",
        "soak",
        "hostile",
    ];
    let Some(arguments) = Arguments::parse(&arguments, &parts)? else { return Ok(ExitCode::SUCCESS) };
    let plan = if arguments.is_quick { Plan::QUICK } else { Plan::FULL };

    let runtime = Runtime::new()?;
    println!("{} cores, shared by the load and the server; logs at {LOG_LEVEL}", available_parallelism()?);
    if ["frames", "memory", "paced"].iter().any(|part| arguments.selects(part)) {
        let service = ServerProcess::start(ServerRole::Service, Duration::ZERO, &[], LOG_LEVEL)?;
        let turn = runtime.block_on(record(service.address()))?;
        if arguments.selects("frames") {
            frames(&runtime, &plan, service, &turn)?;
        }
        if arguments.selects("memory") {
            paced::memory(&runtime, &plan.memory, &turn)?;
        }
        if arguments.selects("paced") {
            paced::run(&runtime, &plan.paced, &turn)?;
        }
    }
    if arguments.selects("provider") {
        provider::run(&runtime, &plan.provider)?;
    }
    if arguments.selects("conversations") {
        conversations::run(&runtime, &plan.provider)?;
    }
    if arguments.selects("kept-turns") {
        kept_turns::run(&runtime, &plan.kept_turns)?;
    }
    if arguments.selects("scale") {
        scale::run(&runtime, &plan.scale)?;
    }
    if arguments.selects("retrieval") {
        retrieval::run(&runtime, &plan.retrieval)?;
    }
    if arguments.selects_long("soak") {
        soak::run(&runtime, &plan.soak)?;
    }
    if arguments.selects_long("hostile") {
        hostile::run(&runtime, &plan.hostile)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Records the frames of one turn, which the bare server repeats.
async fn record(address: &str) -> BenchResult<Vec<pb::ChatResponse>> {
    let mut client = AgentServiceClient::new(Target::connect(address).await?.channel(0));
    let mut stream = client.stream_chat(without_retrieval(request())).await?.into_inner();
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

fn frames(runtime: &Runtime, plan: &Plan, service: ServerProcess, turn: &[pb::ChatResponse]) -> BenchResult<()> {
    let logging = ServerProcess::start(ServerRole::Service, Duration::ZERO, &[], "info")?;
    let bare = ServerProcess::start(ServerRole::Bare, Duration::ZERO, turn, LOG_LEVEL)?;
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
                let report = load::saturate(target, STREAMS, plan.span, &request()).await?;
                if report.frames != report.turns * turn.len() {
                    return Err(format!("{} turns had {} frames", report.turns, report.frames).into());
                }
                let frames = report.frames as f64;
                let cpu_a_frame = (server.cpu_seconds() - cpu) * 1e6 / frames;
                measured.push((frames / report.elapsed.as_secs_f64(), cpu_a_frame));
            }
        }
        BenchResult::Ok(())
    })?;

    let caption = format!(
        "{STREAMS} streams in a closed loop, turns of {} frames, {} rounds of {:?}; the median of the rounds.",
        turn.len(),
        plan.rounds,
        plan.span
    );
    let [service, bare, logging] = &measured;
    let rate = |of: &[(f64, f64)]| median(of.iter().map(|(rate, _)| *rate));
    let cpu = |of: &[(f64, f64)]| median(of.iter().map(|(_, cpu)| *cpu));
    let table = Comparison::new("streams/frames", caption);
    table.row("frames a second", rate(service), rate(bare));
    table.row("frames a second, logs at info, discarded", rate(logging), rate(bare));
    table.row("server CPU a frame, µs", cpu(service), cpu(bare));
    // The measurements of a round are adjacent in time, so that other load on the machine affects both.
    let ratios = service.iter().zip(bare).map(|((service, _), (bare, _))| service / bare);
    table.ratio("frames a second, median of the ratios of the rounds", median(ratios));
    Ok(())
}
