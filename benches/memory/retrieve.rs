//! One user with ever more memories, all of whose vectors are compared.

use std::sync::Arc;

use crate::{
    Outcome,
    corpus::{Corpus, Synthetic},
    measure::{self, SearchTable},
    report::count,
    server::Running,
    store::{Postgres, fill},
};

pub const USER: &str = "ann";
/// More than any user has.
pub const NEVER: (&str, &str) = ("VECTOR_INDEX_THRESHOLD", "1000000000");

/// How much there is to search, and how often.
pub struct Plan {
    /// In ascending order.
    pub sizes: &'static [usize],
    pub queries: usize,
}

/// Measures and prints.
pub async fn run(postgres: &Postgres, plan: &Plan) -> Outcome<()> {
    let database = postgres.database().await?;
    let embedder = Arc::new(Synthetic::clustered());
    let server = Running::start(&database, embedder.clone(), &[NEVER]).await?;
    let mut connection = database.connect().await?;
    let (mut corpus, mut held) = (Corpus::new(1), 0);
    println!("\nOne user, every vector compared, {} queries one after the other", plan.queries);
    let table = SearchTable::new("memories");
    for &size in plan.sizes {
        fill(&server.engine, USER, &mut corpus, size - held).await?;
        held = size;
        database.settle().await?;
        let mut questions = Corpus::new(2);
        let searches: Vec<_> = (0..plan.queries).map(|_| (USER.to_owned(), questions.query())).collect();
        let measured = measure::searches(&mut server.agent(), &mut connection, &embedder, &searches).await?;
        table.rows(&count(size), measured);
    }
    Ok(())
}
