//! Vectors in great number, and of another model.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use agent_service::{
    embedding::{EmbedError, Embedder, EmbeddingModel},
    identity::UserId,
    memory::{Filter, MemoryEngine, MemoryError, Query, Reembedded},
    postgres::Database,
    proto::agent_v1 as pb,
    service::Services,
};
use futures_util::future::BoxFuture;
use jiff::tz::TimeZone;
use sqlx::{Executor as _, PgConnection};

use crate::harness::{PATIENCE, TestDatabase, TestServer, config};

fn user(id: &str) -> UserId {
    UserId::parse("user_id", id).unwrap()
}

/// The memory behind a server with these variables, and its database.
fn engine(database: &TestDatabase, variables: &[(&str, &str)]) -> (Arc<MemoryEngine>, Database) {
    let mut all = vec![("DATABASE_URL", database.url.as_str()), ("EMBEDDING_PROVIDER", "hashed")];
    all.extend(variables);
    let config = config(&all);
    let database = Database::from_config(&config.stores.memory).unwrap();
    (Services::from_config(&config, database.roles()).unwrap().engine, database)
}

fn by_meaning(text: &str) -> Query {
    Query { text: text.into(), limit: 10, min_score: 0.0, filter: Filter::default(), alpha: 1.0, zone: TimeZone::UTC }
}

/// Sentences of words that repeat here and there, the same in each run.
fn sentence(number: usize) -> String {
    const WORDS: [&str; 40] = [
        "river", "matrix", "violin", "coffee", "mountain", "history", "garden", "python", "winter", "theorem",
        "bridge", "planet", "market", "doctor", "camera", "engine", "forest", "guitar", "harbor", "island", "jacket",
        "kitchen", "letter", "museum", "needle", "orange", "pencil", "quartz", "rocket", "silver", "temple",
        "umbrella", "valley", "window", "yogurt", "zebra", "anchor", "basket", "candle", "desert",
    ];
    let mut state = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        WORDS[usize::try_from(state % 40).unwrap()]
    };
    format!("{} {} {} {} {} {number}", next(), next(), next(), next(), next())
}

async fn add(server: &TestServer, user: &str, sentences: std::ops::Range<usize>) {
    let memories = sentences.map(|number| pb::MemoryInput {
        id: format!("{user}-{number}"),
        content: sentence(number),
        ..Default::default()
    });
    let memories: Vec<_> = memories.collect();
    for memories in memories.chunks(1_000) {
        let request = pb::AddMemoriesRequest { user_id: user.into(), memories: memories.to_vec() };
        server.memory().add_memories(request).await.unwrap();
    }
}

#[tokio::test]
async fn the_index_finds_what_comparing_all_vectors_finds_and_is_used_only_where_it_is_worth_it() {
    let server = TestServer::start(&[]).await;
    for (user, range) in [("ann", 0..1_500), ("bob", 1_500..3_000), ("cid", 0..20)] {
        add(&server, user, range).await;
    }
    let database = server.database.as_ref().unwrap();
    let (indexed, owner) = engine(database, &[("VECTOR_INDEX_THRESHOLD", "1000")]);
    let (exact, _) = engine(database, &[]);
    let ann = user("ann");
    let plan = async |engine: &MemoryEngine, user: &UserId, query: &Query| engine.explain(user, query).await.unwrap();
    assert!(!plan(&indexed, &ann, &by_meaning("river")).await.contains("<=>"), "there is no index yet");

    indexed.index_vectors(&owner).await.unwrap();
    indexed.index_vectors(&owner).await.unwrap();
    let mut behind = database.connect().await;
    assert_eq!(indexes(&mut behind).await, [true], "building it again does nothing");
    let filtered = Query {
        filter: Filter { source_types: vec!["note".into()], ..Filter::default() },
        ..by_meaning("river matrix")
    };
    let hybrid = Query { alpha: 0.5, ..by_meaning("river matrix") };
    for (is_used, engine, user, query) in [
        (true, &indexed, &ann, &by_meaning("river matrix")),
        (true, &indexed, &ann, &hybrid),
        (false, &indexed, &ann, &filtered),
        (false, &indexed, &user("cid"), &by_meaning("river matrix")),
        (false, &exact, &ann, &by_meaning("river matrix")),
    ] {
        let plan = plan(engine, user, query).await;
        assert_eq!(plan.contains("Index Scan using memory_vectors_") && plan.contains("Order By"), is_used, "{plan}");
    }

    for alpha in [1.0, 0.5] {
        let (mut found, mut all) = (0, 0);
        for number in 0..60 {
            let query = Query { alpha, ..by_meaning(&sentence(10_000 + number)) };
            let best = exact.retrieve(&ann, &query).await.unwrap();
            let near = indexed.retrieve(&ann, &query).await.unwrap();
            assert!(near.hits.iter().all(|(memory, _)| memory.id.starts_with("ann-")));
            assert_eq!(near.total, best.total, "{alpha}");
            // Of equal scores either may be among the best.
            let floor = best.hits.last().unwrap().1 - 1e-6;
            all += best.hits.len();
            found += near.hits.iter().filter(|(_, score)| *score >= floor).count();
        }
        assert!(found * 100 >= all * 98, "alpha {alpha}: {found} of {all}");
    }

    // What was written is found by the next query, and what was forgotten never again.
    add(&server, "ann", 7_000..7_001).await;
    let own = by_meaning(&sentence(7_000));
    assert_eq!(indexed.retrieve(&ann, &own).await.unwrap().hits[0].0.id, "ann-7000");
    let ids = vec!["ann-7000".to_owned()];
    let forget = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids, ..Default::default() };
    server.memory().delete_memories(forget).await.unwrap();
    assert!(indexed.retrieve(&ann, &own).await.unwrap().hits.iter().all(|(memory, _)| memory.id != "ann-7000"));
    let above = Query { min_score: 0.6, ..own };
    let (near, best) = (indexed.retrieve(&ann, &above).await.unwrap(), exact.retrieve(&ann, &above).await.unwrap());
    assert_eq!(near, best, "a floor counts what is above it");
}

/// Whether each index of vectors can be used.
async fn indexes(behind: &mut PgConnection) -> Vec<bool> {
    let found = "select indisvalid from pg_index where pg_get_indexdef(indexrelid) like '%hnsw%'";
    sqlx::query_scalar(found).fetch_all(behind).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_build_the_index_at_once_leave_one_that_is_whole() {
    let server = TestServer::start(&[]).await;
    add(&server, "ann", 0..1_200).await;
    let database = server.database.as_ref().unwrap();
    let variables = [("VECTOR_INDEX_THRESHOLD", "1000")];
    let mut behind = database.connect().await;
    for _ in 0..4 {
        let builders: Vec<_> = (0..3).map(|_| engine(database, &variables)).collect();
        let building = builders.iter().map(|(engine, owner)| engine.index_vectors(owner));
        let built = futures_util::future::try_join_all(building);
        tokio::time::timeout(PATIENCE, built).await.expect("they wait for each other").unwrap();
        assert_eq!(indexes(&mut behind).await, [true]);
        // As a build leaves it that was broken off.
        behind
            .execute(
                "update pg_index set indisvalid = false where indisvalid and pg_get_indexdef(indexrelid) like '%hnsw%'",
            )
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_user_among_many_whose_vectors_are_nearer_is_found_all_the_same() {
    let server = TestServer::start(&[]).await;
    let told = async |user: &str, text: &str| {
        let memory =
            |n| pb::MemoryInput { id: format!("{n:04}"), content: format!("{text} {n}"), ..Default::default() };
        let request = pb::AddMemoriesRequest { user_id: user.into(), memories: (0..1_000).map(memory).collect() };
        server.memory().add_memories(request).await.unwrap();
    };
    told("ann", "zebra anchor basket").await;
    told("bob", "river matrix").await;
    let database = server.database.as_ref().unwrap();
    let mut behind = database.connect().await;
    behind
        .execute(
            "create temporary table others as select 'bob' || n as name from generate_series(1, 10) as n;
             insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, created_at)
             select name, id, content, content_digest, source_type, tags, metadata, created_at from memories, others
             where user_id = 'bob';
             insert into memory_vectors select name, model, memory_id, digest, embedding from memory_vectors, others
             where user_id = 'bob'",
        )
        .await
        .unwrap();
    let (indexed, owner) = engine(database, &[("VECTOR_INDEX_THRESHOLD", "1000")]);
    let (exact, _) = engine(database, &[]);
    indexed.index_vectors(&owner).await.unwrap();
    let plan = indexed.explain(&user("ann"), &by_meaning("river matrix")).await.unwrap();
    assert!(!plan.contains("<=>"), "hers are known to be few");
    // As it was when the others had less.
    behind.execute("update pg_class set reltuples = 1000 where relname like 'memory\\_vectors\\_%'").await.unwrap();
    let ann = user("ann");
    for query in [
        by_meaning("river matrix"),
        Query { alpha: 0.5, ..by_meaning("river matrix") },
        Query { alpha: 0.5, ..by_meaning("zebra unheard") },
    ] {
        assert!(indexed.explain(&ann, &query).await.unwrap().contains("<=>"), "the index is tried");
        let (found, best) =
            (indexed.retrieve(&ann, &query).await.unwrap(), exact.retrieve(&ann, &query).await.unwrap());
        assert_eq!(found, best, "{query:?}");
        assert_eq!((found.hits.len(), found.total), (10, 1_000));
    }
}

/// A model that fails after some calls.
struct NewModel {
    model: EmbeddingModel,
    works: AtomicUsize,
}

impl Embedder for NewModel {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        let works = self.works.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let vectors = vec![vec![0.0, 1.0]; texts.len()];
        Box::pin(async move { if works { Ok(vectors) } else { Err(EmbedError::Refused(503)) } })
    }
}

#[tokio::test]
async fn a_store_moves_to_another_model_while_it_is_searched_and_goes_on_where_it_was_broken_off() {
    let old = TestServer::start(&[]).await;
    for (user, range) in [("ann", 0..300), ("bob", 0..20)] {
        add(&old, user, range).await;
    }
    let replacing = pb::MemoryInput {
        id: "newer".into(),
        content: "newer".into(),
        supersedes: vec!["ann-0".into()],
        ..Default::default()
    };
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![replacing] };
    old.memory().add_memories(request).await.unwrap();

    let database = old.database.as_ref().unwrap();
    let embedder = Arc::new(NewModel { model: EmbeddingModel { name: "new".into(), dimension: 2 }, works: 1.into() });
    let config = config(&[("DATABASE_URL", &database.url)]);
    let roles = Database::from_config(&config.stores.memory).unwrap().roles();
    let new = MemoryEngine::new(config.memory, roles, embedder.clone());
    let seen = Mutex::new(Vec::new());
    let progress = |at: Reembedded| seen.lock().unwrap().push((at.done, at.missing));

    // The first batch goes well, and the second does not.
    let broken_off = new.reembed(&progress).await;
    assert!(matches!(broken_off, Err(MemoryError::Embedding(_))), "{broken_off:?}");
    assert_eq!(*seen.lock().unwrap(), [(0, 320), (256, 320)]);
    let by_old = || pb::MemoryQuery {
        user_id: "ann".into(),
        query_text: sentence(7),
        hybrid_alpha: Some(1.0),
        ..Default::default()
    };
    let found = old.agent().retrieve_memory(by_old()).await.unwrap().into_inner();
    assert_eq!((found.items[0].id.as_str(), found.total_found), ("ann-7", 300), "the old model's vectors are there");

    embedder.works.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(new.reembed(&progress).await.unwrap(), Reembedded { done: 64, missing: 64 });
    assert_eq!(new.reembed(&progress).await.unwrap(), Reembedded { done: 0, missing: 0 });
    let found = new.retrieve(&user("ann"), &by_meaning("anything")).await.unwrap();
    assert_eq!(found.total, 300, "every memory but the replaced one");

    assert_eq!(new.forget_other_models().await.unwrap(), 320);
    let found = old.agent().retrieve_memory(by_old()).await.unwrap().into_inner();
    assert_eq!(found.total_found, 0);
    assert_eq!(new.retrieve(&user("ann"), &by_meaning("anything")).await.unwrap().total, 300);
}
