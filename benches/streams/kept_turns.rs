//! Turns that are stored, in demo mode with its defaults but without delays and quotas, learning included, beside single-row
//! inserts into the same embedded Postgres.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use agent_service::{postgres::embedded, proto::agent_v1::ChatRequest};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    common::{BenchResult, LOG_LEVEL, request},
    load::Target,
    process::ServerProcess,
    report::{number, quantile},
    server::ServerRole,
    table::Table,
};

pub struct Plan {
    pub callers: &'static [usize],
    pub span: Duration,
}

#[derive(Default)]
pub struct KeptTurns {
    pub turns: usize,
    pub refused: usize,
    pub first_frames: Vec<f64>,
    pub ends: Vec<f64>,
}

pub fn run(runtime: &Runtime, plan: &Plan) -> BenchResult<()> {
    let data = tempfile::tempdir()?;
    let path = data.path().to_str().ok_or("the path is not UTF-8")?;
    let server = ServerProcess::start_with(ServerRole::Defaults, Duration::ZERO, &[], LOG_LEVEL, &[path])?;
    let caption = format!(
        "Embedded Postgres, {:?} for each number of callers, every caller a user; times are in milliseconds. As many clients insert, \
         16 at most.",
        plan.span
    );
    let columns = [
        "callers",
        "turns a second",
        "refused",
        "first frame, p50",
        "p99",
        "whole turn, p50",
        "p99",
        "inserts a second",
        "turns / inserts",
    ];
    let table = Table::new("streams/kept-turns", caption, &columns);
    let empty = disk_bytes(&data.path().join("postgres"))?;
    runtime.block_on(async {
        let target = Target::connect(server.address()).await?;
        for &callers in plan.callers {
            drop(talk(&target, callers, plan.span / 5, question).await?);
            let mut kept = talk(&target, callers, plan.span, question).await?;
            let seconds = plan.span.as_secs_f64();
            let inserts = insert(data.path(), callers.min(16), plan.span / 3).await?;
            let rate = kept.turns as f64 / seconds;
            let milliseconds = |values: &mut Vec<f64>, share| number(quantile(values, share) * 1e3);
            table.row([
                callers.to_string(),
                number(rate),
                kept.refused.to_string(),
                milliseconds(&mut kept.first_frames, 0.5),
                milliseconds(&mut kept.first_frames, 0.99),
                milliseconds(&mut kept.ends, 0.5),
                milliseconds(&mut kept.ends, 0.99),
                number(inserts),
                number(rate / inserts),
            ]);
        }
        let stored = disk_bytes(&data.path().join("postgres"))? - empty;
        let turns = stored_turns(data.path()).await?;
        let caption = "Growth of the data directory by these turns, with the write-ahead log.";
        let table = Table::new("streams/kept-turns/disk", caption, &["turns", "kB a turn"]);
        table.row([turns.to_string(), number(stored / turns as f64 / 1e3)]);
        Ok(())
    })
}

fn question(caller: usize, _turn: usize) -> ChatRequest {
    ChatRequest { user_id: format!("caller-{caller}"), ..request() }
}

/// `ask` makes the request of a caller's turn; the turns of each caller are counted from zero.
pub async fn talk(
    target: &Target,
    callers: usize,
    span: Duration,
    ask: fn(usize, usize) -> ChatRequest,
) -> BenchResult<KeptTurns> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    for number in 0..callers {
        let mut caller = target.caller(number);
        running.spawn(async move {
            let mut kept = KeptTurns::default();
            while began.elapsed() < span {
                let started = Instant::now();
                let Ok(mut frames) = caller.ask(ask(number, kept.turns + kept.refused)).await else {
                    kept.refused += 1;
                    continue;
                };
                let mut first = None;
                while frames.message().await?.is_some() {
                    first.get_or_insert_with(|| started.elapsed());
                }
                kept.turns += 1;
                kept.first_frames.extend(first.map(|first| first.as_secs_f64()));
                kept.ends.push(started.elapsed().as_secs_f64());
            }
            BenchResult::Ok(kept)
        });
    }
    let mut total = KeptTurns::default();
    while let Some(kept) = running.join_next().await {
        let kept = kept??;
        total.turns += kept.turns;
        total.refused += kept.refused;
        total.first_frames.extend(kept.first_frames);
        total.ends.extend(kept.ends);
    }
    Ok(total)
}

pub async fn stored_turns(data: &Path) -> BenchResult<i64> {
    let statement = "select coalesce(sum(turns), 0)::bigint from sessions";
    Ok(sqlx::query_scalar(statement).fetch_one(&mut connect(data).await?).await?)
}

async fn connect(data: &Path) -> BenchResult<PgConnection> {
    Ok(PgConnection::connect_with(&embedded::connect_options(data)?).await?)
}

/// Durable inserts of one row a transaction, per second.
async fn insert(data: &Path, clients: usize, span: Duration) -> BenchResult<f64> {
    connect(data).await?.execute("create table if not exists bench_rows (id bigserial primary key, note text)").await?;
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let mut connection = connect(data).await?;
        running.spawn(async move {
            let (began, mut rows) = (Instant::now(), 0_usize);
            while began.elapsed() < span {
                sqlx::query("insert into bench_rows (note) values ($1)").bind("x").execute(&mut connection).await?;
                rows += 1;
            }
            BenchResult::Ok(rows)
        });
    }
    let mut rows = 0;
    while let Some(of_client) = running.join_next().await {
        rows += of_client??;
    }
    Ok(rows as f64 / span.as_secs_f64())
}

pub fn disk_bytes(directory: &Path) -> BenchResult<f64> {
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(directory)?.flatten() {
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.len() as f64 };
    }
    Ok(bytes)
}
