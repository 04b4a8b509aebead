//! Embedding models that change, fail or reject a text.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use agent_service::{
    embedding::{EmbedError, Embedder, EmbeddingModel, QueryVector},
    memory::{MemoryEngine, MemoryError, NewMemory, ReembedProgress, RetrievalQuery, Selection},
    postgres::Database,
    proto::agent_v1 as pb,
};
use futures_util::future::BoxFuture;
use sqlx::Executor as _;

use crate::{
    harness::{
        TEST_TIMEOUT, TestDatabase, TestServer, assert_index_consistent, config, engine_query, memory_input, user,
        weighted_query,
    },
    vector_index::{add_sentences, sentence},
};

/// Fails after a number of calls.
struct FailingEmbedder {
    model: EmbeddingModel,
    calls_left: AtomicUsize,
}

impl Embedder for FailingEmbedder {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        let succeeds =
            self.calls_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let vectors = vec![vec![0.0, 1.0]; texts.len()];
        Box::pin(async move { if succeeds { Ok(vectors) } else { Err(EmbedError::Rejected(503)) } })
    }
}

#[tokio::test]
async fn reembedding_resumes_after_failure_beside_searches() {
    let old = TestServer::start(&[]).await;
    for (user, range) in [("ann", 0..300), ("bob", 0..20)] {
        add_sentences(&old, user, range).await;
    }
    let successor = pb::MemoryInput { supersedes: vec!["ann-0".into()], ..memory_input("newer", "newer") };
    old.add_memories("ann", vec![successor]).await;

    let database = old.database();
    let embedder =
        Arc::new(FailingEmbedder { model: EmbeddingModel { name: "new".into(), dimension: 2 }, calls_left: 1.into() });
    let config = config(&[("DATABASE_URL", &database.url)]);
    let roles = Database::from_config(&config.stores.database).unwrap().pools();
    let new = MemoryEngine::new(config.memory, roles, embedder.clone());
    let seen = Mutex::new(Vec::new());
    let progress = |at: ReembedProgress| seen.lock().unwrap().push((at.done, at.total));

    // The first batch succeeds, the second fails.
    let failed = new.reembed(&progress).await;
    assert!(matches!(failed, Err(MemoryError::Embedding(_))), "{failed:?}");
    assert_eq!(*seen.lock().unwrap(), [(0, 320), (256, 320)]);
    let query = || weighted_query(&sentence(7), 1.0);
    let found = old.retrieve(query()).await;
    assert_eq!(
        (found.items[0].id.as_str(), found.total_found),
        ("ann-7", 300),
        "vectors of the old model are still used"
    );

    embedder.calls_left.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(new.reembed(&progress).await.unwrap(), ReembedProgress { done: 64, total: 64, rejected: 0 });
    assert_eq!(new.reembed(&progress).await.unwrap(), ReembedProgress::default());
    let found = new.retrieve(&user("ann"), &engine_query("anything", 1.0)).await.unwrap();
    assert_eq!(found.total, 300, "every memory except the superseded one");

    assert_eq!(new.delete_other_models().await.unwrap(), 320);
    let found = old.retrieve(query()).await;
    assert_eq!(found.total_found, 0);
    assert_eq!(new.retrieve(&user("ann"), &engine_query("anything", 1.0)).await.unwrap().total, 300);
}

/// Rejects texts that contain "frint", and counts calls.
struct RejectingEmbedder {
    model: EmbeddingModel,
    calls: AtomicUsize,
    vocabulary_coverage: f32,
}

impl RejectingEmbedder {
    fn new(vocabulary_coverage: f32) -> Arc<Self> {
        let model = EmbeddingModel { name: "rejecting".into(), dimension: 2 };
        Arc::new(Self { model, calls: AtomicUsize::new(0), vocabulary_coverage })
    }

    fn engine(self: &Arc<Self>, database: &TestDatabase) -> MemoryEngine {
        let config = config(&[("DATABASE_URL", &database.service_url())]);
        let roles = Database::from_config(&config.stores.database).unwrap().pools();
        MemoryEngine::new(config.memory, roles, self.clone())
    }
}

impl Embedder for RejectingEmbedder {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let is_rejected = texts.iter().any(|text| text.contains("frint"));
        let result = if is_rejected { Err(EmbedError::Rejected(400)) } else { Ok(vec![vec![0.0, 1.0]; texts.len()]) };
        Box::pin(std::future::ready(result))
    }

    fn embed_query<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<QueryVector, EmbedError>> {
        Box::pin(async move {
            let vector = self.embed(&[text]).await?.remove(0);
            Ok(QueryVector { vector, vocabulary_coverage: self.vocabulary_coverage })
        })
    }
}

fn new_memory(id: &str, content: &str) -> NewMemory {
    NewMemory {
        id: Some(id.into()),
        content: content.into(),
        source_type: "note".into(),
        tags: Vec::new(),
        created_at: None,
        metadata: std::collections::BTreeMap::new(),
        supersedes: Vec::new(),
    }
}

#[tokio::test]
async fn text_rejected_by_new_model_keeps_its_old_vector() {
    let old = TestServer::start(&[]).await;
    add_sentences(&old, "ann", 0..20).await;
    old.remember("ann", &["frint"]).await;
    let new = RejectingEmbedder::new(1.0).engine(old.database());
    assert_eq!(new.reembed(&|_| {}).await.unwrap(), ReembedProgress { done: 20, total: 21, rejected: 1 });
    assert_eq!(new.count_missing_vectors().await.unwrap(), 1);
    assert_eq!(new.delete_other_models().await.unwrap(), 20);
    assert_eq!(old.retrieve(weighted_query("frint", 1.0)).await.total_found, 1);
}

#[tokio::test]
async fn query_unknown_to_the_model_is_answered_lexically() {
    let database = TestDatabase::create().await;
    let engine = RejectingEmbedder::new(0.0).engine(&database);
    let memories = (0..30).map(|n| new_memory(&format!("m{n}"), &sentence(n))).collect();
    engine.add(&user("ann"), memories).await.unwrap();
    for text in ["river matrix", "violin", "unheard"] {
        let query = RetrievalQuery { alpha: 0.5, ..engine_query(text, 1.0) };
        let lexical = engine.retrieve(&user("ann"), &RetrievalQuery { alpha: 0.0, ..query.clone() }).await.unwrap();
        assert_eq!(engine.retrieve(&user("ann"), &query).await.unwrap(), lexical, "{text}");
    }
}

#[tokio::test]
async fn thousand_memories_need_one_embedding_call_and_few_statements() {
    let database = TestDatabase::create().await;
    let embedder = RejectingEmbedder::new(1.0);
    let engine = embedder.engine(&database);
    let memories = (0..1_000).map(|n| new_memory(&format!("m{n}"), &sentence(n))).collect();
    let mut owner = database.connect().await;
    // One row per write statement.
    owner
        .execute(
            "create table statements (of text);
             create function note() returns trigger security definer language plpgsql as $$ begin
                 insert into statements values (tg_table_name);
                 return null;
             end $$;
             create trigger noted after insert or update or delete on memories for each statement execute function note();
             create trigger noted after insert or update or delete on memory_vectors for each statement execute function note();
             create trigger noted after insert or update or delete on memory_postings for each statement execute function note();
             create trigger noted after insert or update or delete on memory_terms for each statement execute function note()",
        )
        .await
        .unwrap();
    assert_eq!(engine.add(&user("ann"), memories).await.unwrap().added, 1_000);
    assert_eq!(embedder.calls.load(Ordering::Relaxed), 1);
    let statements: i64 = sqlx::query_scalar("select count(*) from statements").fetch_one(&mut owner).await.unwrap();
    assert!((4..=20).contains(&statements), "{statements} statements");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_processes_write_same_ids_consistently() {
    let database = TestDatabase::create().await;
    // Each engine has its own writer queue, so that only the database serializes them.
    let engines = [RejectingEmbedder::new(1.0).engine(&database), RejectingEmbedder::new(1.0).engine(&database)];
    let ann = user("ann");
    let write = async |engine: &MemoryEngine, writer: usize| {
        for round in 0..10 {
            let mut memories: Vec<_> =
                (0..60).map(|n| new_memory(&format!("m{n}"), &sentence(n + round % 3))).collect();
            let unnamed = (0..20).map(|n| NewMemory { id: None, ..new_memory("", &format!("kat {n}")) });
            memories.extend(unnamed);
            if writer == 1 {
                memories.reverse();
            }
            engine.add(&ann, memories).await.unwrap();
            // Deleted memories are written again in a later round.
            if round % 4 == writer && round < 8 {
                engine.delete(&ann, &Selection::Ids(vec!["m3".into(), "m5".into()])).await.unwrap();
            }
        }
    };
    let both = async { tokio::join!(Box::pin(write(&engines[0], 0)), Box::pin(write(&engines[1], 1))) };
    tokio::time::timeout(TEST_TIMEOUT, both).await.expect("the writers deadlock");
    let mut owner = database.connect().await;
    assert_index_consistent(&mut owner).await;
    for (case, statement) in [
        ("ids or contents", "select count(*) - 80 from memories"),
        (
            "contents without an id",
            "select count(*) - count(distinct content) from memories where content like 'kat %'",
        ),
        ("vectors", "select count(*) - 80 from memory_vectors"),
        ("statistics", "select memories - 80 from memory_users"),
    ] {
        let violations: i64 = sqlx::query_scalar(statement).fetch_one(&mut owner).await.unwrap();
        assert_eq!(violations, 0, "{case}");
    }
}
