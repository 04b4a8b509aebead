use crate::{
    BenchResult,
    budget::budget,
    counting_proxy::{CountingProxy, Counts},
    database::Postgres,
    service::BenchService,
};

/// A service that has just started prepares its statements and fills the caches of its connections. So it does something a few
/// times, another one does it `MANY` times more, and the difference counts.
const FEW: usize = 20;
const MANY: usize = 100;

/// The operation with the numbers from `first` on.
pub trait Operation {
    async fn repeat(&self, service: &BenchService, first: usize, count: usize) -> BenchResult<()>;
}

struct Sample {
    counts: Counts,
    buffers: u64,
}

async fn sample(
    postgres: &Postgres,
    database: &str,
    operation: &impl Operation,
    first: usize,
    count: usize,
) -> BenchResult<Sample> {
    let before = postgres.buffers(database).await?;
    let proxy = CountingProxy::start(postgres.socket()).await?;
    let service = BenchService::start(&proxy, database).await?;
    operation.repeat(&service, first, count).await?;
    service.stop().await?;
    let counts = proxy.counts();
    drop(proxy);
    Ok(Sample { counts, buffers: postgres.buffers(database).await? - before })
}

/// Reports the budgets of an operation; `size` says how much data its user has.
pub async fn measure(
    postgres: &Postgres,
    database: &str,
    operation: &impl Operation,
    (what, size): (&str, &str),
) -> BenchResult<()> {
    postgres.settle(database).await?;
    let few = sample(postgres, database, operation, 0, FEW).await?;
    let many = sample(postgres, database, operation, FEW, FEW + MANY).await?;
    let each = |count: fn(&Sample) -> u64| ((count(&many) - count(&few)) as f64 / MANY as f64 * 10.0).round() / 10.0;
    for (unit, value) in [
        ("statements", each(|sample| sample.counts.statements)),
        ("round-trips", each(|sample| sample.counts.round_trips)),
        ("transactions", each(|sample| sample.counts.transactions)),
        ("buffers", each(|sample| sample.buffers)),
    ] {
        let name = format!("{unit}-of-a-{}-{}", what.replace(' ', "-"), size.replace([' ', ','], "-"));
        budget(&name, value, unit, &format!("a {what} of a user with {size}"))?;
    }
    Ok(())
}
