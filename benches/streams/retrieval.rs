//! Turns with retrieval: each embeds its question and searches the memories of its user.

use std::time::Duration;

use agent_service::proto::agent_v1::{
    self as pb, agent_service_client::AgentServiceClient, chat_response::Content,
    memory_service_client::MemoryServiceClient,
};
use tokio::{runtime::Runtime, time::timeout};

use crate::{
    common::{BenchResult, LOG_LEVEL, STALL_TIMEOUT, request},
    load::{self, LoadReport, Target},
    process::ServerProcess,
    report::{number, quantile},
    server::ServerRole,
    table::Table,
};

/// Subjects of the memories; the question is about the first.
const SUBJECTS: [&str; 10] = [
    "eigenvalues and eigenvectors",
    "the chain rule",
    "past tenses in French",
    "the causes of the First World War",
    "balancing redox reactions",
    "recursion in Python",
    "the Krebs cycle",
    "conditional probability",
    "essay structure",
    "Newton's second law",
];

pub struct Plan {
    pub users: usize,
    /// Per user.
    pub memories: usize,
    /// Callers of the closed loop; the users take turns.
    pub callers: usize,
    pub span: Duration,
}

pub fn run(runtime: &Runtime, plan: &Plan) -> BenchResult<()> {
    let server = ServerProcess::start(ServerRole::Retrieval, Duration::ZERO, &[], LOG_LEVEL)?;
    let mut report =
        runtime.block_on(async { timeout(plan.span + STALL_TIMEOUT, measure(plan, server.address())).await? })?;
    let caption = format!(
        "Retrieval on, {} callers in a closed loop for {:?}, {} users with {} memories each, embedded Postgres.",
        plan.callers, plan.span, plan.users, plan.memories
    );
    let table = Table::new("streams/retrieval", caption, &["measured", "service"]);
    let line = |what: &str, value| table.row([what.to_owned(), number(value)]);
    line("turns a second", report.turns as f64 / report.elapsed.as_secs_f64());
    line("first frame, p99, ms", quantile(&mut report.first_frames, 0.99) * 1e3);
    line("whole turn, p50, ms", quantile(&mut report.ends, 0.5) * 1e3);
    line("whole turn, p99, ms", quantile(&mut report.ends, 0.99) * 1e3);
    Ok(())
}

async fn measure(plan: &Plan, address: &str) -> BenchResult<LoadReport> {
    let target = Target::connect(address).await?.with_retrieval();
    let mut memory = MemoryServiceClient::new(target.channel(0));
    for user in 0..plan.users {
        let memories = (0..plan.memories).map(|number| pb::MemoryInput {
            content: format!(
                "In week {number} I worked on {} and wrote down what I did not understand, with an example of my own.",
                SUBJECTS[number % SUBJECTS.len()]
            ),
            ..Default::default()
        });
        let request = pb::AddMemoriesRequest { user_id: user_id(user), memories: memories.collect() };
        memory.add_memories(request).await?;
    }
    let ask = |user| pb::ChatRequest { user_id: user_id(user), ..request() };
    // Without a hit the measurement would be meaningless.
    let mut frames = AgentServiceClient::new(target.channel(0)).stream_chat(ask(0)).await?.into_inner();
    let mut recalled = false;
    while let Some(frame) = frames.message().await? {
        recalled |= matches!(frame.content, Some(Content::Citations(_)));
    }
    if !recalled {
        return Err("nothing was recalled".into());
    }
    let requests = || (0..plan.callers).map(|caller| ask(caller % plan.users));
    load::saturate_with(&target, requests(), plan.span / 5).await?;
    load::saturate_with(&target, requests(), plan.span).await
}

fn user_id(number: usize) -> String {
    format!("user-{number}")
}
