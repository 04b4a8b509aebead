//! The function under the Lambda runtime emulator, with a read-only login.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

#[path = "../../../tests/support/function_database.rs"]
mod function_database;
#[path = "../../../tests/support/lambda_runtime.rs"]
#[expect(dead_code, reason = "not every crate uses all of it")]
mod lambda_runtime;
#[path = "../../../tests/support/unary_call.rs"]
mod unary_call;

use agent_service::{
    identity::UserId,
    memory::{Metadata, NewMemory},
    proto::agent_v1 as pb,
};
use function_database::TestDatabase;
use lambda_runtime::LambdaFunction;
use unary_call::call_unary;

const PROGRAM: &str = env!("CARGO_BIN_EXE_retrieve-memory");

#[tokio::test]
async fn read_only_login_retrieves_memories_of_the_user_only() {
    let directory = tempfile::tempdir().unwrap();
    let database = TestDatabase::start(directory.path()).await;
    let memory = NewMemory {
        id: Some("m".into()),
        content: "I mix up eigenvalues".into(),
        source_type: "note".into(),
        tags: Vec::new(),
        created_at: None,
        metadata: Metadata::new(),
        supersedes: Vec::new(),
    };
    let ann = UserId::parse("user_id", "ann").unwrap();
    database.engine.add(&ann, vec![memory]).await.unwrap();

    let url = database.url("reader");
    let variables = [
        ("AUTH", "none"),
        ("EMBEDDING_PROVIDER", "hashed"),
        ("DEMO_MODE", "true"),
        ("DATABASE_READ_URL", url.as_str()),
    ];
    let mut retrieve = LambdaFunction::start(PROGRAM, &variables).await;
    let query = pb::MemoryQuery { user_id: "ann".into(), query_text: "eigenvalues".into(), ..Default::default() };
    let found: pb::MemoryResult = call_unary(&mut retrieve, "AgentService/RetrieveMemory", &query).await.unwrap();
    assert_eq!(found.items[0].id, "m");
    let of_another = pb::MemoryQuery { user_id: "bob".into(), ..query };
    let found: pb::MemoryResult = call_unary(&mut retrieve, "AgentService/RetrieveMemory", &of_another).await.unwrap();
    assert!(found.items.is_empty());

    let chat = pb::ChatRequest::default();
    let rejected = call_unary::<pb::ChatResponse>(&mut retrieve, "AgentService/StreamChat", &chat).await.unwrap_err();
    assert!(rejected.starts_with("12 "), "other methods are unimplemented: {rejected}");

    let mut owner = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url("postgres")).await.unwrap();
    // As after a tokenizer update: the lexical index must be rebuilt, for which this login has no rights.
    let clear_index = "delete from memory_postings; delete from memory_terms; delete from memory_users";
    sqlx::raw_sql(clear_index).execute(&mut owner).await.unwrap();
    let both = pb::MemoryQuery { user_id: "ann".into(), query_text: "eigenvalues".into(), ..Default::default() };
    let found: pb::MemoryResult = call_unary(&mut retrieve, "AgentService/RetrieveMemory", &both).await.unwrap();
    assert_eq!(found.items[0].id, "m", "the vector retriever answers alone");
    let words = pb::MemoryQuery { hybrid_alpha: Some(0.0), ..both };
    let rejected =
        call_unary::<pb::MemoryResult>(&mut retrieve, "AgentService/RetrieveMemory", &words).await.unwrap_err();
    assert!(rejected.starts_with("14 "), "an empty result instead of an error: {rejected}");

    sqlx::raw_sql("alter role agent_reader bypassrls").execute(&mut owner).await.unwrap();
    let variables = [&variables[..], &[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")]].concat();
    let (code, stderr) = lambda_runtime::run_to_failure(PROGRAM, &variables).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("bypasses row-level security"), "a database without isolation is served: {stderr}");
}
