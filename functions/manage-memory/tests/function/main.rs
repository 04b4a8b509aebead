//! The function as Lambda runs it, on a database.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod call;
mod database;
#[path = "../../../stream-chat/tests/function/double.rs"]
#[expect(dead_code, reason = "these tests need less of it")]
mod double;

use std::time::Duration;

use agent_service::{
    identity::UserId,
    memory::{DEFAULT_ALPHA, Filter, RetrievalQuery},
    proto::agent_v1 as pb,
};
use call::{GRPC_WEB, call};
use database::TestDatabase;
use double::{Function, event};

const PROGRAM: &str = env!("CARGO_BIN_EXE_manage-memory");

#[tokio::test]
async fn what_the_function_stores_is_found_at_once_and_what_it_forgets_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let database = TestDatabase::start(directory.path()).await;
    let url = database.url("writer");
    let variables =
        [("AUTH", "none"), ("EMBEDDING_PROVIDER", "hashed"), ("DEMO_MODE", "true"), ("DATABASE_URL", url.as_str())];
    let mut manage = Function::start(PROGRAM, &variables).await;
    let memory = pb::MemoryInput { id: "m".into(), content: "I mix up eigenvalues".into(), ..Default::default() };
    let add = pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![memory] };
    let added: pb::AddMemoriesResponse = call(&mut manage, "MemoryService/AddMemories", &add).await.unwrap();
    assert_eq!(added.added, 1);

    let found = |user: &'static str| {
        let query = RetrievalQuery {
            text: "eigenvalues".into(),
            limit: 10,
            min_score: 0.0,
            filter: Filter::default(),
            alpha: DEFAULT_ALPHA,
            time_zone: jiff::tz::TimeZone::UTC,
        };
        let engine = database.engine.clone();
        async move {
            let user = UserId::parse("user_id", user).unwrap();
            let hits = engine.retrieve(&user, &query).await.unwrap().hits;
            hits.into_iter().map(|(memory, _)| memory.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(found("ann").await, ["m"]);
    assert!(found("bob").await.is_empty());

    let export = pb::ExportMemoriesRequest { user_id: "ann".into() };
    let exported: pb::MemoryRecord = call(&mut manage, "MemoryService/ExportMemories", &export).await.unwrap();
    assert_eq!(exported.content, "I mix up eigenvalues");
    let everything = pb::DeleteMemoriesRequest { user_id: "ann".into(), everything: true, ..Default::default() };
    let deleted: pb::DeleteMemoriesResponse =
        call(&mut manage, "MemoryService/DeleteMemories", &everything).await.unwrap();
    assert_eq!(deleted.deleted, 1);
    assert!(found("ann").await.is_empty());
}

#[tokio::test]
async fn without_a_database_a_function_says_what_is_missing() {
    let mut manage = Function::start(PROGRAM, &[]).await;
    let list = pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() };
    let refused = call::<pb::ListMemoriesResponse>(&mut manage, "MemoryService/ListMemories", &list).await.unwrap_err();
    assert!(refused.starts_with("9 ") && refused.contains("DATABASE_URL"), "{refused}");
    manage.invoke(event("/agent.v1.MemoryService/ListMemories", GRPC_WEB, b""), Duration::from_secs(5));
    assert_ne!(manage.rest(Vec::new()).await.frames().1["grpc-status"], "0", "no message at all is no request");
}
