//! An ordinary client, alone and beside a hostile one that floods, hoards and does not read.

mod attack;
mod ordinary;

use std::time::Duration;

use tokio::{runtime::Runtime, time::timeout};

use crate::{
    common::{BenchResult, LOG_LEVEL, STALL_TIMEOUT},
    process::ServerProcess,
    report::{number, quantile},
    server::ServerRole,
    table::Table,
};

/// Of the demo answers.
const PACE: Duration = Duration::from_millis(2);

pub struct Plan {
    pub alone: Duration,
    pub beside: Duration,
    /// Memories of the ordinary user.
    pub memories: usize,
}

pub fn run(runtime: &Runtime, plan: &Plan) -> BenchResult<()> {
    let data = tempfile::tempdir()?;
    let path = data.path().to_str().ok_or("the path is not UTF-8")?;
    let server = ServerProcess::start_with(ServerRole::Limited, PACE, &[], LOG_LEVEL, &[path])?;
    let address = server.address();
    let (mut alone, mut beside, attack) = runtime.block_on(async {
        let alone = measure(address, "alone", plan.alone, plan.memories).await?;
        let mut attack = attack::Attack::start(address).await?;
        let beside = measure(address, "beside", plan.beside, plan.memories).await?;
        attack.stop().await;
        BenchResult::Ok((alone, beside, attack))
    })?;
    let caption = format!(
        "Default settings, embedded Postgres; {:?} alone, then {:?} beside the hostile client, on the same cores. Milliseconds.",
        plan.alone, plan.beside
    );
    let columns = ["call of the ordinary client", "alone, p50", "p99", "beside, p50", "p99", "ratio of p99"];
    let table = Table::new("streams/hostile", caption, &columns);
    for (call, latencies) in alone.calls() {
        let other = beside.latencies(call);
        let quantiles =
            [quantile(latencies, 0.5), quantile(latencies, 0.99), quantile(other, 0.5), quantile(other, 0.99)];
        let ratio = quantiles[3] / quantiles[1];
        let cells = quantiles.into_iter().chain([ratio]).map(number);
        table.row([call.to_owned()].into_iter().chain(cells));
    }
    let caption = format!(
        "What the hostile client did meanwhile; the server then had {} MiB.",
        server.resident_kib() as u64 / 1024
    );
    let table = Table::new("streams/hostile/attack", caption, &["attack", "done", "refused", "broken"]);
    for (name, counts) in attack.counts() {
        table.row([name.to_owned()].into_iter().chain(counts.map(|count| count.to_string())));
    }
    if beside.refused > 0 {
        return Err(format!("{} calls of the ordinary client failed beside the hostile one", beside.refused).into());
    }
    Ok(())
}

async fn measure(address: &str, user: &str, span: Duration, memories: usize) -> BenchResult<ordinary::Latencies> {
    timeout(span + 3 * STALL_TIMEOUT, ordinary::run(address, user, span, memories)).await?
}
