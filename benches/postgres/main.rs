//! The work of Postgres for a kept turn and for a recall: statements, round trips, transactions and buffers, at two sizes of the
//! user's data. Counted on the wire and by Postgres, so that no clock disturbs them: they have budgets in
//! `benches/budgets.toml`, and `benches/budgets.sh postgres` compares.
//!
//! The service runs in this process, and its Postgres is an embedded one.

#![expect(clippy::large_futures, reason = "only the server holds many futures")]

#[path = "../support/budget.rs"]
mod budget;
#[path = "../memory/corpus.rs"]
#[expect(dead_code, reason = "vectors are hashed here")]
mod corpus;
mod counting_proxy;
mod database;
#[path = "../support/measurements.rs"]
mod measurements;
mod recall;
mod service;
mod turn;
mod work;

use tokio::runtime::Runtime;

use crate::database::Postgres;

type BenchResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> BenchResult<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing is measured without --bench, which `cargo bench` passes");
        return Ok(());
    }
    let data = tempfile::tempdir()?;
    let postgres = Postgres::start(data.path())?;
    Runtime::new()?.block_on(async {
        postgres.disable_autovacuum().await?;
        turn::run(&postgres).await?;
        recall::run(&postgres).await
    })
}
