//! How fast memories are written.

use std::{sync::Arc, time::Instant};

use agent_service::{embedding::Embedder, proto::agent_v1 as pb};

use crate::{
    Outcome,
    corpus::{Corpus, Synthetic},
    measure::Times,
    report::{Table, count, number},
    server::Running,
    store::Postgres,
};

/// Memories of one request where a model embeds them.
const MODEL_BATCH: usize = 100;

/// How much is written.
pub struct Plan {
    /// Memories of a request, and how many requests.
    pub batches: &'static [(usize, usize)],
    /// Requests of one memory.
    pub singles: usize,
    /// Memories that a model embeds.
    pub by_model: usize,
}

/// Measures and prints.
pub async fn run(postgres: &Postgres, plan: &Plan) -> Outcome<()> {
    println!("\nAddMemories of one user, one request after the other");
    let table = Table::new(&["vectors", "memories a request", "requests", "rows a second", "request p50, ms", "p99"]);
    let made_up: Arc<dyn Embedder> = Arc::new(Synthetic::clustered());
    for (size, requests) in [(1, plan.singles)].into_iter().chain(plan.batches.iter().copied()) {
        let database = postgres.database().await?;
        let server = Running::start(&database, made_up.clone(), &[]).await?;
        measure(&table, &server, "made up", size, requests).await?;
    }
    match std::env::var("EMBEDDING_MODEL_DIR") {
        Ok(model) => {
            let database = postgres.database().await?;
            let variables = [("EMBEDDING_PROVIDER", "local"), ("EMBEDDING_MODEL_DIR", model.as_str())];
            let server = Running::configured(&database, &variables).await?;
            let batch = MODEL_BATCH.min(plan.by_model);
            measure(&table, &server, "local model", batch, plan.by_model / batch).await?;
        }
        Err(_) => println!("\nEMBEDDING_MODEL_DIR is not set: nothing is measured with a model"),
    }
    Ok(())
}

async fn measure(table: &Table, server: &Running, vectors: &str, size: usize, requests: usize) -> Outcome<()> {
    let (mut corpus, mut memory) = (Corpus::new(4), server.memory());
    let mut times = Times::default();
    // The first request connects, and counts for nothing.
    for number in 0..=requests {
        let memories = (0..size).map(|_| pb::MemoryInput { content: corpus.content(), ..Default::default() });
        let request = pb::AddMemoriesRequest { user_id: "ann".to_owned(), memories: memories.collect() };
        let began = Instant::now();
        let added = memory.add_memories(request).await?.into_inner().added;
        if number > 0 {
            times.add(began);
        }
        if usize::try_from(added)? != size {
            return Err(format!("{added} of {size} memories were written").into());
        }
    }
    let rows = (size * requests) as f64 / (times.0.iter().sum::<f64>() / 1e3);
    let times = [rows, times.quantile(0.5), times.quantile(0.99)].map(number);
    table.row([vectors.to_owned(), count(size), count(requests)].into_iter().chain(times));
    Ok(())
}
