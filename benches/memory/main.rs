//! How long finding memories takes, beside a bare search of the same vectors by Postgres in the same run, and how fast
//! memories are written.
//!
//! `cargo bench --bench memory` runs everything in about half an hour, most of which is writing what is then searched.
//! Arguments after `--` choose: `retrieve`, `crowd`, `write` and `index` name parts, and `--quick` makes a run of seconds
//! that shows no more than that the benchmark works and that what is found is right. The server runs in this process and is
//! called over a socket; the database is an embedded Postgres of its own, or the one of `TEST_DATABASE_URL`.
//!
//! Texts and vectors are made up, the same in every run. It reports and never judges times: on a shared machine only the
//! ratios of one run mean something.

mod corpus;
mod crowd;
mod index;
mod measure;
mod report;
mod retrieve;
mod server;
mod store;
mod write;

use std::{process::ExitCode, thread::available_parallelism};

use tokio::runtime::Runtime;

use crate::store::Postgres;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How much of everything.
struct Plan {
    retrieve: retrieve::Plan,
    crowd: crowd::Plan,
    write: write::Plan,
    index: index::Plan,
}

impl Plan {
    const FULL: Self = Self {
        retrieve: retrieve::Plan { sizes: &[1_000, 10_000, 100_000], queries: 300 },
        crowd: crowd::Plan { users: 1_000, memories: 1_000, queries: 500 },
        write: write::Plan { batches: &[(200, 20), (1_000, 10)], singles: 300, by_model: 500 },
        index: index::Plan { sizes: &[10_000, 20_000, 50_000, 100_000], others: 5, queries: 200, least_recall: 0.0 },
    };
    const QUICK: Self = Self {
        retrieve: retrieve::Plan { sizes: &[200], queries: 20 },
        crowd: crowd::Plan { users: 10, memories: 50, queries: 20 },
        write: write::Plan { batches: &[(50, 2)], singles: 5, by_model: 10 },
        index: index::Plan { sizes: &[1_050], others: 1, queries: 20, least_recall: 0.98 },
    };
}

fn main() -> Outcome<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` starts benchmarks as well, without this.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("nothing is measured without --bench, which `cargo bench` passes");
        return Ok(ExitCode::SUCCESS);
    }
    let (mut plan, mut parts) = (Plan::FULL, Vec::new());
    for argument in &arguments {
        match argument.as_str() {
            "--bench" => {}
            "--quick" => plan = Plan::QUICK,
            part @ ("retrieve" | "crowd" | "write" | "index") => parts.push(part),
            other => return Err(format!("{other:?} is none of --quick, retrieve, crowd, write, index").into()),
        }
    }
    let wanted = |part| parts.is_empty() || parts.contains(&part);

    let postgres = Postgres::start()?;
    println!("{} cores, shared by the client, the server and Postgres", available_parallelism()?);
    Runtime::new()?.block_on(async {
        if wanted("retrieve") {
            retrieve::run(&postgres, &plan.retrieve).await?;
        }
        if wanted("crowd") {
            crowd::run(&postgres, &plan.crowd).await?;
        }
        if wanted("write") {
            write::run(&postgres, &plan.write).await?;
        }
        if wanted("index") {
            index::run(&postgres, &plan.index).await?;
        }
        Outcome::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
