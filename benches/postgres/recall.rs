use std::sync::atomic::{AtomicUsize, Ordering};

use agent_service::{identity::UserId, proto::agent_v1 as pb};

use crate::{
    BenchResult,
    corpus::Corpus,
    counting_proxy::CountingProxy,
    database::Postgres,
    service::BenchService,
    work::{Operation, measure},
};

const SIZES: [(usize, &str); 2] = [(200, "200 memories"), (5_000, "5,000 memories")];
const BATCH: usize = 1_000;
const USER: &str = "ann";

/// Hybrid recalls, each with another query.
struct Recalls {
    queries: Vec<String>,
}

impl Operation for Recalls {
    async fn repeat(&self, service: &BenchService, first: usize, count: usize) -> BenchResult<()> {
        let (mut agent, found) = (service.agent(), AtomicUsize::new(0));
        for number in first..first + count {
            let request = pb::MemoryQuery {
                user_id: USER.to_owned(),
                query_text: self.queries[number % self.queries.len()].clone(),
                limit: 10,
                ..Default::default()
            };
            let result = agent.retrieve_memory(request).await?;
            if result.metadata().contains_key("x-retrieval") {
                return Err("only a part of the retrievers answered".into());
            }
            found.fetch_add(result.into_inner().items.len(), Ordering::Relaxed);
        }
        if found.into_inner() == 0 { Err("nothing was found".into()) } else { Ok(()) }
    }
}

pub async fn run(postgres: &Postgres) -> BenchResult<()> {
    let user = UserId::parse("user_id", USER)?;
    for (memories, size) in SIZES {
        let database = format!("memories_{memories}");
        postgres.create(&database).await?;
        let proxy = CountingProxy::start(postgres.socket()).await?;
        let service = BenchService::start(&proxy, &database).await?;
        let mut corpus = Corpus::new(1);
        for stored in (0..memories).step_by(BATCH) {
            service.engine.add(&user, corpus.memories(BATCH.min(memories - stored))).await?;
        }
        service.stop().await?;
        drop(proxy);
        let mut corpus = Corpus::new(2);
        let recalls = Recalls { queries: (0..200).map(|_| corpus.query()).collect() };
        measure(postgres, &database, &recalls, ("recall", size)).await?;
    }
    Ok(())
}
