//! The function under the Lambda runtime emulator, with a database.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

#[path = "../../../../tests/support/function_database.rs"]
mod function_database;
#[path = "../../../../tests/support/lambda_runtime.rs"]
#[expect(dead_code, reason = "not every crate uses all of it")]
mod lambda_runtime;
#[path = "../../../../tests/support/unary_call.rs"]
mod unary_call;

use std::time::Duration;

use agent_service::{
    identity::UserId,
    memory::{DEFAULT_ALPHA, Filter, RetrievalQuery},
    proto::agent_v1 as pb,
};
use function_database::TestDatabase;
use lambda_runtime::{LambdaFunction, function_url_event};
use unary_call::{GRPC_WEB, call_unary};

const PROGRAM: &str = env!("CARGO_BIN_EXE_manage-memory");

#[tokio::test]
async fn stored_memory_is_found_at_once_until_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let database = TestDatabase::start(directory.path()).await;
    let url = database.url("writer");
    let variables =
        [("AUTH", "none"), ("EMBEDDING_PROVIDER", "hashed"), ("DEMO_MODE", "true"), ("DATABASE_URL", url.as_str())];
    let mut manage = LambdaFunction::start(PROGRAM, &variables).await;
    let memory = pb::MemoryInput { id: "m".into(), content: "I mix up eigenvalues".into(), ..Default::default() };
    let add = pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![memory] };
    let added: pb::AddMemoriesResponse = call_unary(&mut manage, "MemoryService/AddMemories", &add).await.unwrap();
    assert_eq!(added.added, 1);

    let found = |user: &'static str| {
        let query = RetrievalQuery {
            text: "eigenvalues".into(),
            limit: 10,
            min_score: 0.0,
            filter: Filter::default(),
            alpha: DEFAULT_ALPHA,
            time_zone: jiff::tz::TimeZone::UTC,
            counts_matches: true,
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
    let exported: pb::MemoryRecord = call_unary(&mut manage, "MemoryService/ExportMemories", &export).await.unwrap();
    assert_eq!(exported.content, "I mix up eigenvalues");
    let everything = pb::DeleteMemoriesRequest { user_id: "ann".into(), everything: true, ..Default::default() };
    let deleted: pb::DeleteMemoriesResponse =
        call_unary(&mut manage, "MemoryService/DeleteMemories", &everything).await.unwrap();
    assert_eq!(deleted.deleted, 1);
    assert!(found("ann").await.is_empty());
}

#[tokio::test]
async fn missing_database_is_reported_by_its_variable() {
    let mut manage = LambdaFunction::start(PROGRAM, &[]).await;
    let list = pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() };
    let rejected =
        call_unary::<pb::ListMemoriesResponse>(&mut manage, "MemoryService/ListMemories", &list).await.unwrap_err();
    assert!(rejected.starts_with("9 ") && rejected.contains("DATABASE_URL"), "{rejected}");
    manage.invoke(function_url_event("/agent.v1.MemoryService/ListMemories", GRPC_WEB, b""), Duration::from_secs(5));
    assert_ne!(manage.rest(Vec::new()).await.frames().1["grpc-status"], "0", "an empty body is no message");
}
