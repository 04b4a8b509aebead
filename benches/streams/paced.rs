//! Thousands of streams at reading speed: the lateness of frames and the memory of a stream.

use crate::{
    common::{BenchResult, LOG_LEVEL, STALL_TIMEOUT, milliseconds, request},
    load::Target,
    process::ServerProcess,
    report::{Comparison, median, quantile},
    server::ServerRole,
};
use agent_service::proto::agent_v1::{ChatRequest, ChatResponse, chat_response::Content};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Time between two samples of the memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(30);

/// Sequential turns, which also warm up the server.
const CALM_TURNS: usize = 200;

pub struct Plan {
    pub streams: usize,
    /// Time over which the streams start; shorter than a turn.
    pub ramp: Duration,
    /// Time between two deltas.
    pub pace: Duration,
    pub rounds: usize,
}

#[derive(Debug, Default)]
struct Round {
    /// Milliseconds to the first frame of an idle server.
    calm_first_frame: f64,
    /// Milliseconds to the first frame under load.
    first_frame_p99: f64,
    late_p50: f64,
    late_p99: f64,
    late_max: f64,
    /// Peak KiB a stream while all are open.
    memory: f64,
    /// Microseconds of server CPU time a frame.
    cpu: f64,
}

pub fn run(runtime: &Runtime, plan: &Plan, turn: &[ChatResponse]) -> BenchResult<()> {
    let [service, bare] = rounds(runtime, plan, turn, [ServerRole::Service, ServerRole::Bare])?;
    let caption = format!(
        "{} streams begun within {:?}, a frame every {:?} each, {} rounds; the median of the rounds.",
        plan.streams, plan.ramp, plan.pace, plan.rounds
    );
    let table = Comparison::new("streams/paced", caption);
    let best = |of: &[Round]| of.iter().map(|round| round.late_p99).fold(f64::NAN, f64::min);
    // Other load can only make frames later, so the best round is the least disturbed.
    table.row("lateness of a frame, p99, best round, ms", best(&service), best(&bare));
    let row = |what, of: fn(&Round) -> f64| {
        table.row(what, median(service.iter().map(of)), median(bare.iter().map(of)));
    };
    row("lateness of a frame, p50, ms", |round| round.late_p50);
    row("lateness of a frame, p99, ms", |round| round.late_p99);
    row("lateness of a frame, most, ms", |round| round.late_max);
    row("resident memory of a stream, KiB", |round| round.memory);
    row("server CPU a frame, µs", |round| round.cpu);
    row("first frame under this load, p99, ms", |round| round.first_frame_p99);
    row("first frame of an idle server, p50, ms", |round| round.calm_first_frame);
    Ok(())
}

/// The resident memory of an open stream, without and with persistence.
pub fn memory(runtime: &Runtime, plan: &Plan, turn: &[ChatResponse]) -> BenchResult<()> {
    let roles = [ServerRole::Service, ServerRole::Persistent, ServerRole::Bare];
    let [off, persistent, bare] = rounds(runtime, plan, turn, roles)?;
    let caption = format!(
        "{} streams of as many users, begun within {:?}, a frame every {:?} each, {} rounds. The most that the process of the \
         server has held while all streams were open, less what it held before them; the median of the rounds.",
        plan.streams, plan.ramp, plan.pace, plan.rounds
    );
    let table = Comparison::new("streams/memory", caption);
    let memory = |of: &[Round]| median(of.iter().map(|round| round.memory));
    table.row("resident memory of a stream, conversations off, KiB", memory(&off), memory(&bare));
    table.row("resident memory of a stream, conversations in Postgres, KiB", memory(&persistent), memory(&bare));
    Ok(())
}

/// The rounds of each server, in turn.
fn rounds<const SERVERS: usize>(
    runtime: &Runtime,
    plan: &Plan,
    turn: &[ChatResponse],
    roles: [ServerRole; SERVERS],
) -> BenchResult<[Vec<Round>; SERVERS]> {
    let mut all = [const { Vec::new() }; SERVERS];
    for _ in 0..plan.rounds {
        for (role, rounds) in roles.into_iter().zip(&mut all) {
            // A new process for each round: freed memory would be reused by the next round and not show up.
            let server = ServerProcess::start(role, plan.pace, turn, LOG_LEVEL)?;
            rounds.push(runtime.block_on(async { timeout(STALL_TIMEOUT, round(plan, &server, turn)).await? })?);
        }
    }
    Ok(all)
}

async fn round(plan: &Plan, server: &ServerProcess, turn: &[ChatResponse]) -> BenchResult<Round> {
    let target = Target::connect(server.address()).await?;
    let mut round = Round { calm_first_frame: calm_first_frame(&target).await?, ..Round::default() };

    let is_delta: Arc<[bool]> = turn.iter().map(|frame| matches!(frame.content, Some(Content::Delta(_)))).collect();
    let (idle, cpu) = (server.resident_kib(), server.cpu_seconds());
    let open = Arc::new(AtomicUsize::new(0));
    let mut streams = JoinSet::new();
    for number in 0..plan.streams {
        let delay = plan.ramp.mul_f64(number as f64 / plan.streams as f64);
        let (mut caller, is_delta, open, pace) = (target.caller(number), is_delta.clone(), open.clone(), plan.pace);
        streams.spawn(async move {
            sleep(delay).await;
            let started = Instant::now();
            let request = ChatRequest { user_id: format!("user-{number}"), ..request() };
            let mut frames = caller.ask(request).await?;
            let (mut first_frame, mut first_delta, mut late) = (None, None, Vec::with_capacity(is_delta.len()));
            for is_delta in is_delta.iter() {
                frames.message().await?.ok_or("a stream ended early")?;
                let now = Instant::now();
                first_frame.get_or_insert_with(|| {
                    open.fetch_add(1, Ordering::Relaxed);
                    now - started
                });
                if *is_delta {
                    let due = *first_delta.get_or_insert(now) + pace * u32::try_from(late.len())?;
                    late.push(milliseconds(now.saturating_duration_since(due)));
                }
            }
            open.fetch_sub(1, Ordering::Relaxed);
            BenchResult::Ok((milliseconds(first_frame.unwrap_or_default()), late))
        });
    }

    let (mut first_frames, mut late, mut most) = (Vec::new(), Vec::new(), f64::NAN);
    loop {
        tokio::select! {
            finished = streams.join_next() => {
                let Some(finished) = finished else { break };
                let (first_frame, lateness) = finished??;
                first_frames.push(first_frame);
                late.extend(lateness);
            }
            () = sleep(SAMPLE_INTERVAL) => {
                if open.load(Ordering::Relaxed) == plan.streams {
                    most = most.max(server.resident_kib());
                }
            }
        }
    }
    round.cpu = (server.cpu_seconds() - cpu) * 1e6 / (turn.len() * plan.streams) as f64;
    round.memory = (most - idle) / plan.streams as f64;
    round.first_frame_p99 = quantile(&mut first_frames, 0.99);
    round.late_p50 = quantile(&mut late, 0.5);
    round.late_p99 = quantile(&mut late, 0.99);
    round.late_max = quantile(&mut late, 1.0);
    Ok(round)
}

/// Median time to the first frame of sequential turns, each cancelled afterwards.
async fn calm_first_frame(target: &Target) -> BenchResult<f64> {
    let mut times = Vec::with_capacity(CALM_TURNS);
    for number in 0..CALM_TURNS {
        let mut caller = target.caller(number);
        let started = Instant::now();
        let mut frames = caller.ask(request()).await?;
        frames.message().await?;
        times.push(milliseconds(started.elapsed()));
    }
    Ok(median(times))
}
