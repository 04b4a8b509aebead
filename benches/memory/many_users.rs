//! Many users with equally many memories, written in turns.

use std::sync::Arc;

use sqlx::PgConnection;

use crate::{
    BenchResult,
    corpus::{Corpus, Random, SyntheticEmbedder},
    measure::{self, SearchTable},
    report::count,
    retrieve::INDEX_NEVER,
    server::BenchServer,
    store::{Postgres, fill},
};

const FIRST: &str = "user-0";
/// Memories of the first user that are copied to all others at a time, so that the rows of a user are scattered over pages as
/// if written over time.
const COPY_BATCH: usize = 10;

/// Copies memories $1 of the first user to the users 1 to $2.
const COPY_MEMORIES: [&str; 2] = [
    "insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, document_id, created_at)
     select 'user-' || number, id, content, content_digest, source_type, tags, metadata, document_id, created_at
     from memories cross join generate_series(1, $2) as number where user_id = 'user-0' and id = any($1)",
    "insert into memory_vectors (user_id, model, memory_id, digest, embedding)
     select 'user-' || number, model, memory_id, digest, embedding
     from memory_vectors cross join generate_series(1, $2) as number where user_id = 'user-0' and memory_id = any($1)",
];
/// Copies the lexical index of the first user to the user $1.
const COPY_INDEX: [&str; 3] = [
    "insert into memory_postings (user_id, term, memory_id, frequency, length)
     select 'user-' || $1, term, memory_id, frequency, length from memory_postings where user_id = 'user-0'",
    "insert into memory_terms (user_id, term, memories)
     select 'user-' || $1, term, memories from memory_terms where user_id = 'user-0'",
    "insert into memory_users (user_id, memories, total_length, tokenizer, has_half_vectors)
     select 'user-' || $1, memories, total_length, tokenizer, true from memory_users where user_id = 'user-0'",
];

pub struct Plan {
    pub users: usize,
    /// Per user.
    pub memories: usize,
    pub queries: usize,
}

pub async fn run(postgres: &Postgres, plan: &Plan) -> BenchResult<()> {
    let database = postgres.database().await?;
    let embedder = Arc::new(SyntheticEmbedder::clustered());
    let server = BenchServer::start(&database, embedder.clone(), &[INDEX_NEVER]).await?;
    let mut connection = database.connect().await?;
    fill(&server.engine, FIRST, &mut Corpus::new(1), plan.memories).await?;
    copy(&mut connection, plan.users - 1).await?;
    database.settle().await?;
    let (mut questions, mut random) = (Corpus::new(2), Random::new(3));
    let searches: Vec<_> =
        (0..plan.queries).map(|_| (format!("user-{}", random.next() % plan.users as u64), questions.query())).collect();
    let measured = measure::searches(&mut server.agent(), &mut connection, &embedder, &searches).await?;
    let caption = format!("{} queries, each of a random user; milliseconds.", plan.queries);
    SearchTable::new("memory/many-users", caption)
        .rows(&format!("{} × {}", count(plan.users), count(plan.memories)), measured);
    Ok(())
}

/// Copies the data of the first user to others. Through the service it would take an hour.
async fn copy(connection: &mut PgConnection, others: usize) -> BenchResult<()> {
    let others = i32::try_from(others)?;
    let ids: Vec<String> =
        sqlx::query_scalar("select id from memories where user_id = 'user-0'").fetch_all(&mut *connection).await?;
    for ids in ids.chunks(COPY_BATCH) {
        for statement in COPY_MEMORIES {
            sqlx::query(statement).bind(ids).bind(others).execute(&mut *connection).await?;
        }
    }
    for number in 1..=others {
        for statement in COPY_INDEX {
            sqlx::query(statement).bind(number.to_string()).execute(&mut *connection).await?;
        }
    }
    Ok(())
}
