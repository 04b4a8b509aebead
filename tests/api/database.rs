//! Logins, migrations and a database that says nothing.

use std::{str::FromStr as _, time::Duration};

use agent_service::{
    identity::UserId,
    memory::MemoryError,
    postgres::{Database, DatabaseError},
    proto::agent_v1 as pb,
};
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::sync::watch;

use crate::harness::{PATIENCE, TestDatabase, TestServer, by_pooler, config};

fn database(variables: &[(&str, &str)]) -> Database {
    Database::from_config(&config(variables).stores.database).unwrap()
}

#[tokio::test]
async fn a_login_that_may_not_change_tables_serves_after_the_owner_migrated() {
    let empty = TestDatabase::create().await;
    let mut owner = empty.connect().await;
    // As a database is before its first migration, with the rights that Postgres gives nowadays.
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
    let url = by_pooler(url.as_str());
    let service = [("DATABASE_URL", url.as_str())];
    let with_owner = [("DATABASE_URL", url.as_str()), ("DATABASE_ADMIN_URL", empty.url.as_str())];

    assert!(database(&service).migrate().await.is_err(), "the login alone may not");
    database(&with_owner).migrate().await.unwrap();
    // And at run time the owner is not needed any more.
    let (ready, mut is_ready) = watch::channel(false);
    let kept = database(&service);
    tokio::select! {
        kept = kept.supervise(&ready, std::sync::Arc::new(|_| {})) => panic!("{kept:?}"),
        ready = tokio::time::timeout(PATIENCE, is_ready.wait_for(|ready| *ready)) => drop(ready.unwrap().unwrap()),
    }
    let server = TestServer::start_on(&url, &[]).await;
    server.remember("ann", &["eigenvalue"]).await;
    // By itself the login sees nothing: it has the roles' rights only while it acts as one.
    let options = sqlx::postgres::PgConnectOptions::from_str(&url).unwrap().extra_float_digits(None);
    let mut bare = sqlx::PgConnection::connect_with(&options).await.unwrap();
    let refused = bare.execute("select content from memories").await.unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
    let query = pb::MemoryQuery { user_id: "ann".into(), query_text: "eigenvalue".into(), ..Default::default() };
    assert_eq!(server.agent().retrieve_memory(query).await.unwrap().into_inner().total_found, 1);
    drop(server);
    owner.execute(sqlx::AssertSqlSafe(format!("drop owned by {login}; drop role {login}"))).await.unwrap();
}

#[tokio::test]
async fn every_transaction_says_whose_rights_it_has_and_how_long_its_statements_may_take() {
    let database = TestDatabase::create().await;
    let roles = self::database(&[("DATABASE_URL", &database.service_url())]).pools();
    let ann = UserId::parse("user_id", "ann").unwrap();
    let many = roles.service.with_statement_timeout(Duration::from_secs(300));
    let alone = roles.service.with_statement_timeout(Duration::from_secs(5)).with_idle_timeout(Duration::from_secs(10));
    for (role, expected) in [
        (&roles.service, ["agent_service", "off", "20s", "20s", "1min"]),
        (&roles.reader, ["agent_reader", "on", "10s", "20s", "1min"]),
        (&roles.maintenance, ["agent_maintenance", "on", "20s", "20s", "1min"]),
        (&many, ["agent_service", "off", "5min", "20s", "1min"]),
        (&alone, ["agent_service", "off", "5s", "20s", "10s"]),
    ] {
        for mut transaction in [role.begin(&ann).await.unwrap(), role.begin_without_user().await.unwrap()] {
            let said = "select current_user::text, current_setting('transaction_read_only'),
                               current_setting('statement_timeout'), current_setting('lock_timeout'),
                               current_setting('idle_in_transaction_session_timeout')";
            let row = sqlx::query(said).persistent(false).fetch_one(&mut *transaction).await.unwrap();
            assert_eq!([0, 1, 2, 3, 4].map(|place| row.get::<String, _>(place)), expected);
        }
    }
}

/// Not with the embedded Postgres, whose timers do not fire.
#[tokio::test]
async fn a_statement_that_takes_too_long_is_ended_by_the_database() {
    if std::env::var_os("TEST_DATABASE_URL").is_none() {
        return;
    }
    let database = TestDatabase::create().await;
    let roles = self::database(&[("DATABASE_URL", &database.service_url())]).pools();
    let brief = roles.service.with_statement_timeout(Duration::from_millis(50));
    let mut transaction = brief.begin_without_user().await.unwrap();
    let ended = transaction.execute("select pg_sleep(60)").await.unwrap_err();
    assert_eq!(ended.as_database_error().unwrap().code().as_deref(), Some("57014"));
    assert!(MemoryError::from(ended).is_transient());
}

#[tokio::test]
async fn a_check_tells_a_database_that_is_right_from_one_that_is_not_up_to_date_or_shows_too_much() {
    let made = TestDatabase::create().await;
    let checked = database(&[("DATABASE_URL", &made.service_url())]);
    checked.check().await.unwrap();
    let mut owner = made.connect().await;
    for (change, back, named) in [
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
        let refused = checked.check().await;
        assert!(matches!(&refused, Err(DatabaseError::NotIsolated(why)) if why.contains(named)), "{refused:?}");
        owner.execute(back).await.unwrap();
        checked.check().await.unwrap();
    }
    owner.execute("delete from _sqlx_migrations where version = 3").await.unwrap();
    assert!(matches!(checked.check().await, Err(DatabaseError::NotMigrated)));
    owner.execute("drop table _sqlx_migrations").await.unwrap();
    assert!(matches!(checked.check().await, Err(DatabaseError::NotMigrated)));
    let nobody = "127.0.0.1:1";
    let dead = format!("postgres://nobody@{nobody}/none");
    let unreachable = database(&[("DATABASE_URL", &dead)]).check().await;
    assert!(matches!(unreachable, Err(DatabaseError::Unreachable(_))), "{unreachable:?}");
}

/// On a paused clock, which jumps to the next timer as soon as nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_database_that_never_says_a_word_is_given_up() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", mute.local_addr().unwrap());
    let given_up = database(&[("DATABASE_URL", url.as_str())]).migrate().await;
    assert!(matches!(given_up, Err(DatabaseError::Unreachable(_))), "{given_up:?}");
}

/// Where a pooler stands in front, it is one that needs the setting: otherwise the other tests would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn statements_that_are_kept_by_name_fail_behind_a_pooler_of_transactions() {
    if std::env::var_os("TEST_POOLER_URL").is_none() {
        return;
    }
    let server = TestServer::start(&[("DATABASE_PREPARED_STATEMENTS", "on")]).await;
    let failed = async {
        loop {
            let mut calls = tokio::task::JoinSet::new();
            for n in 0..8 {
                let mut client = server.memory();
                let memories = vec![pb::MemoryInput { content: format!("eigenvalue {n}"), ..Default::default() }];
                let request = pb::AddMemoriesRequest { user_id: format!("user-{n}"), memories };
                calls.spawn(async move { client.add_memories(request).await });
            }
            if calls.join_all().await.iter().any(Result::is_err) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, failed).await.expect("the pooler keeps statements by name");
}
