//! Sequential searches, by each kind of search in turn.

use std::time::Instant;

use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient};
use pgvector::Vector;
use sqlx::{PgConnection, Row as _};
use tonic::transport::Channel;

use crate::{
    BenchResult,
    corpus::SyntheticEmbedder,
    report::{Table, number, quantile},
};

/// Weights of the vector retriever: lexical, hybrid, vector.
pub const ALPHAS: [f32; 3] = [0.0, 0.5, 1.0];
const LIMIT: i32 = 10;

/// The minimal vector search.
const BARE: &str = "
    select memory_id from memory_vectors where user_id = $1 and model = $2
    order by embedding <=> $3 limit 10";

const DISTANCES: &str = "
    select embedding <=> $3 as distance from memory_vectors
    where user_id = $1 and model = $2 and memory_id = any($4) order by array_position($4, memory_id)";

/// Similarities are `f32`: the order of memories whose distances differ by less is open.
const DISTANCE_PRECISION: f64 = 1e-6;

/// Times in milliseconds.
#[derive(Debug, Default)]
pub struct Times(pub Vec<f64>);

impl Times {
    pub fn add(&mut self, since: Instant) {
        self.0.push(since.elapsed().as_secs_f64() * 1e3);
    }

    pub fn quantile(&mut self, share: f64) -> f64 {
        quantile(&mut self.0, share)
    }
}

#[derive(Debug, Default)]
pub struct Measurement {
    pub by_alpha: [Times; ALPHAS.len()],
    pub bare: Times,
}

/// The ids of the hits, best first.
pub async fn retrieve(
    agent: &mut AgentServiceClient<Channel>,
    user: &str,
    query: &str,
    alpha: f32,
) -> BenchResult<Vec<String>> {
    let request = pb::MemoryQuery {
        user_id: user.to_owned(),
        query_text: query.to_owned(),
        limit: LIMIT,
        hybrid_alpha: Some(alpha),
        ..Default::default()
    };
    let found = agent.retrieve_memory(request).await?.into_inner();
    if found.items.is_empty() && alpha > 0.0 {
        return Err(format!("{query:?} finds no memory of {user}").into());
    }
    Ok(found.items.into_iter().map(|item| item.id).collect())
}

pub async fn bare(connection: &mut PgConnection, user: &str, vector: &[f32]) -> BenchResult<Vec<String>> {
    let query = sqlx::query(BARE).bind(user).bind(format!("synthetic/{}", vector.len()));
    let query = query.bind(Vector::from(vector.to_vec()));
    let rows = query.fetch_all(connection).await?;
    Ok(rows.iter().map(|row| row.try_get("memory_id")).collect::<Result<_, _>>()?)
}

async fn distances(
    connection: &mut PgConnection,
    user: &str,
    vector: &[f32],
    memory_ids: &[String],
) -> BenchResult<Vec<f64>> {
    let query = sqlx::query_scalar(DISTANCES).bind(user).bind(format!("synthetic/{}", vector.len()));
    Ok(query.bind(Vector::from(vector.to_vec())).bind(memory_ids).fetch_all(connection).await?)
}

/// Measures searches, one of each kind directly after the other, so that other load on the machine affects all kinds alike.
/// The kinds are at different positions of `searches`: a repeated search would find its pages cached.
pub async fn searches(
    agent: &mut AgentServiceClient<Channel>,
    connection: &mut PgConnection,
    embedder: &SyntheticEmbedder,
    searches: &[(String, String)],
) -> BenchResult<Measurement> {
    check(agent, connection, embedder, &searches[..searches.len().div_ceil(10).max(20).min(searches.len())]).await?;
    let mut measured = Measurement::default();
    let kinds = ALPHAS.len() + 1;
    for number in 0..searches.len() {
        let search_of = |kind: usize| &searches[(number + kind * searches.len() / kinds) % searches.len()];
        for (kind, (alpha, times)) in ALPHAS.into_iter().zip(&mut measured.by_alpha).enumerate() {
            let (user, query) = search_of(kind);
            let began = Instant::now();
            retrieve(agent, user, query, alpha).await?;
            times.add(began);
        }
        let (user, query) = search_of(ALPHAS.len());
        let vector = embedder.vector(query);
        let began = Instant::now();
        bare(connection, user, &vector).await?;
        measured.bare.add(began);
    }
    Ok(measured)
}

/// Checks that the vector retriever returns the exact kNN and that the lexical retriever finds anything. Also warms up caches.
async fn check(
    agent: &mut AgentServiceClient<Channel>,
    connection: &mut PgConnection,
    embedder: &SyntheticEmbedder,
    searches: &[(String, String)],
) -> BenchResult<()> {
    let mut lexical_hits = 0;
    for (user, query) in searches {
        lexical_hits += retrieve(agent, user, query, 0.0).await?.len();
        retrieve(agent, user, query, 0.5).await?;
        let found = retrieve(agent, user, query, 1.0).await?;
        let vector = embedder.vector(query);
        let nearest = bare(connection, user, &vector).await?;
        let expected = distances(connection, user, &vector, &nearest).await?;
        let actual = distances(connection, user, &vector, &found).await?;
        let is_equal = |(one, other): (&f64, &f64)| (one - other).abs() < DISTANCE_PRECISION;
        if actual.len() != expected.len() || !actual.iter().zip(&expected).all(is_equal) {
            return Err(format!("the nearest memories of {user} to {query:?} are {nearest:?}, found {found:?}").into());
        }
    }
    if lexical_hits == 0 {
        return Err("the lexical retriever finds nothing".into());
    }
    Ok(())
}

pub struct SearchTable(Table);

impl SearchTable {
    pub fn new(id: &'static str, caption: String) -> Self {
        let columns = ["memories", "alpha", "service, p50", "p99", "bare kNN, p50", "p99", "ratio, p50", "p99"];
        Self(Table::new(id, caption, &columns))
    }

    pub fn rows(&self, what: &str, mut measured: Measurement) {
        let (bare_p50, bare_p99) = (measured.bare.quantile(0.5), measured.bare.quantile(0.99));
        for (alpha, times) in ALPHAS.into_iter().zip(&mut measured.by_alpha) {
            let (p50, p99) = (times.quantile(0.5), times.quantile(0.99));
            let numbers = [p50, p99, bare_p50, bare_p99, p50 / bare_p50, p99 / bare_p99].map(number);
            self.0.row([what.to_owned(), alpha.to_string()].into_iter().chain(numbers));
        }
    }
}
