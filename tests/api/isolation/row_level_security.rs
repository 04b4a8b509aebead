//! Row-level security of every table with a `user_id`.

use std::collections::BTreeMap;

use agent_service::{postgres::Role, proto::agent_v1 as pb};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::{INSUFFICIENT_PRIVILEGE, TABLES, error_code, query_number, query_strings, roles, rows_affected};
use crate::harness::{TestDatabase, TestServer, memory_input, user};

async fn insert_rows(server: &TestServer, user_id: &str) {
    let mut client = server.memory();
    let turn = pb::MemoryInput {
        metadata: [("session_id".to_owned(), "s".to_owned())].into(),
        ..memory_input("turn", &format!("{user_id} kat zat"))
    };
    let memories = vec![memory_input("a", &format!("{user_id} kat mat")), turn];
    server.add_memories(user_id, memories).await;
    let document = pb::IngestDocumentRequest {
        user_id: user_id.into(),
        document_id: "book".into(),
        content: format!("# Chapter\n\n{user_id} kat lok"),
        ..Default::default()
    };
    client.ingest_document(document).await.unwrap();
    let update = pb::UpdateMemoryRequest {
        user_id: user_id.into(),
        id: "a".into(),
        content: Some(format!("{user_id} kat tri")),
        ..Default::default()
    };
    client.update_memory(update).await.unwrap();
    let mut owner = server.connect_as_owner().await;
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
        sqlx::query(row).bind(user_id).execute(&mut owner).await.unwrap();
    }
}

#[tokio::test]
async fn rls_confines_statements_without_user_predicate() {
    let server = TestServer::start(&[]).await;
    insert_rows(&server, "ann").await;
    insert_rows(&server, "bob").await;
    let database = server.database();
    let roles = roles(&database.service_url());
    let mut owner = database.connect().await;
    let tables = query_strings(&mut owner, TABLES).await;
    assert!(tables.len() >= 7, "{tables:?}");
    for table in &tables {
        let mut rows = BTreeMap::new();
        for user_id in ["ann", "bob"] {
            let count =
                query_number(&mut owner, format!("select count(*) from {table} where user_id = '{user_id}'")).await;
            assert!(count > 0, "{table} has no row of {user_id}");
            rows.insert(user_id, count);
        }
        let own = rows["ann"].unsigned_abs();
        for role in [&roles.service, &roles.reader] {
            let mut transaction = role.begin(&user("ann")).await.unwrap();
            let user_ids = query_strings(&mut transaction, format!("select user_id from {table}")).await;
            assert_eq!(user_ids, vec!["ann"; user_ids.len()], "{table}");
            assert_eq!(user_ids.len() as u64, own, "{table}");
            let others =
                query_number(&mut transaction, format!("select count(*) from {table} where user_id = 'bob'")).await;
            assert_eq!(others, 0, "{table}");
            let mut without_user = role.begin_without_user().await.unwrap();
            assert_eq!(query_number(&mut without_user, format!("select count(*) from {table}")).await, 0, "{table}");
        }
        // Rolled back when the transaction is dropped.
        for statement in [format!("update {table} set user_id = user_id"), format!("delete from {table}")] {
            let mut transaction = roles.service.begin(&user("ann")).await.unwrap();
            assert_eq!(rows_affected(&mut transaction, statement.clone()).await, own, "{statement}");
            let mut without_user = roles.service.begin_without_user().await.unwrap();
            assert_eq!(rows_affected(&mut without_user, statement.clone()).await, 0, "{statement}");
        }
        let columns = query_strings(
            &mut owner,
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
            assert_eq!(error_code(&mut transaction, &statement).await, INSUFFICIENT_PRIVILEGE, "{statement}");
        }
    }
}

#[tokio::test]
async fn every_user_table_has_forced_rls_and_no_role_bypasses_it() {
    let database = TestDatabase::create().await;
    let mut owner = database.connect().await;
    let tables = query_strings(&mut owner, TABLES).await;
    let unprotected = query_strings(
        &mut owner,
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
    let open = query_strings(
        &mut owner,
        "select relname::text from pg_class
         where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f') and not relrowsecurity
               and exists (select from unnest('{agent_service,agent_reader,agent_maintenance}'::text[]) as role
                           where has_any_column_privilege(role, oid, 'select, insert, update'))",
    )
    .await;
    assert!(open.is_empty(), "tables with rights of the roles but without a policy: {open:?}");
    let functions = "select proname::text from pg_proc where prosecdef and pronamespace = 'public'::regnamespace";
    assert_eq!(
        query_strings(&mut owner, functions).await,
        [""; 0],
        "security definer functions bypass row-level security"
    );

    for role in [Role::Service, Role::Reader, Role::Maintenance].map(Role::name) {
        let unprivileged = format!(
            "select rolname::text from pg_roles
             where rolname = '{role}' and not (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolcanlogin
                                               or rolreplication)
                   and not exists (select from pg_auth_members where member = pg_roles.oid)
                   and not exists (select from pg_shdepend where refobjid = pg_roles.oid and deptype = 'o')"
        );
        assert_eq!(
            query_strings(&mut owner, unprivileged).await,
            [role],
            "the role has privileged attributes, memberships or objects"
        );
        for right in ["truncate", "references", "trigger"] {
            for table in &tables {
                let granted = format!("select has_table_privilege('{role}', '{table}', '{right}')::int::int8");
                assert_eq!(query_number(&mut owner, granted).await, 0, "{role} has {right} on {table}");
            }
        }
    }
}

#[tokio::test]
async fn reader_cannot_write_and_maintenance_cannot_read_content() {
    let server = TestServer::start(&[]).await;
    insert_rows(&server, "ann").await;
    let database = server.database();
    let roles = roles(&database.service_url());
    let mut owner = database.connect().await;
    let tables = query_strings(&mut owner, TABLES).await;
    for table in &tables {
        for statement in [format!("delete from {table}"), format!("update {table} set user_id = user_id")] {
            let mut reader = roles.reader.begin(&user("ann")).await.unwrap();
            let read_only = "25006";
            assert_eq!(error_code(&mut reader, &statement).await, read_only, "{statement}");
            // Not even in a read-write transaction.
            for role in [Role::Reader, Role::Maintenance].map(Role::name) {
                let mut transaction = owner.begin().await.unwrap();
                let set_role = format!("set local role {role}; set local agent.user_id = 'ann'");
                transaction.execute(AssertSqlSafe(set_role)).await.unwrap();
                assert_eq!(
                    error_code(&mut transaction, &statement).await,
                    INSUFFICIENT_PRIVILEGE,
                    "{role}: {statement}"
                );
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
        assert_eq!(error_code(&mut maintenance, statement).await, INSUFFICIENT_PRIVILEGE, "{statement}");
    }
    let mut maintenance = roles.maintenance.begin_without_user().await.unwrap();
    let users = query_strings(&mut maintenance, "select distinct user_id from memories").await;
    assert_eq!(users, ["ann"], "maintenance sees user ids");
}
