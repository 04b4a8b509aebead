//! Many people who chat at the same time, through the whole chain: WebSocket → bridge → agent-local → provider.
//!
//! `cargo run --release --example stress` starts a chain of its own, which takes Rust, Go and Python, and drives it; with
//! `--url` it drives one that runs. Every turn is checked, and one that fails makes the exit code 1.

mod chain;
mod client;
#[path = "../../benches/support/paced_provider.rs"]
mod paced_provider;
#[path = "../../benches/support/quantile.rs"]
mod quantile;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

use crate::{
    chain::Chain,
    client::{Client, Seen},
    quantile::{number, quantile},
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "usage: cargo run --release --example stress -- [OPTIONS]

  --connections N   people, each with a WebSocket and a conversation [50]
  --turns N         questions that each of them asks, one after the other [4]
  --deltas N        pieces of an answer [60]
  --delta-ms N      time between two of them [30]
  --server PATH     agent-local that is built already
  --bridge PATH     bridge that is built already
  --url ws://…      a chain that runs already; what its answers are like is then its own affair";

/// What was asked for.
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
    /// None where help was asked for.
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
            let value = arguments.next().ok_or_else(|| format!("{name} wants a value\n{USAGE}"))?;
            let count = || value.parse().map_err(|_| format!("{name} wants a number, not {value:?}"));
            match name.as_str() {
                "--connections" => options.connections = count()?,
                "--turns" => options.turns = count()?,
                "--deltas" => options.deltas = count()?,
                "--delta-ms" => options.pace = Duration::from_millis(u64::try_from(count()?)?),
                "--server" => options.server = Some(value.into()),
                "--bridge" => options.bridge = Some(value.into()),
                "--url" => options.url = Some(value),
                _ => return Err(format!("there is no option {name}\n{USAGE}").into()),
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
    let chain = match &options.url {
        Some(_) => None,
        None => Some(Chain::start(options).await?),
    };
    let url = chain.as_ref().map(|chain| chain.url.clone()).or_else(|| options.url.clone()).unwrap_or_default();
    match &chain {
        Some(_) => {
            println!(
                "The chain: {url} (bridge) → agent-local → a provider with {deltas} deltas, one every {:?}",
                options.pace
            );
        }
        None => println!("The chain: {url}, which runs already"),
    }
    println!("The load: {connections} connections, {turns} turns on each, one after the other");

    let began = Instant::now();
    let mut people = JoinSet::new();
    let client =
        Arc::new(Client { url, deltas: chain.as_ref().map(|_| deltas), length: options.pace * u32::try_from(deltas)? });
    for number in 0..connections {
        let client = client.clone();
        // People do not all begin at once, but within the time between two deltas.
        let wait = options.pace * u32::try_from(number)? / u32::try_from(connections)?;
        people.spawn(async move {
            sleep(wait).await;
            client.converse(number, turns).await
        });
    }
    let mut seen = Seen::default();
    while let Some(one) = people.join_next().await {
        seen.add(one?);
    }
    report(&mut seen, began.elapsed());
    if let Some(chain) = chain {
        chain.stop().await?;
    }
    Ok(if seen.failures.is_empty() && seen.turns > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(seen: &mut Seen, elapsed: Duration) {
    let failed: usize = seen.failures.values().sum();
    let seconds = elapsed.as_secs_f64();
    println!("\n{} turns in {seconds:.1} s: {} answered, {failed} failed", seen.turns + failed, seen.turns);
    for (reason, count) in &seen.failures {
        println!("{count:>8}  {reason}");
    }
    println!("{} frames, {} a second\n", seen.frames, number(seen.frames as f64 / seconds));
    println!("{:<28}{:>10}{:>10}{:>10}", "ms", "p50", "p95", "p99");
    for (what, of) in [
        ("to the first frame", &mut seen.first_frames),
        ("to the first delta", &mut seen.first_deltas),
        ("lateness of a delta", &mut seen.lateness),
    ] {
        if of.is_empty() {
            println!("{what:<28}  not measured: no delta says when it was sent");
        } else {
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| number(quantile(of, share)));
            println!("{what:<28}{p50:>10}{p95:>10}{p99:>10}");
        }
    }
}

/// How often something failed, by the reason.
type Failures = BTreeMap<String, usize>;
