//! From how many memories on the HNSW index is worth it, and what it misses.

use std::{sync::Arc, time::Instant};

use sqlx::{AssertSqlSafe, Executor as _};

use crate::{
    Outcome,
    corpus::{Corpus, Synthetic},
    measure::{Times, retrieve},
    report::{Table, count, number},
    retrieve::{NEVER, USER},
    server::Running,
    store::{Database, Postgres, fill},
};

/// The least that can be configured: everybody here is searched by the index.
const ALWAYS: (&str, &str) = ("VECTOR_INDEX_THRESHOLD", "1000");
/// Hybrid, and vectors alone.
const ALPHAS: [f32; 2] = [0.5, 1.0];

/// The index that the service has built.
const INDEX: &str = "
    select indexrelid::regclass::text
    from pg_index join pg_class on pg_class.oid = indexrelid join pg_am on pg_am.oid = relam
    where amname = 'hnsw' and indisvalid";

/// How much there is to search, and how often.
pub struct Plan {
    /// In ascending order.
    pub sizes: &'static [usize],
    /// Other users, who together have as much as the largest one.
    pub others: usize,
    pub queries: usize,
    /// What the index has to find of what there is, 0 to 1, where vectors have subjects.
    pub least_recall: f64,
}

/// Measures and prints.
pub async fn run(postgres: &Postgres, plan: &Plan) -> Outcome<()> {
    println!(
        "\nBy the HNSW index and without it, {} queries; recall is the share of the exact ten that the index finds",
        plan.queries
    );
    let table = Table::new(&[
        "vectors",
        "memories",
        "of others",
        "build, s",
        "alpha",
        "exact p50, ms",
        "p99",
        "HNSW p50, ms",
        "p99",
        "exact / HNSW",
        "recall@10",
    ]);
    let Some(&largest) = plan.sizes.last() else { return Ok(()) };

    let store = Store::create(postgres, Synthetic::clustered()).await?;
    let (mut corpus, mut held) = (Corpus::new(1), 0);
    for &size in plan.sizes {
        fill(&store.exact.engine, USER, &mut corpus, size - held).await?;
        held = size;
        store.measure(&table, plan, &Held { vectors: "of subjects", memories: size, of_others: 0 }).await?;
    }
    for number in 0..plan.others {
        fill(&store.exact.engine, &format!("other-{number}"), &mut corpus, largest / plan.others).await?;
    }
    store.measure(&table, plan, &Held { vectors: "of subjects", memories: largest, of_others: largest }).await?;
    drop(store);

    let store = Store::create(postgres, Synthetic::scattered()).await?;
    fill(&store.exact.engine, USER, &mut Corpus::new(1), largest).await?;
    let plan = Plan { least_recall: 0.0, ..*plan };
    store.measure(&table, &plan, &Held { vectors: "in all directions", memories: largest, of_others: 0 }).await
}

/// A database, with a server that uses the index and one that does not.
struct Store {
    database: Database,
    exact: Running,
    indexed: Running,
}

/// What a database holds, as the table tells it.
struct Held {
    vectors: &'static str,
    memories: usize,
    of_others: usize,
}

impl Store {
    async fn create(postgres: &Postgres, embedder: Synthetic) -> Outcome<Self> {
        let (database, embedder) = (postgres.database().await?, Arc::new(embedder));
        let exact = Running::start(&database, embedder.clone(), &[NEVER]).await?;
        let indexed = Running::start(&database, embedder, &[ALWAYS]).await?;
        Ok(Self { database, exact, indexed })
    }

    /// Builds the index, measures both ways, and takes the index away, so that what follows is written faster.
    async fn measure(&self, table: &Table, plan: &Plan, held: &Held) -> Outcome<()> {
        self.database.settle().await?;
        let began = Instant::now();
        self.indexed.engine.build_vector_index(&self.indexed.database).await?;
        let build = began.elapsed().as_secs_f64();
        let mut connection = self.database.connect().await?;
        let name: String = sqlx::query_scalar(INDEX).fetch_one(&mut connection).await?;
        for alpha in ALPHAS {
            let mut compared = self.compare(plan.queries, alpha).await?;
            if compared.recall < plan.least_recall {
                return Err(format!("the index finds {} of what there is", compared.recall).into());
            }
            let [exact, indexed] = &mut compared.times;
            let (exact_p50, indexed_p50) = (exact.quantile(0.5), indexed.quantile(0.5));
            let numbers =
                [exact_p50, exact.quantile(0.99), indexed_p50, indexed.quantile(0.99), exact_p50 / indexed_p50];
            let told = [
                held.vectors.to_owned(),
                count(held.memories),
                count(held.of_others),
                number(build),
                alpha.to_string(),
            ];
            let recall = format!("{:.3}", compared.recall);
            table.row(told.into_iter().chain(numbers.map(number)).chain([recall]));
        }
        connection.execute(AssertSqlSafe(format!("drop index {name}"))).await?;
        Ok(())
    }

    /// Asks both servers the same, after a tenth that is not counted.
    async fn compare(&self, queries: usize, alpha: f32) -> Outcome<Compared> {
        let mut agents = [self.exact.agent(), self.indexed.agent()];
        let (mut questions, mut times) = (Corpus::new(2), <[Times; 2]>::default());
        let (mut found, mut wanted) = (0, 0);
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
            wanted += exact.len();
            found += exact.iter().filter(|id| indexed.contains(id)).count();
        }
        Ok(Compared { times, recall: found as f64 / wanted as f64 })
    }
}

/// Searches by comparing every vector, and by the index.
struct Compared {
    times: [Times; 2],
    recall: f64,
}
