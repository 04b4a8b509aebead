//! One user with a growing number of memories, by exact kNN: queries of common, of usual and of rare words.

use std::sync::Arc;

use crate::{
    BenchResult,
    corpus::{Corpus, SyntheticEmbedder},
    measure::{self, SearchTable},
    report::count,
    server::BenchServer,
    store::{Postgres, fill},
};

pub const USER: &str = "ann";
pub const INDEX_NEVER: (&str, &str) = ("VECTOR_INDEX_THRESHOLD", "1000000000");

type MakeQuery = fn(&mut Corpus) -> String;

const QUERIES: [(&str, MakeQuery); 3] = [
    ("six words", Corpus::query),
    ("five words that each stand in 14 %", Corpus::common_query),
    ("five rare words", Corpus::rare_query),
];

pub struct Plan {
    pub sizes: &'static [usize],
    pub queries: usize,
}

pub async fn run(postgres: &Postgres, plan: &Plan) -> BenchResult<()> {
    let database = postgres.database().await?;
    let embedder = Arc::new(SyntheticEmbedder::clustered());
    let server = BenchServer::start(&database, embedder.clone(), &[INDEX_NEVER]).await?;
    let mut connection = database.connect().await?;
    let (mut corpus, mut stored) = (Corpus::with_common_words(1), 0);
    let caption = format!("One user, exact kNN, {} sequential queries of each kind; milliseconds.", plan.queries);
    let table = SearchTable::new("memory/retrieve", caption);
    for &size in plan.sizes {
        fill(&server.engine, USER, &mut corpus, size - stored).await?;
        stored = size;
        database.settle().await?;
        for (words, query) in QUERIES {
            let mut questions = Corpus::new(2);
            let searches: Vec<_> = (0..plan.queries).map(|_| (USER.to_owned(), query(&mut questions))).collect();
            let measured = measure::searches(&mut server.agent(), &mut connection, &embedder, &searches).await?;
            table.rows(&format!("{}, {words}", count(size)), measured);
        }
    }
    Ok(())
}
