//! The cost of persistence: the same turns through an instance that persists conversations and through one that does not.

use std::time::Duration;

use tokio::{runtime::Runtime, time::timeout};

use crate::{
    common::{BenchResult, DELTAS, LOG_LEVEL, PACE, STALL_TIMEOUT},
    process::ServerProcess,
    provider::{Latencies, Plan, proxied_round},
    report::{number, quantile},
    server::ServerRole,
    table::Table,
};

pub fn run(runtime: &Runtime, plan: &Plan) -> BenchResult<()> {
    let provider = ServerProcess::start(ServerRole::Provider, PACE, &[], LOG_LEVEL)?;
    let start = |role| ServerProcess::start_with(role, Duration::ZERO, &[], LOG_LEVEL, &[provider.address()]);
    let (off, on) = (start(ServerRole::Proxy)?, start(ServerRole::PersistentProxy)?);
    let store = std::env::var("CONVERSATIONS").unwrap_or_else(|_| "embedded Postgres".to_owned());
    let caption =
        format!("{DELTAS} deltas, one every {PACE:?}, {} rounds, stored in: {store}; milliseconds.", plan.rounds);
    let table =
        Table::new("streams/conversations", caption, &["streams", "measured", "transient", "persistent", "added"]);
    for &streams in plan.streams {
        let (mut without, mut with) = (Latencies::default(), Latencies::default());
        runtime.block_on(async {
            // The first round opens the connections.
            for round in 0..=plan.rounds {
                let one = timeout(STALL_TIMEOUT, proxied_round(off.address(), streams)).await??;
                let other = timeout(STALL_TIMEOUT, proxied_round(on.address(), streams)).await??;
                if round > 0 {
                    without.add(one);
                    with.add(other);
                }
            }
            BenchResult::Ok(())
        })?;
        let mut row = |what, of: fn(&mut Latencies) -> &mut Vec<f64>, share| {
            let (without, with) = (quantile(of(&mut without), share), quantile(of(&mut with), share));
            let numbers = [without, with, with - without].map(number);
            table.row([streams.to_string(), String::from(what)].into_iter().chain(numbers));
        };
        row("first frame, p50", |latencies| &mut latencies.first_frames, 0.5);
        row("first frame, p99", |latencies| &mut latencies.first_frames, 0.99);
        row("delta, p50", |latencies| &mut latencies.lateness, 0.5);
        row("delta, p99", |latencies| &mut latencies.lateness, 0.99);
    }
    Ok(())
}
