//! Thousands of streams at a reader's pace: how late their frames are, and what each stream holds in memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use agent_service::proto::agent_v1::{ChatResponse, chat_response::Content};
use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    LOG_LEVEL, Outcome,
    load::Target,
    process::ServerProcess,
    report::{Table, median, quantile},
    request,
    server::Role,
};

/// Time between two deltas.
const PACE: Duration = Duration::from_millis(30);
/// Turns one after the other, which also warm the server up.
const CALM_TURNS: usize = 200;
/// What a round may take beyond its own length before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many streams, and how often.
pub struct Plan {
    pub streams: usize,
    /// Time over which they begin, shorter than a turn.
    pub ramp: Duration,
    pub rounds: usize,
}

/// One round of one server.
#[derive(Debug, Default)]
struct Round {
    /// Time to the first frame of an idle server, in milliseconds.
    calm_first_frame: f64,
    /// The same among all the others, the slowest in a hundred.
    first_frame_p99: f64,
    late_p50: f64,
    late_p99: f64,
    late_max: f64,
    /// KiB a stream, the most that was seen while all were open.
    memory: f64,
    /// Microseconds of the server's processor time a frame.
    cpu: f64,
}

/// Measures both servers and prints the table.
pub fn run(runtime: &Runtime, plan: &Plan, turn: &[ChatResponse]) -> Outcome<()> {
    let (mut service, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        for (role, rounds) in [(Role::Service, &mut service), (Role::Bare, &mut bare)] {
            // A fresh process each time: memory that a round has returned would serve the next one unseen.
            let server = ServerProcess::start(role, PACE, turn, LOG_LEVEL)?;
            rounds.push(runtime.block_on(async { timeout(PATIENCE, round(plan, &server, turn)).await? })?);
        }
    }
    println!(
        "\nPaced: {} streams begun within {:?}, a frame every {PACE:?} each, {} rounds",
        plan.streams, plan.ramp, plan.rounds
    );
    let mut table = Table::new();
    let best = |of: &[Round]| of.iter().map(|round| round.late_p99).fold(f64::NAN, f64::min);
    // What else a machine does can only make frames later.
    table.row("lateness of a frame, p99, best round", best(&service), best(&bare));
    let mut row = |what, of: fn(&Round) -> f64| {
        table.row(what, median(service.iter().map(of)), median(bare.iter().map(of)));
    };
    row("lateness of a frame, p50, ms", |round| round.late_p50);
    row("lateness of a frame, p99, ms", |round| round.late_p99);
    row("lateness of a frame, most, ms", |round| round.late_max);
    row("memory a stream, KiB", |round| round.memory);
    row("server CPU a frame, µs", |round| round.cpu);
    row("first frame under this load, p99, ms", |round| round.first_frame_p99);
    row("first frame of an idle server, p50, ms", |round| round.calm_first_frame);
    Ok(())
}

async fn round(plan: &Plan, server: &ServerProcess, turn: &[ChatResponse]) -> Outcome<Round> {
    let target = Target::connect(server.address()).await?;
    let mut round = Round { calm_first_frame: calm_first_frame(&target).await?, ..Round::default() };

    let is_delta: Arc<[bool]> = turn.iter().map(|frame| matches!(frame.content, Some(Content::Delta(_)))).collect();
    let (idle, cpu) = (server.resident_kib(), server.cpu_seconds());
    let open = Arc::new(AtomicUsize::new(0));
    let mut streams = JoinSet::new();
    for number in 0..plan.streams {
        let delay = plan.ramp.mul_f64(number as f64 / plan.streams as f64);
        let (mut caller, is_delta, open) = (target.caller(number), is_delta.clone(), open.clone());
        streams.spawn(async move {
            sleep(delay).await;
            let asked = Instant::now();
            let mut frames = caller.ask(request()).await?;
            let (mut first_frame, mut first_delta, mut late) = (None, None, Vec::with_capacity(is_delta.len()));
            for is_delta in is_delta.iter() {
                frames.message().await?.ok_or("a stream ended early")?;
                let now = Instant::now();
                first_frame.get_or_insert_with(|| {
                    open.fetch_add(1, Ordering::Relaxed);
                    now - asked
                });
                if *is_delta {
                    let due = *first_delta.get_or_insert(now) + PACE * u32::try_from(late.len())?;
                    late.push(milliseconds(now.saturating_duration_since(due)));
                }
            }
            open.fetch_sub(1, Ordering::Relaxed);
            Outcome::Ok((milliseconds(first_frame.unwrap_or_default()), late))
        });
    }

    let (mut first_frames, mut late, mut most) = (Vec::new(), Vec::new(), f64::NAN);
    loop {
        tokio::select! {
            ended = streams.join_next() => {
                let Some(ended) = ended else { break };
                let (first_frame, lateness) = ended??;
                first_frames.push(first_frame);
                late.extend(lateness);
            }
            () = sleep(PACE) => {
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

/// Time to the first frame of turns one after the other, each then cancelled: what a turn costs before it speaks.
async fn calm_first_frame(target: &Target) -> Outcome<f64> {
    let mut times = Vec::with_capacity(CALM_TURNS);
    for number in 0..CALM_TURNS {
        let mut caller = target.caller(number);
        let asked = Instant::now();
        let mut frames = caller.ask(request()).await?;
        frames.message().await?;
        times.push(milliseconds(asked.elapsed()));
    }
    Ok(median(times))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
