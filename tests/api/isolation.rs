//! Users are kept apart by the service and, where the service had a mistake, by the database.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use agent_service::{
    identity::UserId,
    memory::{Filter, MemoryEngine, RetrievalQuery},
    postgres::{Database, Role, RolePools, RoleTransaction},
    proto::agent_v1::{self as pb},
};
use jiff::tz::TimeZone;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tokio::sync::watch;
use tonic::Code;

use crate::harness::{PATIENCE, TestDatabase, TestServer, config};

/// All tables with rows of users.
const TABLES: &str = "
    select relname::text from pg_class
    where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace
          and exists (select from pg_attribute where attrelid = pg_class.oid and attname = 'user_id' and not attisdropped)
    order by relname";

const INSUFFICIENT_PRIVILEGE: &str = "42501";

fn user(id: &str) -> UserId {
    UserId::parse("user_id", id).unwrap()
}

fn roles(url: &str) -> RolePools {
    Database::from_config(&config(&[("DATABASE_URL", url)]).stores.database).unwrap().pools()
}

fn input(id: &str, content: &str) -> pb::MemoryInput {
    pb::MemoryInput { id: id.into(), content: content.into(), ..Default::default() }
}

async fn strings(connection: &mut PgConnection, sql: impl Into<String>) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.into())).persistent(false).fetch_all(connection).await.unwrap()
}

async fn number(connection: &mut PgConnection, sql: impl Into<String>) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.into())).persistent(false).fetch_one(connection).await.unwrap()
}

async fn affected(transaction: &mut RoleTransaction, sql: String) -> u64 {
    transaction.execute(AssertSqlSafe(sql)).await.unwrap().rows_affected()
}

/// The code by which the database refuses a statement.
async fn refusal(connection: &mut PgConnection, sql: &str) -> String {
    let refused = connection.execute(AssertSqlSafe(sql.to_owned())).await;
    let error = refused.expect_err(sql).into_database_error().unwrap();
    error.code().unwrap().into_owned()
}

/// Rows of a user in every table.
async fn fill(server: &TestServer, user_id: &str) {
    let mut client = server.memory();
    let turn = pb::MemoryInput {
        metadata: [("session_id".to_owned(), "s".to_owned())].into(),
        ..input("turn", &format!("{user_id} kat zat"))
    };
    let memories = vec![input("a", &format!("{user_id} kat mat")), turn];
    client.add_memories(pb::AddMemoriesRequest { user_id: user_id.into(), memories }).await.unwrap();
    let document = pb::IngestDocumentRequest {
        user_id: user_id.into(),
        document_id: "book".into(),
        content: format!("# Chapter\n\n{user_id} kat lok"),
        ..Default::default()
    };
    client.ingest_document(document).await.unwrap();
    let correction = pb::UpdateMemoryRequest {
        user_id: user_id.into(),
        id: "a".into(),
        content: Some(format!("{user_id} kat tri")),
        ..Default::default()
    };
    client.update_memory(correction).await.unwrap();
    let mut behind = server.database.as_ref().unwrap().connect().await;
    for row in [
        "insert into pending_turns (user_id, session_id, turn_id, state) values ($1, 's', 't', 'x')",
        "insert into pending_calls (user_id, session_id, call_id) values ($1, 's', 'c')",
        "insert into learning_jobs (user_id, session_id, turn) values ($1, 's', 1)",
        "insert into learned_turns (user_id, session_id, request_id) values ($1, 's', 'r')",
        "insert into sessions (user_id, session_id, title, turns, created_at, updated_at)
         values ($1, 's', 't', 1, now(), now())",
        "insert into turns (user_id, session_id, seq, request_id, record, tokens, is_complete, created_at)
         values ($1, 's', 1, 'r', 'x', 1, true, now())",
        "insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session, started_at)
         values ($1, 'r', 's', 'f', 'h', 'x', now(), true, now())",
        "insert into run_chunks (user_id, request_id, first_frame, frame_count, frames) values ($1, 'r', 1, 1, 'x')",
        "insert into user_usage (user_id) values ($1)",
        "insert into user_profiles (user_id, profile) values ($1, 'x')",
    ] {
        sqlx::query(row).bind(user_id).execute(&mut behind).await.unwrap();
    }
}

#[tokio::test]
async fn a_statement_without_its_user_predicate_touches_rows_of_that_user_alone() {
    let server = TestServer::start(&[]).await;
    fill(&server, "ann").await;
    fill(&server, "bob").await;
    let database = server.database.as_ref().unwrap();
    let roles = roles(&database.service_url());
    let mut behind = database.connect().await;
    let tables = strings(&mut behind, TABLES).await;
    assert!(tables.len() >= 7, "{tables:?}");
    for table in &tables {
        let mut rows = BTreeMap::new();
        for user_id in ["ann", "bob"] {
            let count = number(&mut behind, format!("select count(*) from {table} where user_id = '{user_id}'")).await;
            assert!(count > 0, "{table} has no row of {user_id}");
            rows.insert(user_id, count);
        }
        let own = rows["ann"].unsigned_abs();
        for role in [&roles.service, &roles.reader] {
            let mut transaction = role.begin(&user("ann")).await.unwrap();
            let seen = strings(&mut transaction, format!("select user_id from {table}")).await;
            assert_eq!(seen, vec!["ann"; seen.len()], "{table}");
            assert_eq!(seen.len() as u64, own, "{table}");
            let others = number(&mut transaction, format!("select count(*) from {table} where user_id = 'bob'")).await;
            assert_eq!(others, 0, "{table}");
            let mut nobody = role.begin_without_user().await.unwrap();
            assert_eq!(number(&mut nobody, format!("select count(*) from {table}")).await, 0, "{table}");
        }
        // Each is undone when its transaction is dropped.
        for statement in [format!("update {table} set user_id = user_id"), format!("delete from {table}")] {
            let mut transaction = roles.service.begin(&user("ann")).await.unwrap();
            assert_eq!(affected(&mut transaction, statement.clone()).await, own, "{statement}");
            let mut nobody = roles.service.begin_without_user().await.unwrap();
            assert_eq!(affected(&mut nobody, statement.clone()).await, 0, "{statement}");
        }
        let columns = strings(
            &mut behind,
            format!(
                "select quote_ident(attname) from pg_attribute
                 where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped and attgenerated = ''
                       and attname <> 'user_id'"
            ),
        )
        .await
        .join(", ");
        for statement in [
            format!("update {table} set user_id = 'bob'"),
            format!("insert into {table} (user_id, {columns}) select 'bob', {columns} from {table}"),
            format!("insert into {table} (user_id, {columns}) select 'zoe', {columns} from {table}"),
            format!(
                "insert into {table} (user_id, {columns}) select 'bob', {columns} from {table}
                 on conflict do nothing"
            ),
            format!("truncate {table} cascade"),
        ] {
            let mut transaction = roles.service.begin(&user("ann")).await.unwrap();
            assert_eq!(refusal(&mut transaction, &statement).await, INSUFFICIENT_PRIVILEGE, "{statement}");
        }
    }
}

/// A statement in which nothing tells the user's rows from others' any more, and how often it was told.
fn without_user(statement: &str) -> (String, usize) {
    let told = statement.matches("user_id = $1").count();
    let mut stripped = statement.to_owned();
    for table in ["memories.", "documents.", ""] {
        stripped = stripped.replace(&format!("{table}user_id = $1"), "$1::text is not null");
    }
    (stripped, told)
}

#[tokio::test]
async fn a_search_without_its_user_predicates_finds_memories_of_that_user_alone() {
    let server = TestServer::start(&[]).await;
    for user_id in ["ann", "bob"] {
        let memories = (0..20).map(|n| input(&format!("{user_id}-{n}"), &format!("{user_id} kat zat {n}"))).collect();
        server.memory().add_memories(pb::AddMemoriesRequest { user_id: user_id.into(), memories }).await.unwrap();
    }
    // A session that keeps statements by name tells what the service has really sent.
    let database = server.database.as_ref().unwrap();
    let variables = [("DATABASE_URL", database.url.as_str()), ("DATABASE_PREPARED_STATEMENTS", "on")];
    let roles = Database::from_config(&config(&variables).stores.database).unwrap().pools();
    let embedder = agent_service::embedding::from_config(&config(&[("EMBEDDING_PROVIDER", "hashed")]).embedding);
    let engine = MemoryEngine::new(config(&[]).memory, roles.clone(), embedder.unwrap());
    let mut query = query("kat");
    let mut behind = database.connect().await;
    let vector =
        strings(&mut behind, "select embedding::real[]::text from memory_vectors where memory_id = 'ann-1'").await;
    let model = strings(&mut behind, "select distinct model from memory_vectors").await;

    // The pool has more than one session, and each keeps what it was sent.
    let mut sent = BTreeMap::new();
    let collected = async {
        while sent.len() < 2 {
            for tags in [vec![], vec!["x".to_owned()]] {
                query.filter.tags = tags;
                engine.retrieve(&user("ann"), &query).await.unwrap();
            }
            let mut transaction = roles.reader.begin(&user("ann")).await.unwrap();
            let kept = "select statement, parameter_types::text[] from pg_prepared_statements
                        where statement like 'with %memory_postings%memory_vectors%'";
            let kept = sqlx::query(kept).persistent(false).fetch_all(&mut *transaction).await.unwrap();
            sent.extend(kept.iter().map(|row| (row.get::<String, _>(0), row.get::<Vec<String>, _>(1).join(", "))));
        }
    };
    tokio::time::timeout(PATIENCE, collected).await.expect("there is a search with a filter and one without");
    let mut transaction = roles.reader.begin(&user("ann")).await.unwrap();
    for (statement, types) in sent {
        let (statement, told) = without_user(&statement);
        assert!(told >= 4 && !statement.contains("user_id = $1"), "{statement}");
        let values = format!(
            "'ann', null, null, null, null, null, '{{kat}}', '{{1}}', 1.2, 0.75, 5, 1, '{}', '{}', 0.5, 0, 1000, 100, '{{}}',
             '{{}}', 0.05, 200",
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
        // Whoever is above the policies shows that nothing but them is left.
        let unprotected = search(&mut behind).await;
        assert!(["ann", "bob"].iter().all(|id| unprotected.iter().any(|owner| owner == id)), "{unprotected:?}");
        assert_eq!(search(&mut transaction).await, vec!["ann"; 20]);
    }
    for statement in [
        "select user_id from memory_vectors order by embedding <=> $1::real[]::vector limit 100",
        "select user_id from memory_postings join unnest('{kat,ann,bob}'::text[], $1::real[]) as asked (term, idf) using (term)",
        "select memories.user_id from memories join memory_vectors on memory_id = id where $1::real[] is not null",
        "select user_id from memories where content like '%bob%' or $1::real[] is not null",
    ] {
        let query = AssertSqlSafe(statement.replace("$1", &format!("'{}'", vector[0])));
        let rows = transaction.fetch_all(query).await.unwrap();
        let owners: BTreeSet<String> = rows.iter().map(|row| row.get("user_id")).collect();
        assert_eq!(owners, BTreeSet::from(["ann".to_owned()]), "{statement}");
    }
}

#[tokio::test]
async fn every_table_with_rows_of_users_is_protected_and_no_role_is_above_it() {
    let database = TestDatabase::create().await;
    let mut behind = database.connect().await;
    let tables = strings(&mut behind, TABLES).await;
    let unprotected = strings(
        &mut behind,
        "select relname::text from pg_class
         where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')
               and exists (select from pg_attribute
                           where attrelid = pg_class.oid and attname = 'user_id' and not attisdropped)
               -- A view would show what its owner sees.
               and (relkind not in ('r', 'p') or not relrowsecurity or not relforcerowsecurity
                    or not exists (select from pg_policy where polrelid = pg_class.oid))",
    )
    .await;
    assert!(unprotected.is_empty(), "{unprotected:?}");
    let open = strings(
        &mut behind,
        "select relname::text from pg_class
         where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f') and not relrowsecurity
               and exists (select from unnest('{agent_service,agent_reader,agent_maintenance}'::text[]) as role
                           where has_any_column_privilege(role, oid, 'select, insert, update'))",
    )
    .await;
    assert!(open.is_empty(), "tables that are open to the roles and have no policy: {open:?}");
    let functions = "select proname::text from pg_proc where prosecdef and pronamespace = 'public'::regnamespace";
    assert_eq!(strings(&mut behind, functions).await, [""; 0], "a function would act with the rights of its owner");

    for role in [Role::Service, Role::Reader, Role::Maintenance].map(Role::name) {
        let above = format!(
            "select rolname::text from pg_roles
             where rolname = '{role}' and not (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolcanlogin
                                               or rolreplication)
                   and not exists (select from pg_auth_members where member = pg_roles.oid)
                   and not exists (select from pg_shdepend where refobjid = pg_roles.oid and deptype = 'o')"
        );
        assert_eq!(strings(&mut behind, above).await, [role], "it is above what a role should be, or owns something");
        for right in ["truncate", "references", "trigger"] {
            for table in &tables {
                let granted = format!("select has_table_privilege('{role}', '{table}', '{right}')::int::int8");
                assert_eq!(number(&mut behind, granted).await, 0, "{role} has {right} on {table}");
            }
        }
    }
}

#[tokio::test]
async fn a_reader_writes_nothing_and_maintenance_reads_no_content() {
    let server = TestServer::start(&[]).await;
    fill(&server, "ann").await;
    let database = server.database.as_ref().unwrap();
    let roles = roles(&database.service_url());
    let mut behind = database.connect().await;
    let tables = strings(&mut behind, TABLES).await;
    for table in &tables {
        for statement in [format!("delete from {table}"), format!("update {table} set user_id = user_id")] {
            let mut reader = roles.reader.begin(&user("ann")).await.unwrap();
            let read_only = "25006";
            assert_eq!(refusal(&mut reader, &statement).await, read_only, "{statement}");
            // Nor in a transaction that may write.
            for role in [Role::Reader, Role::Maintenance].map(Role::name) {
                let mut transaction = behind.begin().await.unwrap();
                let acting = format!("set local role {role}; set local agent.user_id = 'ann'");
                transaction.execute(AssertSqlSafe(acting)).await.unwrap();
                assert_eq!(refusal(&mut transaction, &statement).await, INSUFFICIENT_PRIVILEGE, "{role}: {statement}");
            }
        }
    }
    for statement in [
        "select content from memories",
        "select * from memories",
        "select metadata from memories",
        "select embedding from memory_vectors",
        "select digest from memory_vectors",
        "select content from memory_history",
        "select term from memory_postings",
        "select term from memory_terms",
        "select title from documents",
    ] {
        let mut maintenance = roles.maintenance.begin_without_user().await.unwrap();
        assert_eq!(refusal(&mut maintenance, statement).await, INSUFFICIENT_PRIVILEGE, "{statement}");
    }
    let mut maintenance = roles.maintenance.begin_without_user().await.unwrap();
    let users = strings(&mut maintenance, "select distinct user_id from memories").await;
    assert_eq!(users, ["ann"], "it sees who there is");
}

fn query(text: &str) -> RetrievalQuery {
    RetrievalQuery {
        text: text.to_owned(),
        limit: 100,
        min_score: 0.0,
        filter: Filter::default(),
        alpha: 0.5,
        time_zone: TimeZone::UTC,
    }
}

#[tokio::test]
async fn a_search_under_the_policies_reads_the_index_of_the_user_alone() {
    const WORDS: [&str; 8] = ["kat", "zat", "mat", "dok", "lok", "frint", "bort", "zang"];
    let server = TestServer::start(&[]).await;
    let word = |n: usize| WORDS[n % WORDS.len()];
    let memories = (0..500).map(|n| input(&format!("m{n}"), &format!("{} {} x{n}", word(n), word(n / 8))));
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: memories.collect() };
    server.memory().add_memories(request).await.unwrap();
    let mut behind = server.database.as_ref().unwrap().connect().await;
    // Others with as much, some of whom are named almost alike.
    behind
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
    assert_eq!(number(&mut behind, "select count(*) from memories").await, 6_000);

    for alpha in [0.0, 0.5, 1.0] {
        let plan =
            server.engine.explain(&user("ann"), &RetrievalQuery { alpha, ..query("kat x17 bort") }).await.unwrap();
        assert!(!plan.contains("Seq Scan on memor"), "alpha {alpha}:\n{plan}");
        // The condition stands below the index that it is of.
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

#[tokio::test]
async fn what_reads_goes_by_the_reading_login_which_may_do_nothing_else() {
    let database = TestDatabase::create().await;
    let mut behind = database.connect().await;
    let login = format!("agent_reading_{}", std::process::id());
    let made = format!(
        "drop role if exists {login}; create role {login} login; grant agent_reader to {login};
         grant select on _sqlx_migrations to {login}"
    );
    behind.execute(AssertSqlSafe(made)).await.unwrap();
    let mut read_url = reqwest::Url::parse(&database.service_url()).unwrap();
    read_url.set_username(&login).unwrap();
    let read = [("DATABASE_READ_URL", read_url.as_str())];
    let url = database.service_url();

    let (ready, mut is_ready) = watch::channel(false);
    let kept = Database::from_config(&config(&[("DATABASE_URL", &url), read[0]]).stores.database).unwrap();
    tokio::select! {
        kept = kept.supervise(&ready, Arc::new(|_| {})) => panic!("{kept:?}"),
        ready = tokio::time::timeout(PATIENCE, is_ready.wait_for(|ready| *ready)) => drop(ready.unwrap().unwrap()),
    }
    let server = TestServer::start_on(&url, &read).await;
    let logins = "select distinct usename::text from pg_stat_activity
                  where datname = current_database() and pid <> pg_backend_pid() order by usename";
    server.remember("ann", &["kat zat"]).await;
    let before = strings(&mut behind, logins).await;
    let by_words = pb::MemoryQuery {
        user_id: "ann".into(),
        query_text: "kat".into(),
        hybrid_alpha: Some(0.5),
        ..Default::default()
    };
    let found = server.agent().retrieve_memory(by_words.clone()).await.unwrap().into_inner();
    assert_eq!(found.items[0].content, "kat zat");
    let request = pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() };
    assert_eq!(server.memory().list_memories(request.clone()).await.unwrap().into_inner().memories.len(), 1);
    if std::env::var_os("TEST_POOLER_URL").is_none() {
        assert!(!before.contains(&login), "{before:?}");
    }
    assert!(strings(&mut behind, logins).await.contains(&login), "nobody read by the reading login");
    // That login may act as the reader and as nobody else.
    let alone = roles(read_url.as_str());
    assert!(alone.reader.begin(&user("ann")).await.is_ok());
    for refused in [alone.service.begin(&user("ann")).await, alone.maintenance.begin_without_user().await] {
        let error = refused.err().unwrap().into_database_error().unwrap();
        assert_eq!(error.code().as_deref(), Some(INSUFFICIENT_PRIVILEGE));
    }
    // Whoever comes next gets the very connection that was refused.
    let one = Database::from_config(&config(&[("DATABASE_URL", read_url.as_str())]).stores.database).unwrap();
    let one = one.pools_with_limit(1);
    one.service.begin(&user("ann")).await.err().unwrap();
    one.reader.begin(&user("ann")).await.unwrap();
    drop((server, alone, one));

    // Where nobody answers for the reader, what is kept is kept all the same.
    let nobody = "127.0.0.1:1";
    let dead = format!("postgres://nobody@{nobody}/none");
    let server = TestServer::start_on(&url, &[("DATABASE_READ_URL", &dead)]).await;
    server.remember("ann", &["kat mat"]).await;
    assert_eq!(server.agent().retrieve_memory(by_words).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(server.memory().list_memories(request).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(number(&mut behind, "select count(*) from memories").await, 2);
    drop(server);
    let by_name = format!("drop owned by {login}; drop role {login}");
    behind.execute(AssertSqlSafe(by_name)).await.unwrap();
}
