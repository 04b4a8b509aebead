//! Logins, migrations, roles, timeouts and poolers of the database.

use std::{str::FromStr as _, time::Duration};

use agent_service::{
    identity::UserId,
    memory::MemoryError,
    postgres::{Database, DatabaseError},
    proto::agent_v1 as pb,
};
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::sync::watch;

use crate::harness::{
    TEST_TIMEOUT, TestDatabase, TestServer, UNREACHABLE_DATABASE, config, memory_input, memory_query, pooled_url,
};

fn database(variables: &[(&str, &str)]) -> Database {
    Database::from_config(&config(variables).stores.database).unwrap()
}

#[tokio::test]
async fn login_without_ddl_rights_serves_after_owner_migrates() {
    let empty = TestDatabase::create().await;
    let mut owner = empty.connect().await;
    // An empty database with the default rights of Postgres 15 and later.
    owner
        .execute("drop schema public cascade; create schema public; create extension if not exists vector")
        .await
        .unwrap();
    let login = format!("agent_login_{}", std::process::id());
    owner
        .execute(sqlx::AssertSqlSafe(format!("drop role if exists {login}; create role {login} login")))
        .await
        .unwrap();
    let mut url = reqwest::Url::parse(&empty.url).unwrap();
    url.set_username(&login).unwrap();
    let url = pooled_url(url.as_str());
    let service = [("DATABASE_URL", url.as_str())];
    let with_owner = [("DATABASE_URL", url.as_str()), ("DATABASE_ADMIN_URL", empty.url.as_str())];

    assert!(database(&service).migrate().await.is_err(), "a login without DDL rights migrated the database");
    database(&with_owner).migrate().await.unwrap();
    let (ready, mut is_ready) = watch::channel(false);
    let supervised = database(&service);
    tokio::select! {
        ended = supervised.supervise(&ready, std::sync::Arc::new(|_| {})) => panic!("{ended:?}"),
        ready = tokio::time::timeout(TEST_TIMEOUT, is_ready.wait_for(|ready| *ready)) => drop(ready.unwrap().unwrap()),
    }
    let server = TestServer::start_on(&url, &[]).await;
    server.remember("ann", &["eigenvalue"]).await;
    // The login has no rights of its own (NOINHERIT); it must `set role`.
    let options = sqlx::postgres::PgConnectOptions::from_str(&url).unwrap().extra_float_digits(None);
    let mut login_only = sqlx::PgConnection::connect_with(&options).await.unwrap();
    let rejected = login_only.execute("select content from memories").await.unwrap_err().to_string();
    assert!(rejected.contains("permission denied"), "{rejected}");
    assert_eq!(server.retrieve(memory_query("ann", "eigenvalue")).await.total_found, 1);
    drop(server);
    owner.execute(sqlx::AssertSqlSafe(format!("drop owned by {login}; drop role {login}"))).await.unwrap();
}

#[tokio::test]
async fn transactions_set_role_and_timeouts() {
    let database = TestDatabase::create().await;
    let roles = self::database(&[("DATABASE_URL", &database.service_url())]).pools();
    let ann = UserId::parse("user_id", "ann").unwrap();
    let slow = roles.service.with_statement_timeout(Duration::from_secs(300));
    let fast = roles.service.with_statement_timeout(Duration::from_secs(5)).with_idle_timeout(Duration::from_secs(10));
    for (role, expected) in [
        (&roles.service, ["agent_service", "off", "20s", "20s", "1min"]),
        (&roles.reader, ["agent_reader", "on", "10s", "20s", "1min"]),
        (&roles.maintenance, ["agent_maintenance", "on", "20s", "20s", "1min"]),
        (&slow, ["agent_service", "off", "5min", "20s", "1min"]),
        (&fast, ["agent_service", "off", "5s", "20s", "10s"]),
    ] {
        for mut transaction in [role.begin(&ann).await.unwrap(), role.begin_without_user().await.unwrap()] {
            let settings = "select current_user::text, current_setting('transaction_read_only'),
                               current_setting('statement_timeout'), current_setting('lock_timeout'),
                               current_setting('idle_in_transaction_session_timeout')";
            let row = sqlx::query(settings).persistent(false).fetch_one(&mut *transaction).await.unwrap();
            assert_eq!([0, 1, 2, 3, 4].map(|column| row.get::<String, _>(column)), expected);
        }
    }
}

/// Skipped on the embedded Postgres, whose timers do not fire.
#[tokio::test]
async fn statement_timeout_ends_a_slow_statement() {
    if std::env::var_os("TEST_DATABASE_URL").is_none() {
        return;
    }
    let database = TestDatabase::create().await;
    let roles = self::database(&[("DATABASE_URL", &database.service_url())]).pools();
    let short = roles.service.with_statement_timeout(Duration::from_millis(50));
    let mut transaction = short.begin_without_user().await.unwrap();
    let timed_out = transaction.execute("select pg_sleep(60)").await.unwrap_err();
    assert_eq!(timed_out.as_database_error().unwrap().code().as_deref(), Some("57014"));
    assert!(MemoryError::from(timed_out).is_transient());
}

#[tokio::test]
async fn check_rejects_missing_migrations_and_weak_policies() {
    let migrated = TestDatabase::create().await;
    let checked = database(&[("DATABASE_URL", &migrated.service_url())]);
    checked.check().await.unwrap();
    let mut owner = migrated.connect().await;
    for (change, undo, named) in [
        (
            "alter policy own_rows on memories using (true)",
            "alter policy own_rows on memories using (user_id = (select current_setting('agent.user_id', true)))",
            "own_rows on memories",
        ),
        (
            "alter policy own_rows on documents with check (true)",
            "alter policy own_rows on documents with check (user_id = (select current_setting('agent.user_id', true)))",
            "own_rows on documents",
        ),
        (
            "alter policy own_rows on memory_terms to public",
            "alter policy own_rows on memory_terms to agent_service, agent_reader",
            "own_rows on memory_terms",
        ),
        (
            "alter policy every_id on memory_users to agent_reader",
            "alter policy every_id on memory_users to agent_maintenance",
            "every_id on memory_users",
        ),
        (
            "alter policy every_id on learning_jobs to agent_maintenance, agent_reader",
            "alter policy every_id on learning_jobs to agent_maintenance",
            "every_id on learning_jobs",
        ),
        (
            "create policy every_id on learned_turns for select to agent_maintenance using (true)",
            "drop policy every_id on learned_turns",
            "every_id on learned_turns",
        ),
        (
            "create policy every_id on memory_history for select to agent_maintenance using (true)",
            "drop policy every_id on memory_history",
            "every_id on memory_history",
        ),
    ] {
        owner.execute(change).await.unwrap();
        let rejected = checked.check().await;
        assert!(matches!(&rejected, Err(DatabaseError::NotIsolated(why)) if why.contains(named)), "{rejected:?}");
        owner.execute(undo).await.unwrap();
        checked.check().await.unwrap();
    }
    owner.execute("delete from _sqlx_migrations where version = 3").await.unwrap();
    assert!(matches!(checked.check().await, Err(DatabaseError::NotMigrated)));
    owner.execute("drop table _sqlx_migrations").await.unwrap();
    assert!(matches!(checked.check().await, Err(DatabaseError::NotMigrated)));
    let unreachable = database(&[("DATABASE_URL", UNREACHABLE_DATABASE)]).check().await;
    assert!(matches!(unreachable, Err(DatabaseError::Unreachable(_))), "{unreachable:?}");
}

/// The paused clock jumps to the next timer once nothing else can make progress.
#[tokio::test(start_paused = true)]
async fn silent_database_is_unreachable() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let failed = database(&[("DATABASE_URL", url.as_str())]).migrate().await;
    assert!(matches!(failed, Err(DatabaseError::Unreachable(_))), "{failed:?}");
}

/// Proves that the pooler of the test run breaks prepared statements; otherwise the other tests behind it would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_fail_behind_transaction_pooler() {
    if std::env::var_os("TEST_POOLER_URL").is_none() {
        return;
    }
    let server = TestServer::start(&[("DATABASE_PREPARED_STATEMENTS", "on")]).await;
    let failed = async {
        loop {
            let mut calls = tokio::task::JoinSet::new();
            for n in 0..8 {
                let mut client = server.memory();
                let memories = vec![memory_input("", &format!("eigenvalue {n}"))];
                let request = pb::AddMemoriesRequest { user_id: format!("user-{n}"), memories };
                calls.spawn(async move { client.add_memories(request).await });
            }
            if calls.join_all().await.iter().any(Result::is_err) {
                break;
            }
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, failed).await.expect("the pooler supports prepared statements");
}
