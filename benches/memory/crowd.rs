//! Many users with as many memories each, who have written in turn.

use std::sync::Arc;

use sqlx::PgConnection;

use crate::{
    Outcome,
    corpus::{Corpus, Numbers, Synthetic},
    measure::{self, SearchTable},
    report::count,
    retrieve::NEVER,
    server::Running,
    store::{Postgres, fill},
};

const FIRST: &str = "user-0";
/// Memories of one user that are copied to all others at once, so that a user's rows lie scattered as if written over time.
const AT_ONCE: usize = 10;

/// Copies rows of the first user to the users from 1 to $2. What lies scattered is what a search reads rows of; $1 are ids
/// of memories.
const SCATTERED: [&str; 2] = [
    "insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, document_id, created_at)
     select 'user-' || number, id, content, content_digest, source_type, tags, metadata, document_id, created_at
     from memories cross join generate_series(1, $2) as number where user_id = 'user-0' and id = any($1)",
    "insert into memory_vectors (user_id, model, memory_id, digest, embedding)
     select 'user-' || number, model, memory_id, digest, embedding
     from memory_vectors cross join generate_series(1, $2) as number where user_id = 'user-0' and memory_id = any($1)",
];
/// Copies the keyword index of the first user to the user $1.
const OF_USER: [&str; 3] = [
    "insert into memory_postings (user_id, term, memory_id, frequency, length)
     select 'user-' || $1, term, memory_id, frequency, length from memory_postings where user_id = 'user-0'",
    "insert into memory_terms (user_id, term, memories)
     select 'user-' || $1, term, memories from memory_terms where user_id = 'user-0'",
    "insert into memory_users (user_id, memories, total_length, tokenizer)
     select 'user-' || $1, memories, total_length, tokenizer from memory_users where user_id = 'user-0'",
];

/// How much there is to search, and how often.
pub struct Plan {
    pub users: usize,
    /// Of each user.
    pub memories: usize,
    pub queries: usize,
}

/// Measures and prints.
pub async fn run(postgres: &Postgres, plan: &Plan) -> Outcome<()> {
    let database = postgres.database().await?;
    let embedder = Arc::new(Synthetic::clustered());
    let server = Running::start(&database, embedder.clone(), &[NEVER]).await?;
    let mut connection = database.connect().await?;
    fill(&server.engine, FIRST, &mut Corpus::new(1), plan.memories).await?;
    copy(&mut connection, plan.users - 1).await?;
    database.settle().await?;
    let (mut questions, mut numbers) = (Corpus::new(2), Numbers::new(3));
    let searches: Vec<_> = (0..plan.queries)
        .map(|_| (format!("user-{}", numbers.next() % plan.users as u64), questions.query()))
        .collect();
    let measured = measure::searches(&mut server.agent(), &mut connection, &embedder, &searches).await?;
    println!("\n{} queries, each of a user at random", plan.queries);
    SearchTable::new("memories").rows(&format!("{} × {}", count(plan.users), count(plan.memories)), measured);
    Ok(())
}

/// Gives other users what the first one has. Through the service it would take an hour.
async fn copy(connection: &mut PgConnection, others: usize) -> Outcome<()> {
    let others = i32::try_from(others)?;
    let ids: Vec<String> =
        sqlx::query_scalar("select id from memories where user_id = 'user-0'").fetch_all(&mut *connection).await?;
    for ids in ids.chunks(AT_ONCE) {
        for statement in SCATTERED {
            sqlx::query(statement).bind(ids).bind(others).execute(&mut *connection).await?;
        }
    }
    for number in 1..=others {
        for statement in OF_USER {
            sqlx::query(statement).bind(number.to_string()).execute(&mut *connection).await?;
        }
    }
    Ok(())
}
