//! Vectors in great number, and of another model.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use agent_service::{
    embedding::{EmbedError, Embedder, EmbeddingModel, QueryVector},
    identity::UserId,
    memory::{Filter, MemoryEngine, MemoryError, NewMemory, ReembedProgress, RetrievalQuery, Selection},
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
    let database = Database::from_config(&config.stores.database).unwrap();
    (Services::from_config(&config, database.pools()).unwrap().engine, database)
}

fn by_meaning(text: &str) -> RetrievalQuery {
    RetrievalQuery {
        text: text.into(),
        limit: 10,
        min_score: 0.0,
        filter: Filter::default(),
        alpha: 1.0,
        time_zone: TimeZone::UTC,
    }
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
    let plan =
        async |engine: &MemoryEngine, user: &UserId, query: &RetrievalQuery| engine.explain(user, query).await.unwrap();
    assert!(!plan(&indexed, &ann, &by_meaning("river")).await.contains("<=>"), "there is no index yet");

    indexed.build_vector_index(&owner).await.unwrap();
    indexed.build_vector_index(&owner).await.unwrap();
    let mut behind = database.connect().await;
    assert_eq!(indexes(&mut behind).await, [true], "building it again does nothing");
    let filtered = RetrievalQuery {
        filter: Filter { source_types: vec!["note".into()], ..Filter::default() },
        ..by_meaning("river matrix")
    };
    let hybrid = RetrievalQuery { alpha: 0.5, ..by_meaning("river matrix") };
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
            let query = RetrievalQuery { alpha, ..by_meaning(&sentence(10_000 + number)) };
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
    let above = RetrievalQuery { min_score: 0.6, ..own };
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
        let building = builders.iter().map(|(engine, owner)| engine.build_vector_index(owner));
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
    indexed.build_vector_index(&owner).await.unwrap();
    let plan = indexed.explain(&user("ann"), &by_meaning("river matrix")).await.unwrap();
    assert!(!plan.contains("<=>"), "hers are known to be few");
    // As it was when the others had less.
    behind.execute("update pg_class set reltuples = 1000 where relname like 'memory\\_vectors\\_%'").await.unwrap();
    let ann = user("ann");
    for query in [
        by_meaning("river matrix"),
        RetrievalQuery { alpha: 0.5, ..by_meaning("river matrix") },
        RetrievalQuery { alpha: 0.5, ..by_meaning("zebra unheard") },
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
        Box::pin(async move { if works { Ok(vectors) } else { Err(EmbedError::Rejected(503)) } })
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
    let roles = Database::from_config(&config.stores.database).unwrap().pools();
    let new = MemoryEngine::new(config.memory, roles, embedder.clone());
    let seen = Mutex::new(Vec::new());
    let progress = |at: ReembedProgress| seen.lock().unwrap().push((at.done, at.total));

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
    assert_eq!(new.reembed(&progress).await.unwrap(), ReembedProgress { done: 64, total: 64, rejected: 0 });
    assert_eq!(new.reembed(&progress).await.unwrap(), ReembedProgress::default());
    let found = new.retrieve(&user("ann"), &by_meaning("anything")).await.unwrap();
    assert_eq!(found.total, 300, "every memory but the replaced one");

    assert_eq!(new.delete_other_models().await.unwrap(), 320);
    let found = old.agent().retrieve_memory(by_old()).await.unwrap().into_inner();
    assert_eq!(found.total_found, 0);
    assert_eq!(new.retrieve(&user("ann"), &by_meaning("anything")).await.unwrap().total, 300);
}

/// A model that refuses texts with a word, and counts how often it was asked.
struct Choosy {
    model: EmbeddingModel,
    asked: AtomicUsize,
    /// The share of a query that it says to know.
    known_share: f32,
}

impl Choosy {
    fn new(known_share: f32) -> Arc<Self> {
        let model = EmbeddingModel { name: "choosy".into(), dimension: 2 };
        Arc::new(Self { model, asked: AtomicUsize::new(0), known_share })
    }

    fn engine(self: &Arc<Self>, database: &TestDatabase) -> MemoryEngine {
        let config = config(&[("DATABASE_URL", &database.service_url())]);
        let roles = Database::from_config(&config.stores.database).unwrap().pools();
        MemoryEngine::new(config.memory, roles, self.clone())
    }
}

impl Embedder for Choosy {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let refuses = texts.iter().any(|text| text.contains("frint"));
        let made = if refuses { Err(EmbedError::Rejected(400)) } else { Ok(vec![vec![0.0, 1.0]; texts.len()]) };
        Box::pin(std::future::ready(made))
    }

    fn embed_query<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<QueryVector, EmbedError>> {
        Box::pin(async move {
            let vector = self.embed(&[text]).await?.remove(0);
            Ok(QueryVector { vector, vocabulary_coverage: self.known_share })
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
async fn a_text_that_the_new_model_refuses_is_passed_over_and_keeps_its_old_vector() {
    let old = TestServer::start(&[]).await;
    add(&old, "ann", 0..20).await;
    old.remember("ann", &["frint"]).await;
    let new = Choosy::new(1.0).engine(old.database.as_ref().unwrap());
    assert_eq!(new.reembed(&|_| {}).await.unwrap(), ReembedProgress { done: 20, total: 21, rejected: 1 });
    assert_eq!(new.count_missing_vectors().await.unwrap(), 1);
    assert_eq!(new.delete_other_models().await.unwrap(), 20);
    let by_old = pb::MemoryQuery {
        user_id: "ann".into(),
        query_text: "frint".into(),
        hybrid_alpha: Some(1.0),
        ..Default::default()
    };
    assert_eq!(old.agent().retrieve_memory(by_old).await.unwrap().into_inner().total_found, 1);
}

#[tokio::test]
async fn a_query_that_the_model_has_no_words_for_is_answered_as_by_words_alone() {
    let database = TestDatabase::create().await;
    let engine = Choosy::new(0.0).engine(&database);
    let memories = (0..30).map(|n| new_memory(&format!("m{n}"), &sentence(n))).collect();
    engine.add(&user("ann"), memories).await.unwrap();
    for text in ["river matrix", "violin", "unheard"] {
        let query = RetrievalQuery { alpha: 0.5, ..by_meaning(text) };
        let words = engine.retrieve(&user("ann"), &RetrievalQuery { alpha: 0.0, ..query.clone() }).await.unwrap();
        assert_eq!(engine.retrieve(&user("ann"), &query).await.unwrap(), words, "{text}");
    }
}

#[tokio::test]
async fn a_thousand_memories_are_embedded_in_one_call_and_written_in_few_statements() {
    let database = TestDatabase::create().await;
    let embedder = Choosy::new(1.0);
    let engine = embedder.engine(&database);
    let memories = (0..1_000).map(|n| new_memory(&format!("m{n}"), &sentence(n))).collect();
    let mut behind = database.connect().await;
    // Each statement that writes fires once.
    behind
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
    assert_eq!(embedder.asked.load(Ordering::Relaxed), 1);
    let statements: i64 = sqlx::query_scalar("select count(*) from statements").fetch_one(&mut behind).await.unwrap();
    assert!((4..=20).contains(&statements), "{statements} statements");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_write_the_same_ids_neither_block_each_other_nor_keep_anything_twice() {
    let database = TestDatabase::create().await;
    // Each with its own queue of writers, so that the database alone keeps them apart.
    let engines = [Choosy::new(1.0).engine(&database), Choosy::new(1.0).engine(&database)];
    let ann = user("ann");
    let write = async |engine: &MemoryEngine, way: usize| {
        for round in 0..10 {
            let mut memories: Vec<_> =
                (0..60).map(|n| new_memory(&format!("m{n}"), &sentence(n + round % 3))).collect();
            let unnamed = (0..20).map(|n| NewMemory { id: None, ..new_memory("", &format!("kat {n}")) });
            memories.extend(unnamed);
            if way == 1 {
                memories.reverse();
            }
            engine.add(&ann, memories).await.unwrap();
            // What one forgets it keeps again later.
            if round % 4 == way && round < 8 {
                engine.delete(&ann, &Selection::Ids(vec!["m3".into(), "m5".into()])).await.unwrap();
            }
        }
    };
    let both = async { tokio::join!(write(&engines[0], 0), write(&engines[1], 1)) };
    tokio::time::timeout(PATIENCE, both).await.expect("they wait for each other");
    let mut behind = database.connect().await;
    for (what, statement) in [
        ("ids or contents", "select count(*) - 80 from memories"),
        (
            "contents without an id",
            "select count(*) - count(distinct content) from memories where content like 'kat %'",
        ),
        ("vectors", "select count(*) - 80 from memory_vectors"),
        (
            "document frequencies",
            "select count(*) from (select term, count(*) as memories from memory_postings group by term) counted
             full join memory_terms using (term, memories) where counted.term is null or memory_terms.term is null",
        ),
        ("statistics", "select memories - 80 from memory_users"),
    ] {
        let wrong: i64 = sqlx::query_scalar(statement).fetch_one(&mut behind).await.unwrap();
        assert_eq!(wrong, 0, "{what}");
    }
}
