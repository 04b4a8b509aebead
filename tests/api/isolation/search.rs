//! Row-level security of searches.

use std::collections::{BTreeMap, BTreeSet};

use agent_service::{
    memory::{MemoryEngine, RetrievalQuery},
    postgres::Database,
};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};

use super::{query_number, query_strings};
use crate::harness::{TEST_TIMEOUT, TestServer, config, engine_query, memory_input, user};

/// A statement without its user predicates, and how many there were.
fn without_user_predicates(statement: &str) -> (String, usize) {
    let predicates = statement.matches("user_id = $1").count();
    let mut stripped = statement.to_owned();
    for table in ["memories.", "documents.", ""] {
        stripped = stripped.replace(&format!("{table}user_id = $1"), "$1::text is not null");
    }
    (stripped, predicates)
}

#[tokio::test]
async fn rls_confines_search_without_user_predicates() {
    let server = TestServer::start(&[]).await;
    for user_id in ["ann", "bob"] {
        let memories =
            (0..20).map(|n| memory_input(&format!("{user_id}-{n}"), &format!("{user_id} kat zat {n}"))).collect();
        server.add_memories(user_id, memories).await;
    }
    // `pg_prepared_statements` shows the statements that the service really sent.
    let database = server.database();
    let variables = [("DATABASE_URL", database.url.as_str()), ("DATABASE_PREPARED_STATEMENTS", "on")];
    let roles = Database::from_config(&config(&variables).stores.database).unwrap().pools();
    let embedder = agent_service::composition::build_embedder(&config(&[("EMBEDDING_PROVIDER", "hashed")]).embedding);
    let engine = MemoryEngine::new(config(&[]).memory, roles.clone(), embedder.unwrap());
    let mut query = RetrievalQuery { limit: 100, ..engine_query("kat", 0.5) };
    let mut owner = database.connect().await;
    let vector =
        query_strings(&mut owner, "select embedding::text from memory_vectors where memory_id = 'ann-1'").await;
    let model = query_strings(&mut owner, "select distinct model from memory_vectors").await;

    // Prepared statements are per session, and the pool has several.
    let mut statements = BTreeMap::new();
    let collected = async {
        while statements.len() < 2 {
            for tags in [vec![], vec!["x".to_owned()]] {
                query.filter.tags = tags;
                engine.retrieve(&user("ann"), &query).await.unwrap();
            }
            let mut transaction = roles.reader.begin(&user("ann")).await.unwrap();
            let prepared = "select statement, parameter_types::text[] from pg_prepared_statements
                        where statement like 'with %memory_postings%memory_vectors%'";
            let prepared = sqlx::query(prepared).persistent(false).fetch_all(&mut *transaction).await.unwrap();
            statements
                .extend(prepared.iter().map(|row| (row.get::<String, _>(0), row.get::<Vec<String>, _>(1).join(", "))));
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, collected)
        .await
        .expect("the searches with and without filter were not both prepared");
    let mut transaction = roles.reader.begin(&user("ann")).await.unwrap();
    for (statement, types) in statements {
        let (statement, predicates) = without_user_predicates(&statement);
        assert!(predicates >= 4 && !statement.contains("user_id = $1"), "{statement}");
        let values = format!(
            "'ann', null, null, null, null, null, '{{kat}}', 1, 1.2, 0.75, null, '{}', '{}', 0.5, 0, 1000, 100, '{{}}',
             '{{}}', 0.05, 200, 300",
            vector[0], model[0]
        );
        let search = async |connection: &mut PgConnection| {
            let prepare = format!("prepare stripped ({types}) as {statement}");
            connection.execute(AssertSqlSafe(prepare)).await.unwrap();
            let execute = AssertSqlSafe(format!("execute stripped ({values})"));
            let rows = sqlx::raw_sql(execute).fetch_all(&mut *connection).await.unwrap();
            connection.execute("deallocate stripped").await.unwrap();
            let owner = |row: &sqlx::postgres::PgRow| row.get::<String, _>("id").split('-').next().unwrap().to_owned();
            rows.iter().map(owner).collect::<Vec<_>>()
        };
        // As superuser the stripped statement returns rows of both users, so only the policies can confine it.
        let unprotected = search(&mut owner).await;
        assert!(["ann", "bob"].iter().all(|id| unprotected.iter().any(|owner| owner == id)), "{unprotected:?}");
        assert_eq!(search(&mut transaction).await, vec!["ann"; 20]);
    }
    for statement in [
        "select user_id from memory_vectors order by embedding <=> $1::vector limit 100",
        "select user_id from memory_postings join unnest('{kat,ann,bob}'::text[], $1::vector::real[]) as asked (term, idf) using (term)",
        "select memories.user_id from memories join memory_vectors on memory_id = id where $1::vector is not null",
        "select user_id from memories where content like '%bob%' or $1::vector is not null",
    ] {
        let query = AssertSqlSafe(statement.replace("$1", &format!("'{}'", vector[0])));
        let rows = transaction.fetch_all(query).await.unwrap();
        let owners: BTreeSet<String> = rows.iter().map(|row| row.get("user_id")).collect();
        assert_eq!(owners, BTreeSet::from(["ann".to_owned()]), "{statement}");
    }
}

#[tokio::test]
async fn search_under_rls_scans_only_index_entries_of_the_user() {
    const WORDS: [&str; 8] = ["kat", "zat", "mat", "dok", "lok", "frint", "bort", "zang"];
    let server = TestServer::start(&[]).await;
    let word = |n: usize| WORDS[n % WORDS.len()];
    let memories = (0..500).map(|n| memory_input(&format!("m{n}"), &format!("{} {} x{n}", word(n), word(n / 8))));
    server.add_memories("ann", memories.collect()).await;
    let mut owner = server.connect_as_owner().await;
    // Other users with equally many memories, some with similar names.
    owner
        .execute(
            "create temporary table others as
             select unnest('{Ann,\"ann \",anna,an,bob,cem,dee,eve,fay,gil,hal}'::text[]) as name;
             insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, created_at)
             select name, id, content, content_digest, source_type, tags, metadata, created_at from memories, others;
             insert into memory_vectors select name, model, memory_id, digest, embedding from memory_vectors, others;
             insert into memory_postings select name, term, memory_id, frequency, length from memory_postings, others;
             insert into memory_terms select name, term, memories from memory_terms, others;
             insert into memory_users select name, memories, total_length, tokenizer from memory_users, others;
             analyze",
        )
        .await
        .unwrap();
    assert_eq!(query_number(&mut owner, "select count(*) from memories").await, 6_000);

    for alpha in [0.0, 0.5, 1.0] {
        let plan = server
            .engine
            .explain(&user("ann"), &RetrievalQuery { limit: 100, ..engine_query("kat x17 bort", alpha) })
            .await
            .unwrap();
        // `memory_users` is one page.
        let scans = plan.replace("Seq Scan on memory_users", "");
        assert!(!scans.contains("Seq Scan on memor"), "alpha {alpha}:\n{plan}");
        // EXPLAIN prints the condition below its index.
        let lines: Vec<_> = plan.lines().collect();
        let looks_up = |index: &str, parts: &[&str]| {
            lines.windows(2).any(|pair| {
                let is_condition = pair[0].contains(index) && pair[1].trim_start().starts_with("Index Cond: ");
                is_condition && parts.iter().all(|part| pair[1].contains(part))
            })
        };
        if alpha < 1.0 {
            assert!(looks_up("memory_postings_pkey", &["(user_id = 'ann'", "(term = "]), "alpha {alpha}:\n{plan}");
        }
        if alpha > 0.0 {
            assert!(looks_up("memory_vectors_", &["(user_id = 'ann'"]), "alpha {alpha}:\n{plan}");
        }
    }
}
