//! The function as Lambda runs it, by a login that only reads.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

#[path = "../../manage-memory/tests/function/call.rs"]
mod call;
#[path = "../../manage-memory/tests/function/database.rs"]
mod database;
#[path = "../../stream-chat/tests/function/double.rs"]
#[expect(dead_code, reason = "these tests need less of it")]
mod double;

use agent_service::{
    identity::UserId,
    memory::{Metadata, NewMemory},
    proto::agent_v1 as pb,
};
use call::call;
use database::TestDatabase;
use double::Function;

const PROGRAM: &str = env!("CARGO_BIN_EXE_retrieve-memory");

#[tokio::test]
async fn with_a_login_that_only_reads_a_user_finds_what_was_stored_and_nobody_else_does() {
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
    let mut retrieve = Function::start(PROGRAM, &variables).await;
    let query = pb::MemoryQuery { user_id: "ann".into(), query_text: "eigenvalues".into(), ..Default::default() };
    let found: pb::MemoryResult = call(&mut retrieve, "AgentService/RetrieveMemory", &query).await.unwrap();
    assert_eq!(found.items[0].id, "m");
    let of_another = pb::MemoryQuery { user_id: "bob".into(), ..query };
    let found: pb::MemoryResult = call(&mut retrieve, "AgentService/RetrieveMemory", &of_another).await.unwrap();
    assert!(found.items.is_empty());

    let chat = pb::ChatRequest::default();
    let refused = call::<pb::ChatResponse>(&mut retrieve, "AgentService/StreamChat", &chat).await.unwrap_err();
    assert!(refused.starts_with("12 "), "it answers nothing else: {refused}");

    let mut owner = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url("postgres")).await.unwrap();
    // As after an update of the tokeniser: the index of the words is to be made anew, which this login may not.
    let gone = "delete from memory_postings; delete from memory_terms; delete from memory_users";
    sqlx::raw_sql(gone).execute(&mut owner).await.unwrap();
    let both = pb::MemoryQuery { user_id: "ann".into(), query_text: "eigenvalues".into(), ..Default::default() };
    let found: pb::MemoryResult = call(&mut retrieve, "AgentService/RetrieveMemory", &both).await.unwrap();
    assert_eq!(found.items[0].id, "m", "by meaning alone");
    let words = pb::MemoryQuery { hybrid_alpha: Some(0.0), ..both };
    let refused = call::<pb::MemoryResult>(&mut retrieve, "AgentService/RetrieveMemory", &words).await.unwrap_err();
    assert!(refused.starts_with("14 "), "rather than nothing: {refused}");

    sqlx::raw_sql("alter role agent_reader bypassrls").execute(&mut owner).await.unwrap();
    let variables = [&variables[..], &[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")]].concat();
    let (code, said) = double::refused(PROGRAM, &variables).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("bypasses row-level security"), "a database that mixes up users is not served: {said}");
}
