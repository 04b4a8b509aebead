//! The HNSW index: when it is used, its recall, concurrent builds.

use std::sync::Arc;

use agent_service::{
    composition::App,
    identity::UserId,
    memory::{Filter, MemoryEngine, RetrievalQuery},
    postgres::Database,
};
use sqlx::{Executor as _, PgConnection};

use crate::harness::{TEST_TIMEOUT, TestDatabase, TestServer, config, engine_query, memory_input, user};

fn start_engine(database: &TestDatabase, variables: &[(&str, &str)]) -> (Arc<MemoryEngine>, Database) {
    let mut all = vec![("DATABASE_URL", database.url.as_str()), ("EMBEDDING_PROVIDER", "hashed")];
    all.extend(variables);
    let config = config(&all);
    let database = Database::from_config(&config.stores.database).unwrap();
    (App::from_config(&config, database.pools()).unwrap().engine, database)
}

/// Deterministic sentences over a small vocabulary.
pub fn sentence(number: usize) -> String {
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

pub async fn add_sentences(server: &TestServer, user: &str, sentences: std::ops::Range<usize>) {
    let memories = sentences.map(|number| memory_input(&format!("{user}-{number}"), &sentence(number)));
    for batch in memories.collect::<Vec<_>>().chunks(1_000) {
        server.add_memories(user, batch.to_vec()).await;
    }
}

#[tokio::test]
async fn hnsw_matches_exact_knn_and_is_used_above_threshold() {
    let server = TestServer::start(&[]).await;
    for (user, range) in [("ann", 0..1_500), ("bob", 1_500..3_000), ("cid", 0..20)] {
        add_sentences(&server, user, range).await;
    }
    let database = server.database();
    let (indexed, database_owner) = start_engine(database, &[("VECTOR_INDEX_THRESHOLD", "1000")]);
    let (exact, _) = start_engine(database, &[]);
    let ann = user("ann");
    let plan =
        async |engine: &MemoryEngine, user: &UserId, query: &RetrievalQuery| engine.explain(user, query).await.unwrap();
    assert!(
        !plan(&indexed, &ann, &engine_query("river", 1.0)).await.contains("<=>"),
        "the index is used before it exists"
    );

    indexed.build_vector_index(&database_owner).await.unwrap();
    indexed.build_vector_index(&database_owner).await.unwrap();
    let mut owner = database.connect().await;
    assert_eq!(index_validity(&mut owner).await, [true], "a second build changed the index");
    let filtered = RetrievalQuery {
        filter: Filter { source_types: vec!["note".into()], ..Filter::default() },
        ..engine_query("river matrix", 1.0)
    };
    let hybrid = RetrievalQuery { alpha: 0.5, ..engine_query("river matrix", 1.0) };
    for (uses_index, engine, user, query) in [
        (true, &indexed, &ann, &engine_query("river matrix", 1.0)),
        (true, &indexed, &ann, &hybrid),
        (false, &indexed, &ann, &filtered),
        (false, &indexed, &user("cid"), &engine_query("river matrix", 1.0)),
        (false, &exact, &ann, &engine_query("river matrix", 1.0)),
    ] {
        let plan = plan(engine, user, query).await;
        assert_eq!(
            plan.contains("Index Scan using memory_vectors_") && plan.contains("Order By"),
            uses_index,
            "{plan}"
        );
    }

    for alpha in [1.0, 0.5] {
        let (mut found, mut all) = (0, 0);
        for number in 0..60 {
            let query = RetrievalQuery { alpha, ..engine_query(&sentence(10_000 + number), 1.0) };
            let best = exact.retrieve(&ann, &query).await.unwrap();
            let approximate = indexed.retrieve(&ann, &query).await.unwrap();
            assert!(approximate.hits.iter().all(|(memory, _)| memory.id.starts_with("ann-")));
            assert_eq!(approximate.total, best.total, "{alpha}");
            // Equal scores are interchangeable.
            let floor = best.hits.last().unwrap().1 - 1e-6;
            all += best.hits.len();
            found += approximate.hits.iter().filter(|(_, score)| *score >= floor).count();
        }
        assert!(found * 100 >= all * 98, "alpha {alpha}: {found} of {all}");
    }

    // Writes and deletes are visible at once.
    add_sentences(&server, "ann", 7_000..7_001).await;
    let query = engine_query(&sentence(7_000), 1.0);
    assert_eq!(indexed.retrieve(&ann, &query).await.unwrap().hits[0].0.id, "ann-7000");
    server.delete_memories(&["ann-7000"]).await;
    assert!(indexed.retrieve(&ann, &query).await.unwrap().hits.iter().all(|(memory, _)| memory.id != "ann-7000"));
    let above = RetrievalQuery { min_score: 0.6, ..query };
    let (approximate, best) =
        (indexed.retrieve(&ann, &above).await.unwrap(), exact.retrieve(&ann, &above).await.unwrap());
    assert_eq!(approximate, best, "min_score counts everything above it");
}

/// The validity of each HNSW index.
async fn index_validity(owner: &mut PgConnection) -> Vec<bool> {
    let found = "select indisvalid from pg_index where pg_get_indexdef(indexrelid) like '%hnsw%'";
    sqlx::query_scalar(found).fetch_all(owner).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_index_builds_leave_one_valid_index() {
    let server = TestServer::start(&[]).await;
    add_sentences(&server, "ann", 0..1_200).await;
    let database = server.database();
    let variables = [("VECTOR_INDEX_THRESHOLD", "1000")];
    let mut owner = database.connect().await;
    for _ in 0..4 {
        let builders: Vec<_> = (0..3).map(|_| start_engine(database, &variables)).collect();
        let building = builders.iter().map(|(engine, database)| engine.build_vector_index(database));
        let built = futures_util::future::try_join_all(building);
        tokio::time::timeout(TEST_TIMEOUT, built).await.expect("the builds deadlock").unwrap();
        assert_eq!(index_validity(&mut owner).await, [true]);
        // As an interrupted build leaves it.
        owner
            .execute(
                "update pg_index set indisvalid = false where indisvalid and pg_get_indexdef(indexrelid) like '%hnsw%'",
            )
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn small_user_is_found_among_nearer_vectors_of_others() {
    let server = TestServer::start(&[]).await;
    for (user, text) in [("ann", "zebra anchor basket"), ("bob", "river matrix")] {
        let memory = |n| memory_input(&format!("{n:04}"), &format!("{text} {n}"));
        server.add_memories(user, (0..1_000).map(memory).collect()).await;
    }
    let database = server.database();
    let mut owner = database.connect().await;
    owner
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
    let (indexed, database_owner) = start_engine(database, &[("VECTOR_INDEX_THRESHOLD", "1000")]);
    let (exact, _) = start_engine(database, &[]);
    indexed.build_vector_index(&database_owner).await.unwrap();
    let plan = indexed.explain(&user("ann"), &engine_query("river matrix", 1.0)).await.unwrap();
    assert!(!plan.contains("<=>"), "the planner knows that the user has few vectors");
    // Stale statistics, from when other users had fewer vectors.
    owner.execute("update pg_class set reltuples = 1000 where relname like 'memory\\_vectors\\_%'").await.unwrap();
    let ann = user("ann");
    for query in [
        engine_query("river matrix", 1.0),
        RetrievalQuery { alpha: 0.5, ..engine_query("river matrix", 1.0) },
        RetrievalQuery { alpha: 0.5, ..engine_query("zebra unheard", 1.0) },
    ] {
        assert!(indexed.explain(&ann, &query).await.unwrap().contains("<=>"), "the index is not used");
        let (found, best) =
            (indexed.retrieve(&ann, &query).await.unwrap(), exact.retrieve(&ann, &query).await.unwrap());
        assert_eq!(found, best, "{query:?}");
        assert_eq!((found.hits.len(), found.total), (10, 1_000));
    }
}
