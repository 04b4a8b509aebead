//! The size from which the HNSW index is faster than exact kNN, and its recall.

use std::{sync::Arc, time::Instant};

use sqlx::{AssertSqlSafe, Executor as _};

use crate::{
    BenchResult,
    corpus::{Corpus, SyntheticEmbedder},
    measure::{Times, retrieve},
    report::{Table, count, number},
    retrieve::{INDEX_NEVER, USER},
    server::BenchServer,
    store::{Database, Postgres, fill},
};

/// The smallest valid threshold: all users are searched by the index.
const INDEX_ALWAYS: (&str, &str) = ("VECTOR_INDEX_THRESHOLD", "1000");
/// Hybrid, and the vector retriever alone.
const ALPHAS: [f32; 2] = [0.5, 1.0];

const INDEX: &str = "
    select indexrelid::regclass::text
    from pg_index join pg_class on pg_class.oid = indexrelid join pg_am on pg_am.oid = relam
    where amname = 'hnsw' and indisvalid";

pub struct Plan {
    pub sizes: &'static [usize],
    /// Other users, who together have as many memories as the largest size.
    pub others: usize,
    pub queries: usize,
    /// The required recall for clustered vectors.
    pub min_recall: f64,
}

pub async fn run(postgres: &Postgres, plan: &Plan) -> BenchResult<()> {
    let caption = format!(
        "{} queries. recall@10 is the share of the exact top ten that the HNSW index finds; times are in milliseconds.",
        plan.queries
    );
    let columns = [
        "vectors",
        "memories",
        "of others",
        "build, s",
        "alpha",
        "exact, p50",
        "p99",
        "index, p50",
        "p99",
        "exact / index",
        "recall@10",
    ];
    let table = Table::new("memory/index", caption, &columns);
    let Some(&largest) = plan.sizes.last() else { return Ok(()) };

    let store = Store::create(postgres, SyntheticEmbedder::clustered()).await?;
    let (mut corpus, mut held) = (Corpus::new(1), 0);
    for &size in plan.sizes {
        fill(&store.exact.engine, USER, &mut corpus, size - held).await?;
        held = size;
        store.measure(&table, plan, &Contents { vectors: "clustered", memories: size, of_others: 0 }).await?;
    }
    for number in 0..plan.others {
        fill(&store.exact.engine, &format!("other-{number}"), &mut corpus, largest / plan.others).await?;
    }
    store.measure(&table, plan, &Contents { vectors: "clustered", memories: largest, of_others: largest }).await?;
    drop(store);

    let store = Store::create(postgres, SyntheticEmbedder::scattered()).await?;
    fill(&store.exact.engine, USER, &mut Corpus::new(1), largest).await?;
    let plan = Plan { min_recall: 0.0, ..*plan };
    store.measure(&table, &plan, &Contents { vectors: "random", memories: largest, of_others: 0 }).await
}

struct Store {
    database: Database,
    exact: BenchServer,
    indexed: BenchServer,
}

struct Contents {
    vectors: &'static str,
    memories: usize,
    of_others: usize,
}

impl Store {
    async fn create(postgres: &Postgres, embedder: SyntheticEmbedder) -> BenchResult<Self> {
        let (database, embedder) = (postgres.database().await?, Arc::new(embedder));
        let exact = BenchServer::start(&database, embedder.clone(), &[INDEX_NEVER]).await?;
        let indexed = BenchServer::start(&database, embedder, &[INDEX_ALWAYS]).await?;
        Ok(Self { database, exact, indexed })
    }

    /// Builds the index, measures both servers, and drops the index so that later writes are faster.
    async fn measure(&self, table: &Table, plan: &Plan, contents: &Contents) -> BenchResult<()> {
        self.database.settle().await?;
        let began = Instant::now();
        self.indexed.engine.build_vector_index(&self.indexed.database).await?;
        let build = began.elapsed().as_secs_f64();
        let mut connection = self.database.connect().await?;
        let name: String = sqlx::query_scalar(INDEX).fetch_one(&mut connection).await?;
        for alpha in ALPHAS {
            let mut comparison = self.compare(plan.queries, alpha).await?;
            if comparison.recall < plan.min_recall {
                return Err(format!("the recall of the index is only {}", comparison.recall).into());
            }
            let [exact, indexed] = &mut comparison.times;
            let (exact_p50, indexed_p50) = (exact.quantile(0.5), indexed.quantile(0.5));
            let numbers =
                [exact_p50, exact.quantile(0.99), indexed_p50, indexed.quantile(0.99), exact_p50 / indexed_p50];
            let cells = [
                contents.vectors.to_owned(),
                count(contents.memories),
                count(contents.of_others),
                number(build),
                alpha.to_string(),
            ];
            let recall = format!("{:.3}", comparison.recall);
            table.row(cells.into_iter().chain(numbers.map(number)).chain([recall]));
        }
        connection.execute(AssertSqlSafe(format!("drop index {name}"))).await?;
        Ok(())
    }

    /// Sends the same queries to both servers, after a warm-up of a tenth.
    async fn compare(&self, queries: usize, alpha: f32) -> BenchResult<Comparison> {
        let mut agents = [self.exact.agent(), self.indexed.agent()];
        let (mut questions, mut times) = (Corpus::new(2), <[Times; 2]>::default());
        let (mut found, mut expected) = (0, 0);
        let warm_up = queries.div_ceil(10);
        for number in 0..warm_up + queries {
            let (query, mut hits) = (questions.query(), <[Vec<String>; 2]>::default());
            for ((agent, times), hits) in agents.iter_mut().zip(&mut times).zip(&mut hits) {
                let began = Instant::now();
                *hits = retrieve(agent, USER, &query, alpha).await?;
                if number >= warm_up {
                    times.add(began);
                }
            }
            let [exact, indexed] = hits;
            expected += exact.len();
            found += exact.iter().filter(|id| indexed.contains(id)).count();
        }
        Ok(Comparison { times, recall: found as f64 / expected as f64 })
    }
}

struct Comparison {
    times: [Times; 2],
    recall: f64,
}
