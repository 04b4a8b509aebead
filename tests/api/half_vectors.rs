//! Vectors in half precision: copies of all vectors, also in a store that the previous release wrote or still writes.

use std::time::Duration;

use agent_service::{memory::RetrievalResult, postgres::Database};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    harness::{TestServer, assert_vectors_copied, config, engine_query, memory_input, user},
    vector_index::add_sentences,
};

/// The schema as migration 9 left it.
const PREVIOUS_SCHEMA: &str = "
    drop function copy_new_vectors, copy_changed_vectors cascade;
    drop table memory_half_vectors;
    alter table memory_users drop column has_half_vectors;
    delete from _sqlx_migrations where version = 10";

/// Statements of the previous release, which writes one memory of a user.
fn previous_release_adds(user: &str, id: &str, content: &str) -> String {
    format!(
        "begin; set local role agent_service; select set_config('agent.user_id', '{user}', true);
         insert into memory_users (user_id, tokenizer) values ('{user}', 1)
         on conflict (user_id) do update set tokenizer = memory_users.tokenizer;
         insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, created_at)
         values ('{user}', '{id}', '{content}', sha256('{content}'), 'note', '{{}}', '{{}}', now());
         insert into memory_vectors (user_id, model, memory_id, digest, embedding)
         values ('{user}', 'hashed-ngrams-1/384', '{id}', sha256('{content}'),
                 (select array_agg(case n when 1 then 1 else 0 end) from generate_series(1, 384) as n)::real[]::vector)
         on conflict (user_id, model, memory_id) do nothing;
         insert into memory_postings (user_id, term, memory_id, frequency, length) values ('{user}', 'kat', '{id}', 1, 1);
         insert into memory_terms (user_id, term, memories) values ('{user}', 'kat', 1)
         on conflict (user_id, term) do update set memories = memory_terms.memories + 1;
         update memory_users set memories = memories + 1, total_length = total_length + 1 where user_id = '{user}';
         commit"
    )
}

async fn count(owner: &mut PgConnection, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(owner).await.unwrap()
}

const USERS_WITHOUT: &str = "select count(*) from memory_users where not has_half_vectors";
const COPIES: &str = "select count(*) from memory_half_vectors";

async fn searches(server: &TestServer) -> Vec<RetrievalResult> {
    let mut results = Vec::new();
    for alpha in [0.0, 0.5, 1.0] {
        for text in ["river matrix", "violin coffee 12", "kat"] {
            results.push(server.engine.retrieve(&user("ann"), &engine_query(text, alpha)).await.unwrap());
        }
    }
    results
}

#[tokio::test]
async fn old_store_is_searched_while_its_vectors_are_copied() {
    let server = TestServer::start(&[]).await;
    add_sentences(&server, "ann", 0..1_100).await;
    add_sentences(&server, "bob", 0..3).await;
    let expected = searches(&server).await;
    let database = server.database();
    let mut owner = database.connect().await;
    owner.execute(PREVIOUS_SCHEMA).await.unwrap();
    Database::from_config(&config(&[("DATABASE_URL", &database.url)]).stores.database)
        .unwrap()
        .migrate()
        .await
        .unwrap();

    assert_eq!(count(&mut owner, USERS_WITHOUT).await, 2);
    assert_eq!(searches(&server).await, expected, "before any vector is copied");
    // A write copies a part.
    server.add_memories("ann", vec![memory_input("new", "unheard")]).await;
    server.delete_memories(&["new"]).await;
    assert_eq!(count(&mut owner, COPIES).await, 1_000);
    assert_eq!(searches(&server).await, expected, "while vectors are copied");
    server.engine.copy_half_vectors().await.unwrap();
    assert_eq!(count(&mut owner, USERS_WITHOUT).await, 0);
    assert_vectors_copied(&mut owner).await;
    assert_eq!(searches(&server).await, expected, "after vectors are copied");
}

#[tokio::test]
async fn writes_of_the_previous_release_are_copied() {
    let server = TestServer::start(&[]).await;
    server.add_memories("ann", vec![memory_input("a", "kat zat")]).await;
    let mut owner = server.connect_as_owner().await;
    for (user, id) in [("ann", "old"), ("bob", "old")] {
        owner.execute(AssertSqlSafe(previous_release_adds(user, id, "kat"))).await.unwrap();
    }
    assert_vectors_copied(&mut owner).await;
    assert_eq!(count(&mut owner, COPIES).await, 3);
    assert_eq!(count(&mut owner, USERS_WITHOUT).await, 1);
    let found = async |id: &str| {
        let found = server.engine.retrieve(&user(id), &engine_query("kat", 0.5)).await.unwrap();
        found.hits.into_iter().map(|(memory, _)| memory.id).collect::<Vec<_>>()
    };
    assert_eq!(found("ann").await.len(), 2);
    assert_eq!(found("bob").await, ["old"]);
    server.add_memories("bob", vec![memory_input("b", "kat lok")]).await;
    assert_eq!(count(&mut owner, USERS_WITHOUT).await, 0);
    assert_eq!(found("bob").await.len(), 2);
    // A changed vector changes its copy.
    owner.execute("update memory_vectors set embedding = embedding + embedding where user_id = 'bob'").await.unwrap();
    assert_vectors_copied(&mut owner).await;
}

#[tokio::test]
async fn user_who_is_erased_during_the_copying_stays_erased() {
    let server = TestServer::start(&[]).await;
    for id in ["ann", "bob"] {
        server.add_memories(id, vec![memory_input("a", "kat")]).await;
    }
    let (mut owner, mut watching) = (server.connect_as_owner().await, server.connect_as_owner().await);
    owner.execute("update memory_users set has_half_vectors = false").await.unwrap();
    let mut erasing = owner.begin().await.unwrap();
    erasing.execute("select from memory_users where user_id = 'ann' for update").await.unwrap();
    // The copying has listed both users when it waits for the first.
    let erase_the_second = async {
        let waiting =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%memory_users%'
                                                                   and datname = current_database()";
        while count(&mut watching, waiting).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        erasing
            .execute("delete from memories where user_id = 'bob'; delete from memory_users where user_id = 'bob'")
            .await
            .unwrap();
        erasing.commit().await.unwrap();
    };
    let (copied, ()) = tokio::join!(server.engine.copy_half_vectors(), erase_the_second);
    copied.unwrap();
    assert_eq!(count(&mut watching, USERS_WITHOUT).await, 0);
    assert_eq!(count(&mut watching, "select count(*) from memory_users where user_id = 'bob'").await, 0);
}
