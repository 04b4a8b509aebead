//! One search after the other, each way of searching in turn.

use std::time::Instant;

use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient};
use sqlx::{PgConnection, Row as _};
use tonic::transport::Channel;

use crate::{
    Outcome,
    corpus::Synthetic,
    report::{Table, number, quantile},
};

/// How much meaning counts: words alone, both, vectors alone.
pub const ALPHAS: [f32; 3] = [0.0, 0.5, 1.0];
/// Hits of a search.
const LIMIT: i32 = 10;

/// What a search of vectors costs at least.
const BARE: &str = "
    select memory_id from memory_vectors where user_id = $1 and model = $2
    order by embedding <=> $3::real[]::vector limit 10";

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

/// Who is asked for what, in milliseconds, by each alpha and by a bare search.
#[derive(Debug, Default)]
pub struct Measured {
    pub by_alpha: [Times; ALPHAS.len()],
    pub bare: Times,
}

/// The ids that a search finds, best first.
pub async fn retrieve(
    agent: &mut AgentServiceClient<Channel>,
    user: &str,
    query: &str,
    alpha: f32,
) -> Outcome<Vec<String>> {
    let request = pb::MemoryQuery {
        user_id: user.to_owned(),
        query_text: query.to_owned(),
        limit: LIMIT,
        hybrid_alpha: Some(alpha),
        ..Default::default()
    };
    let found = agent.retrieve_memory(request).await?.into_inner();
    if found.items.is_empty() && alpha > 0.0 {
        return Err(format!("{query:?} finds nothing of {user}").into());
    }
    Ok(found.items.into_iter().map(|item| item.id).collect())
}

/// The ids that a bare search finds.
pub async fn bare(connection: &mut PgConnection, user: &str, vector: &[f32]) -> Outcome<Vec<String>> {
    let query = sqlx::query(BARE).bind(user).bind(format!("synthetic/{}", vector.len())).bind(vector);
    let rows = query.fetch_all(connection).await?;
    Ok(rows.iter().map(|row| row.try_get("memory_id")).collect::<Result<_, _>>()?)
}

/// Measures searches of users, one of every way right after the other, so that what else the machine does weighs on all
/// alike. Each way is at another of the searches meanwhile: who searches for what was just searched for finds it in memory.
pub async fn searches(
    agent: &mut AgentServiceClient<Channel>,
    connection: &mut PgConnection,
    embedder: &Synthetic,
    searches: &[(String, String)],
) -> Outcome<Measured> {
    check(agent, connection, embedder, &searches[..searches.len().div_ceil(10)]).await?;
    let mut measured = Measured::default();
    let ways = ALPHAS.len() + 1;
    for number in 0..searches.len() {
        let search_of = |way: usize| &searches[(number + way * searches.len() / ways) % searches.len()];
        for (way, (alpha, times)) in ALPHAS.into_iter().zip(&mut measured.by_alpha).enumerate() {
            let (user, query) = search_of(way);
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

/// Checks that the service finds near a query what is nearest, and that words find something. Nothing is measured, and
/// everything is warm then.
async fn check(
    agent: &mut AgentServiceClient<Channel>,
    connection: &mut PgConnection,
    embedder: &Synthetic,
    searches: &[(String, String)],
) -> Outcome<()> {
    let mut by_words = 0;
    for (user, query) in searches {
        by_words += retrieve(agent, user, query, 0.0).await?.len();
        retrieve(agent, user, query, 0.5).await?;
        let found = retrieve(agent, user, query, 1.0).await?;
        let nearest = bare(connection, user, &embedder.vector(query)).await?;
        if found != nearest {
            return Err(format!("{user} finds {found:?} near {query:?} and not {nearest:?}").into());
        }
    }
    if by_words == 0 {
        return Err("no word finds anything".into());
    }
    Ok(())
}

/// A table of searches.
pub struct SearchTable(Table);

impl SearchTable {
    /// Prints the head.
    pub fn new(first: &str) -> Self {
        Self(Table::new(&[
            first,
            "alpha",
            "RetrieveMemory p50, ms",
            "p99",
            "bare kNN p50, ms",
            "p99",
            "ratio p50",
            "ratio p99",
        ]))
    }

    /// Prints the rows of a measurement.
    pub fn rows(&self, what: &str, mut measured: Measured) {
        let (bare_p50, bare_p99) = (measured.bare.quantile(0.5), measured.bare.quantile(0.99));
        for (alpha, times) in ALPHAS.into_iter().zip(&mut measured.by_alpha) {
            let (p50, p99) = (times.quantile(0.5), times.quantile(0.99));
            let numbers = [p50, p99, bare_p50, bare_p99, p50 / bare_p50, p99 / bare_p99].map(number);
            self.0.row([what.to_owned(), alpha.to_string()].into_iter().chain(numbers));
        }
    }
}
