//! The throughput of writes.

use std::{sync::Arc, time::Instant};

use agent_service::{embedding::Embedder, proto::agent_v1 as pb};

use crate::{
    BenchResult,
    corpus::{Corpus, SyntheticEmbedder},
    measure::Times,
    report::{Table, count, number},
    server::BenchServer,
    store::Postgres,
};

/// Memories a request with a local model.
const MODEL_BATCH: usize = 100;

pub struct Plan {
    /// Memories a request, and number of requests.
    pub batches: &'static [(usize, usize)],
    /// Requests of one memory.
    pub singles: usize,
    /// Memories that a local model embeds.
    pub by_model: usize,
}

pub async fn run(postgres: &Postgres, plan: &Plan) -> BenchResult<()> {
    let columns = ["vectors", "memories a request", "requests", "memories a second", "request, p50", "p99"];
    let table = Table::new("memory/write", "One user, sequential requests; milliseconds.", &columns);
    let synthetic: Arc<dyn Embedder> = Arc::new(SyntheticEmbedder::clustered());
    for (size, requests) in [(1, plan.singles)].into_iter().chain(plan.batches.iter().copied()) {
        let database = postgres.database().await?;
        let server = BenchServer::start(&database, synthetic.clone(), &[]).await?;
        measure(&table, &server, "synthetic", size, requests).await?;
    }
    match std::env::var("EMBEDDING_MODEL_DIR") {
        Ok(model) => {
            let database = postgres.database().await?;
            let variables = [("EMBEDDING_PROVIDER", "local"), ("EMBEDDING_MODEL_DIR", model.as_str())];
            let server = BenchServer::configured(&database, &variables).await?;
            let batch = MODEL_BATCH.min(plan.by_model);
            measure(&table, &server, "local model", batch, plan.by_model / batch).await?;
        }
        Err(_) => println!("\nEMBEDDING_MODEL_DIR is not set: the local model is not measured"),
    }
    Ok(())
}

async fn measure(table: &Table, server: &BenchServer, vectors: &str, size: usize, requests: usize) -> BenchResult<()> {
    let (mut corpus, mut memory) = (Corpus::new(4), server.memory());
    let mut times = Times::default();
    // The first request, which connects, is not counted.
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
