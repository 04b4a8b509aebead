//! Builds of the lexical index: searches wait only if they must, and service versions do not undo each other's work.

use std::sync::Arc;

use agent_service::{
    embedding::HashedEmbedder,
    memory::{MemoryEngine, Retriever},
    postgres::Database,
    proto::agent_v1 as pb,
};
use sqlx::{Executor as _, PgConnection};

use crate::harness::{
    TEST_TIMEOUT, TestServer, assert_index_consistent, config, engine_query, memory_input, memory_query, user,
};

async fn add(server: &TestServer, memories: std::ops::Range<usize>) {
    let memories = memories.map(|n| memory_input(&format!("m{n}"), &format!("zork number{n}")));
    server.add_memories("ann", memories.collect()).await;
}

async fn query_number(connection: &mut PgConnection, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn search_waiting_for_index_holds_no_connection() {
    let server = TestServer::start(&[]).await;
    server.remember("bob", &["zork"]).await;
    add(&server, 0..3).await;
    let database = server.database();
    let mut owner = database.connect().await;
    // Another process holds the index lock.
    owner.execute("update memory_users set tokenizer = 0 where user_id = 'ann'").await.unwrap();
    owner.execute("begin; select from memory_users where user_id = 'ann' for update").await.unwrap();

    let config = config(&[("DATABASE_URL", &database.service_url())]);
    let roles = Database::from_config(&config.stores.database).unwrap().pools_with_limit(2);
    let engine = Arc::new(MemoryEngine::new(config.memory, roles, Arc::new(HashedEmbedder::new())));
    let search = |id: &'static str, alpha: f32| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.retrieve(&user(id), &engine_query("zork", alpha)).await })
    };
    let lexical: Vec<_> = (0..4).map(|_| search("ann", 0.0)).collect();
    let hybrid: Vec<_> = (0..4).map(|_| search("ann", 0.5)).collect();
    let of_another = tokio::time::timeout(TEST_TIMEOUT, search("bob", 0.5)).await.unwrap().unwrap().unwrap();
    assert_eq!((of_another.hits.len(), of_another.degraded_to), (1, None));
    for found in hybrid {
        let found = found.await.unwrap().unwrap();
        assert_eq!(
            (found.hits.len(), found.degraded_to),
            (3, Some(Retriever::Vector)),
            "the vector retriever answers alone"
        );
    }
    let response = server.agent().retrieve_memory(memory_query("ann", "zork")).await.unwrap();
    assert_eq!(response.metadata().get("x-retrieval").unwrap(), "vectors-only");
    assert!(lexical.iter().all(|search| !search.is_finished()), "a lexical search needs the index");

    owner.execute("rollback").await.unwrap();
    for found in lexical {
        assert_eq!(found.await.unwrap().unwrap().hits.len(), 3);
    }
    let found = engine.retrieve(&user("ann"), &engine_query("zork", 0.5)).await.unwrap();
    assert_eq!((found.hits.len(), found.degraded_to), (3, None));
}

#[tokio::test]
async fn index_of_newer_version_is_maintained_not_rebuilt() {
    let server = TestServer::start(&[]).await;
    add(&server, 0..3).await;
    let mut owner = server.connect_as_owner().await;
    owner.execute("update memory_users set tokenizer = 1000").await.unwrap();
    let find = async |text: &str, alpha: f32| server.engine.retrieve(&user("ann"), &engine_query(text, alpha)).await;
    assert_eq!(find("number1", 0.0).await.unwrap().hits[0].0.id, "m1");
    add(&server, 3..5).await;
    assert_eq!(find("number4", 0.0).await.unwrap().hits[0].0.id, "m4");
    // An unfinished build of the newer version is not continued.
    owner.execute("update memory_users set indexed_to = 'm1'").await.unwrap();
    let found = find("zork", 0.5).await.unwrap();
    assert_eq!((found.hits.len(), found.degraded_to), (5, Some(Retriever::Vector)));
    let untouched = "select count(*) from memory_users where tokenizer = 1000 and indexed_to = 'm1'";
    assert_eq!(query_number(&mut owner, untouched).await, 1);
}

#[tokio::test]
async fn index_of_older_version_is_rebuilt_in_parts() {
    let server = TestServer::start(&[]).await;
    for part in 0..2 {
        add(&server, part * 600..(part + 1) * 600).await;
    }
    let ingest = async |content: &str| {
        let document = pb::IngestDocumentRequest {
            user_id: "ann".into(),
            document_id: "book".into(),
            content: content.into(),
            ..Default::default()
        };
        server.memory().ingest_document(document).await.unwrap();
    };
    ingest("a kat").await;
    let mut owner = server.connect_as_owner().await;
    // The index as an older tokenizer left it; the trigger records how many memories each delete covers.
    owner
        .execute(
            "create table removed (memories bigint);
             create function note() returns trigger security definer language plpgsql as $$ begin
                 insert into removed select count(distinct memory_id) from gone;
                 return null;
             end $$;
             create trigger noted after delete on memory_postings referencing old table as gone
             for each statement execute function note();
             update memory_users set tokenizer = 0;
             update memory_postings set term = 'old' where term = 'zork';
             update memory_terms set term = 'old' where term = 'zork'",
        )
        .await
        .unwrap();
    // Writes re-index only what they write; deletes remove the older version's postings too.
    add(&server, 1_200..1_201).await;
    server.delete_memories(&["m7"]).await;
    ingest("a dok").await;
    assert_eq!(query_number(&mut owner, "select count(*) from memory_postings where term = 'old'").await, 1_199);
    let of_deleted = "select count(*) from memory_postings where memory_id not in (select id from memories)";
    assert_eq!(query_number(&mut owner, of_deleted).await, 0);

    let found = server.engine.retrieve(&user("ann"), &engine_query("zork", 0.0)).await.unwrap();
    assert_eq!(found.total, 1_000, "counted up to a thousand");
    assert_eq!(query_number(&mut owner, "select max(memories) from removed").await, 500);
    assert_index_consistent(&mut owner).await;
    for violations in [
        "select count(*) from memory_postings where term = 'old'",
        "select count(*) from memory_users, (select count(distinct memory_id) as n from memory_postings) as counted
         where memories <> n or n <> 1201 or indexed_to is not null",
    ] {
        assert_eq!(query_number(&mut owner, violations).await, 0, "{violations}");
    }
}
