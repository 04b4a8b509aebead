//! Load test of the whole stack: WebSocket → bridge → agent-local → provider.
//!
//! `cargo run --release --example stress` starts its own stack, which requires Rust, Go and Python; with `--url` it uses a running
//! one. Every turn is checked, and a failed one makes the exit code 1.

#![forbid(unsafe_code)]
#![expect(clippy::large_futures, reason = "only the server holds many futures")]

mod client;
#[path = "../../benches/support/paced_provider.rs"]
mod paced_provider;
#[path = "../../benches/support/quantile.rs"]
mod quantile;
mod stack;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

use crate::{
    client::{Client, LoadReport},
    quantile::{number, quantile},
    stack::Stack,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "usage: cargo run --release --example stress -- [OPTIONS]

  --connections N   concurrent users, each with a WebSocket and a session [50]
  --turns N         turns of each user, one after another [4]
  --deltas N        deltas of an answer [60]
  --delta-ms N      interval between two deltas [30]
  --server PATH     use this agent-local instead of building one
  --bridge PATH     use this bridge instead of building one
  --url ws://…      use a running stack; the number of its deltas is not checked";

struct Options {
    connections: usize,
    turns: usize,
    deltas: usize,
    pace: Duration,
    server: Option<PathBuf>,
    bridge: Option<PathBuf>,
    url: Option<String>,
}

impl Options {
    /// `None` = `--help`.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Option<Self>> {
        let mut options = Self {
            connections: 50,
            turns: 4,
            deltas: 60,
            pace: Duration::from_millis(30),
            server: None,
            bridge: None,
            url: None,
        };
        while let Some(name) = arguments.next() {
            if matches!(name.as_str(), "-h" | "--help") {
                return Ok(None);
            }
            let value = arguments.next().ok_or_else(|| format!("{name} requires a value\n{USAGE}"))?;
            let count = || value.parse().map_err(|_| format!("{name} requires a number, got {value:?}"));
            match name.as_str() {
                "--connections" => options.connections = count()?,
                "--turns" => options.turns = count()?,
                "--deltas" => options.deltas = count()?,
                "--delta-ms" => options.pace = Duration::from_millis(u64::try_from(count()?)?),
                "--server" => options.server = Some(value.into()),
                "--bridge" => options.bridge = Some(value.into()),
                "--url" => options.url = Some(value),
                _ => return Err(format!("unknown option {name}\n{USAGE}").into()),
            }
        }
        Ok(Some(options))
    }
}

fn main() -> Outcome<ExitCode> {
    let Some(options) = Options::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    Runtime::new()?.block_on(run(&options))
}

async fn run(options: &Options) -> Outcome<ExitCode> {
    let (connections, turns, deltas) = (options.connections, options.turns, options.deltas);
    let stack = match &options.url {
        Some(_) => None,
        None => Some(Stack::start(options).await?),
    };
    let url = stack.as_ref().map(|stack| stack.url.clone()).or_else(|| options.url.clone()).unwrap_or_default();
    match &stack {
        Some(_) => {
            println!(
                "Stack: {url} (bridge) → agent-local → a provider with {deltas} deltas, one every {:?}",
                options.pace
            );
        }
        None => println!("Stack: {url} (running)"),
    }
    println!("Load: {connections} connections, {turns} turns on each, one after another");

    let started = Instant::now();
    let mut users = JoinSet::new();
    let client = Arc::new(Client {
        url,
        deltas: stack.as_ref().map(|_| deltas),
        answer_duration: options.pace * u32::try_from(deltas)?,
    });
    for number in 0..connections {
        let client = client.clone();
        // Spread over one delta interval, so that deltas are not sent in bursts.
        let delay = options.pace * u32::try_from(number)? / u32::try_from(connections)?;
        users.spawn(async move {
            sleep(delay).await;
            client.converse(number, turns).await
        });
    }
    let mut report = LoadReport::default();
    while let Some(user_report) = users.join_next().await {
        report.add(user_report?);
    }
    print_report(&mut report, started.elapsed());
    if let Some(stack) = stack {
        stack.stop().await?;
    }
    Ok(if report.failures.is_empty() && report.turns > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(report: &mut LoadReport, elapsed: Duration) {
    let failed: usize = report.failures.values().sum();
    let seconds = elapsed.as_secs_f64();
    println!("\n{} turns in {seconds:.1} s: {} answered, {failed} failed", report.turns + failed, report.turns);
    for (reason, count) in &report.failures {
        println!("{count:>8}  {reason}");
    }
    println!("{} frames, {} a second\n", report.frames, number(report.frames as f64 / seconds));
    println!("{:<28}{:>10}{:>10}{:>10}", "ms", "p50", "p95", "p99");
    for (metric, values) in [
        ("time to first frame", &mut report.first_frames),
        ("time to first delta", &mut report.first_deltas),
        ("lateness of a delta", &mut report.lateness),
    ] {
        if values.is_empty() {
            println!("{metric:<28}  not measured: the deltas carry no send times");
        } else {
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| number(quantile(values, share)));
            println!("{metric:<28}{p50:>10}{p95:>10}{p99:>10}");
        }
    }
}

/// Counts by reason.
type Failures = BTreeMap<String, usize>;
