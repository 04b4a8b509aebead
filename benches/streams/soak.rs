//! Minutes of stored turns with retrieval and learning: what grows, and who is refused.

use std::time::Duration;

use agent_service::proto::agent_v1::{ChatRequest, chat_request::Input};
use tokio::runtime::Runtime;

use crate::{
    common::{BenchResult, LOG_LEVEL, request},
    kept_turns::{disk_bytes, stored_turns, talk},
    load::Target,
    process::ServerProcess,
    report::{number, quantile},
    server::ServerRole,
    table::Table,
};

pub struct Plan {
    pub callers: usize,
    /// Each is a row.
    pub spans: usize,
    pub span: Duration,
}

pub fn run(runtime: &Runtime, plan: &Plan) -> BenchResult<()> {
    let data = tempfile::tempdir()?;
    let path = data.path().to_str().ok_or("the path is not UTF-8")?;
    let server = ServerProcess::start_with(ServerRole::Defaults, Duration::ZERO, &[], LOG_LEVEL, &[path])?;
    let caption = format!(
        "Embedded Postgres, {} callers in a closed loop, every caller a user who states facts and asks; a row for each {:?}.",
        plan.callers, plan.span
    );
    let columns = [
        "turns a second",
        "refused",
        "first frame, p99, ms",
        "whole turn, p99, ms",
        "resident memory, MiB",
        "disk, kB a turn",
    ];
    let table = Table::new("streams/soak", caption, &columns);
    let cluster = data.path().join("postgres");
    runtime.block_on(async {
        let target = Target::connect(server.address()).await?.with_retrieval();
        for _ in 0..plan.spans {
            let (disk, turns) = (disk_bytes(&cluster)?, stored_turns(data.path()).await?);
            let mut kept = talk(&target, plan.callers, plan.span, statement).await?;
            let (grown, stored) = (disk_bytes(&cluster)? - disk, stored_turns(data.path()).await? - turns);
            table.row([
                number(kept.turns as f64 / plan.span.as_secs_f64()),
                kept.refused.to_string(),
                number(quantile(&mut kept.first_frames, 0.99) * 1e3),
                number(quantile(&mut kept.ends, 0.99) * 1e3),
                number(server.resident_kib() / 1024.0),
                number(grown / stored as f64 / 1e3),
            ]);
        }
        Ok(())
    })
}

fn statement(caller: usize, turn: usize) -> ChatRequest {
    let message = match turn % 4 {
        0 => format!("My name is Ann the {turn}th and I am preparing for an exam in linear algebra."),
        1 => "What is the difference between eigenvalues and eigenvectors?".to_owned(),
        2 => format!("I live in a town with {turn} bridges, and I find proofs by induction hard."),
        _ => "What do you know about my exam?".to_owned(),
    };
    ChatRequest {
        user_id: format!("soaked-{caller}"),
        session_id: format!("session-{}", turn / 40),
        input: Some(Input::Message(message)),
        ..request()
    }
}
