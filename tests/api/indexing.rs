//! The index of words while it is made: nobody waits for it who need not, and no version of the service undoes another's work.

use std::sync::Arc;

use agent_service::{
    embedding::HashedEmbedder,
    identity::UserId,
    memory::{Filter, MemoryEngine, RetrievalQuery, Retriever},
    postgres::Database,
    proto::agent_v1 as pb,
};
use jiff::tz::TimeZone;
use sqlx::{Executor as _, PgConnection};

use crate::harness::{PATIENCE, TestServer, config};

fn user(id: &str) -> UserId {
    UserId::parse("user_id", id).unwrap()
}

fn query(text: &str, alpha: f32) -> RetrievalQuery {
    RetrievalQuery {
        text: text.into(),
        limit: 10,
        min_score: 0.0,
        filter: Filter::default(),
        alpha,
        time_zone: TimeZone::UTC,
    }
}

async fn add(server: &TestServer, memories: std::ops::Range<usize>) {
    let memories = memories.map(|n| pb::MemoryInput {
        id: format!("m{n}"),
        content: format!("zork number{n}"),
        ..Default::default()
    });
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: memories.collect() };
    server.memory().add_memories(request).await.unwrap();
}

async fn number(connection: &mut PgConnection, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn whoever_waits_for_an_index_that_another_process_makes_keeps_no_connection() {
    let server = TestServer::start(&[]).await;
    server.remember("bob", &["zork"]).await;
    add(&server, 0..3).await;
    let database = server.database.as_ref().unwrap();
    let mut behind = database.connect().await;
    // Somebody else is at the index.
    behind.execute("update memory_users set tokenizer = 0 where user_id = 'ann'").await.unwrap();
    behind.execute("begin; select from memory_users where user_id = 'ann' for update").await.unwrap();

    let config = config(&[("DATABASE_URL", &database.service_url())]);
    let roles = Database::from_config(&config.stores.database).unwrap().pools_with_limit(2);
    let engine = Arc::new(MemoryEngine::new(config.memory, roles, Arc::new(HashedEmbedder::new())));
    let search = |id: &'static str, alpha: f32| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.retrieve(&user(id), &query("zork", alpha)).await })
    };
    let by_words: Vec<_> = (0..4).map(|_| search("ann", 0.0)).collect();
    let by_both: Vec<_> = (0..4).map(|_| search("ann", 0.5)).collect();
    let of_another = tokio::time::timeout(PATIENCE, search("bob", 0.5)).await.unwrap().unwrap().unwrap();
    assert_eq!((of_another.hits.len(), of_another.degraded_to), (1, None));
    for found in by_both {
        let found = found.await.unwrap().unwrap();
        assert_eq!(
            (found.hits.len(), found.degraded_to),
            (3, Some(Retriever::Vector)),
            "meaning alone finds something"
        );
    }
    let over_the_wire = pb::MemoryQuery { user_id: "ann".into(), query_text: "zork".into(), ..Default::default() };
    let told = server.agent().retrieve_memory(over_the_wire).await.unwrap();
    assert_eq!(told.metadata().get("x-retrieval").unwrap(), "vectors-only");
    assert!(by_words.iter().all(|search| !search.is_finished()), "words alone have nothing to go by yet");

    behind.execute("rollback").await.unwrap();
    for found in by_words {
        assert_eq!(found.await.unwrap().unwrap().hits.len(), 3);
    }
    let found = engine.retrieve(&user("ann"), &query("zork", 0.5)).await.unwrap();
    assert_eq!((found.hits.len(), found.degraded_to), (3, None));
}

#[tokio::test]
async fn an_index_of_a_newer_version_is_read_and_kept_up_and_never_begun_anew() {
    let server = TestServer::start(&[]).await;
    add(&server, 0..3).await;
    let mut behind = server.database.as_ref().unwrap().connect().await;
    behind.execute("update memory_users set tokenizer = 1000").await.unwrap();
    let find = async |text: &str, alpha: f32| server.engine.retrieve(&user("ann"), &query(text, alpha)).await;
    assert_eq!(find("number1", 0.0).await.unwrap().hits[0].0.id, "m1");
    add(&server, 3..5).await;
    assert_eq!(find("number4", 0.0).await.unwrap().hits[0].0.id, "m4");
    // One that the newer version is still making is left to it.
    behind.execute("update memory_users set indexed_to = 'm1'").await.unwrap();
    let found = find("zork", 0.5).await.unwrap();
    assert_eq!((found.hits.len(), found.degraded_to), (5, Some(Retriever::Vector)));
    let untouched = "select count(*) from memory_users where tokenizer = 1000 and indexed_to = 'm1'";
    assert_eq!(number(&mut behind, untouched).await, 1);
}

#[tokio::test]
async fn an_index_of_an_older_version_is_replaced_in_parts_with_exact_statistics_at_all_times() {
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
    let mut behind = server.database.as_ref().unwrap().connect().await;
    // An older version made other words of the texts; and it is noted of how many memories a statement takes entries away.
    behind
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
    // Writing makes nothing anew but what is written, and forgetting forgets what the older version made of it too.
    add(&server, 1_200..1_201).await;
    let ids = vec!["m7".to_owned()];
    let forget = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids, ..Default::default() };
    server.memory().delete_memories(forget).await.unwrap();
    ingest("a dok").await;
    assert_eq!(number(&mut behind, "select count(*) from memory_postings where term = 'old'").await, 1_199);
    let of_forgotten = "select count(*) from memory_postings where memory_id not in (select id from memories)";
    assert_eq!(number(&mut behind, of_forgotten).await, 0);

    let found = server.engine.retrieve(&user("ann"), &query("zork", 0.0)).await.unwrap();
    assert_eq!(found.total, 1_000, "counted up to a thousand");
    assert_eq!(number(&mut behind, "select max(memories) from removed").await, 500);
    for wrong in [
        "select count(*) from memory_postings where term = 'old'",
        "select count(*) from memory_users, (select count(distinct memory_id) as n from memory_postings) as counted
         where memories <> n or n <> 1201 or indexed_to is not null",
        "select count(*) from (select term, count(*) as memories from memory_postings group by term) as counted
         full join memory_terms using (term, memories) where counted.term is null or memory_terms.term is null",
        "select count(*) from memory_users, (select sum(length) as total from (
             select distinct memory_id, length from memory_postings) each) counted where total_length <> total",
    ] {
        assert_eq!(number(&mut behind, wrong).await, 0, "{wrong}");
    }
}
