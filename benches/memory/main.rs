//! The latency of retrieval compared to a bare vector search by Postgres in the same run, and the throughput of writes.
//!
//! `cargo bench --bench memory` measures `retrieve` and `write` in a few minutes. Arguments after `--` select parts, also
//! `many-users`, `index` and `limits`, which fill databases for half an hour; `--quick` runs all for seconds and shows only that the
//! benchmark works and that results are correct. The server runs in this process and is called over a socket; the database
//! is an embedded Postgres, or that of `TEST_DATABASE_URL`.
//!
//! Texts and vectors are synthetic, the same in every run. Times have no thresholds: on a shared machine only the ratios within
//! one run are meaningful.

#![expect(clippy::large_futures, reason = "only the server holds many futures")]

#[path = "../support/arguments.rs"]
mod arguments;
mod corpus;
mod index;
mod limits;
mod many_users;
mod measure;
#[path = "../support/measurements.rs"]
mod measurements;
#[path = "../support/quantile.rs"]
mod quantile;
mod report;
mod retrieve;
mod server;
mod store;
#[path = "../support/table.rs"]
mod table;
mod write;

use std::{process::ExitCode, thread::available_parallelism};

use tokio::runtime::Runtime;

use crate::{arguments::Arguments, store::Postgres};

type BenchResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Plan {
    retrieve: retrieve::Plan,
    many_users: many_users::Plan,
    write: write::Plan,
    index: index::Plan,
    limits: limits::Plan,
}

impl Plan {
    const FULL: Self = Self {
        retrieve: retrieve::Plan { sizes: &[1_000, 10_000, 100_000], queries: 300 },
        many_users: many_users::Plan { users: 10_000, memories: 100, queries: 500 },
        write: write::Plan { batches: &[(200, 20), (1_000, 10)], singles: 300, by_model: 500 },
        index: index::Plan { sizes: &[10_000, 20_000, 50_000, 100_000], others: 5, queries: 200, min_recall: 0.0 },
        limits: limits::Plan { divisor: 1, others: 1_000, calls: 50 },
    };
    const QUICK: Self = Self {
        retrieve: retrieve::Plan { sizes: &[200], queries: 20 },
        many_users: many_users::Plan { users: 10, memories: 50, queries: 20 },
        write: write::Plan { batches: &[(50, 2)], singles: 5, by_model: 10 },
        index: index::Plan { sizes: &[1_050], others: 1, queries: 20, min_recall: 0.98 },
        limits: limits::Plan { divisor: 50, others: 50, calls: 5 },
    };
}

fn main() -> BenchResult<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parts = ["retrieve", "many-users", "write", "index", "limits"];
    let Some(arguments) = Arguments::parse(&arguments, &parts)? else { return Ok(ExitCode::SUCCESS) };
    let plan = if arguments.is_quick { Plan::QUICK } else { Plan::FULL };

    let postgres = Postgres::start()?;
    println!("{} cores, shared by the client, the server and Postgres", available_parallelism()?);
    Runtime::new()?.block_on(async {
        if arguments.selects("retrieve") {
            retrieve::run(&postgres, &plan.retrieve).await?;
        }
        if arguments.selects_long("many-users") {
            many_users::run(&postgres, &plan.many_users).await?;
        }
        if arguments.selects("write") {
            write::run(&postgres, &plan.write).await?;
        }
        if arguments.selects_long("index") {
            Box::pin(index::run(&postgres, &plan.index)).await?;
        }
        if arguments.selects_long("limits") {
            Box::pin(limits::run(&postgres, &plan.limits)).await?;
        }
        BenchResult::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
