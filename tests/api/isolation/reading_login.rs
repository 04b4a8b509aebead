//! `DATABASE_READ_URL`: reads go through a login that can act as the reader role only.

use std::sync::Arc;

use agent_service::{postgres::Database, proto::agent_v1 as pb};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::sync::watch;
use tonic::Code;

use super::{INSUFFICIENT_PRIVILEGE, query_number, query_strings, roles};
use crate::harness::{TEST_TIMEOUT, TestDatabase, TestServer, UNREACHABLE_DATABASE, config, user, weighted_query};

#[tokio::test]
async fn reads_use_the_reading_login_which_can_only_read() {
    let database = TestDatabase::create().await;
    let mut owner = database.connect().await;
    let login = format!("agent_reading_{}", std::process::id());
    let create_login = format!(
        "drop role if exists {login}; create role {login} login; grant agent_reader to {login};
         grant select on _sqlx_migrations to {login}"
    );
    owner.execute(AssertSqlSafe(create_login)).await.unwrap();
    let mut read_url = reqwest::Url::parse(&database.service_url()).unwrap();
    read_url.set_username(&login).unwrap();
    let read = [("DATABASE_READ_URL", read_url.as_str())];
    let url = database.service_url();

    let (ready, mut is_ready) = watch::channel(false);
    let supervised = Database::from_config(&config(&[("DATABASE_URL", &url), read[0]]).stores.database).unwrap();
    tokio::select! {
        ended = supervised.supervise(&ready, Arc::new(|_| {})) => panic!("{ended:?}"),
        ready = tokio::time::timeout(TEST_TIMEOUT, is_ready.wait_for(|ready| *ready)) => drop(ready.unwrap().unwrap()),
    }
    let server = TestServer::start_on(&url, &read).await;
    let logins = "select distinct usename::text from pg_stat_activity
                  where datname = current_database() and pid <> pg_backend_pid() order by usename";
    server.remember("ann", &["kat zat"]).await;
    let before = query_strings(&mut owner, logins).await;
    let query = weighted_query("kat", 0.5);
    assert_eq!(server.retrieve(query.clone()).await.items[0].content, "kat zat");
    let request = pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() };
    assert_eq!(server.memory().list_memories(request.clone()).await.unwrap().into_inner().memories.len(), 1);
    if std::env::var_os("TEST_POOLER_URL").is_none() {
        assert!(!before.contains(&login), "{before:?}");
    }
    assert!(query_strings(&mut owner, logins).await.contains(&login), "no connection of the reading login");
    let reading = roles(read_url.as_str());
    assert!(reading.reader.begin(&user("ann")).await.is_ok());
    for rejected in [reading.service.begin(&user("ann")).await, reading.maintenance.begin_without_user().await] {
        let error = rejected.err().unwrap().into_database_error().unwrap();
        assert_eq!(error.code().as_deref(), Some(INSUFFICIENT_PRIVILEGE));
    }
    // A pool of one: the connection whose `set role` failed is reused.
    let single = Database::from_config(&config(&[("DATABASE_URL", read_url.as_str())]).stores.database).unwrap();
    let single = single.pools_with_limit(1);
    single.service.begin(&user("ann")).await.err().unwrap();
    single.reader.begin(&user("ann")).await.unwrap();
    drop((server, reading, single));

    // While the read URL is unreachable, writes still succeed.
    let server = TestServer::start_on(&url, &[("DATABASE_READ_URL", UNREACHABLE_DATABASE)]).await;
    server.remember("ann", &["kat mat"]).await;
    assert_eq!(server.agent().retrieve_memory(query).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(server.memory().list_memories(request).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(query_number(&mut owner, "select count(*) from memories").await, 2);
    drop(server);
    let drop_login = format!("drop owned by {login}; drop role {login}");
    owner.execute(AssertSqlSafe(drop_login)).await.unwrap();
}
