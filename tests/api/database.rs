//! Logins, migrations and a database that says nothing.

use agent_service::{
    postgres::{Database, DatabaseError},
    proto::agent_v1 as pb,
};
use sqlx::Executor as _;
use tokio::sync::watch;

use crate::harness::{PATIENCE, TestDatabase, TestServer, config};

fn database(variables: &[(&str, &str)]) -> Database {
    Database::from_config(&config(variables).stores.memory).unwrap()
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
    let service = [("DATABASE_URL", url.as_str())];
    let with_owner = [("DATABASE_URL", url.as_str()), ("DATABASE_ADMIN_URL", empty.url.as_str())];

    assert!(database(&service).migrate().await.is_err(), "the login alone may not");
    database(&with_owner).migrate().await.unwrap();
    // And at run time the owner is not needed any more.
    let (ready, mut is_ready) = watch::channel(false);
    let kept = database(&service);
    tokio::select! {
        kept = kept.keep(&ready, std::sync::Arc::new(|_| {})) => panic!("{kept:?}"),
        ready = tokio::time::timeout(PATIENCE, is_ready.wait_for(|ready| *ready)) => drop(ready.unwrap().unwrap()),
    }
    let server = TestServer::start_on(url.as_str(), &[]).await;
    server.remember("ann", &["eigenvalue"]).await;
    let query = pb::MemoryQuery { user_id: "ann".into(), query_text: "eigenvalue".into(), ..Default::default() };
    assert_eq!(server.agent().retrieve_memory(query).await.unwrap().into_inner().total_found, 1);
    drop(server);
    owner.execute(sqlx::AssertSqlSafe(format!("drop owned by {login}; drop role {login}"))).await.unwrap();
}

/// On a paused clock, which jumps to the next timer as soon as nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_database_that_never_says_a_word_is_given_up() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", mute.local_addr().unwrap());
    let given_up = database(&[("DATABASE_URL", url.as_str())]).migrate().await;
    assert!(matches!(given_up, Err(DatabaseError::Unreachable(_))), "{given_up:?}");
}
