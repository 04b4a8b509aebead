//! The function under the Lambda runtime emulator. Events are records of the DynamoDB stream; the turns themselves are read from
//! Postgres, except in one test with the DynamoDB emulator.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

mod dynamodb;
#[path = "../../../../tests/support/function_database.rs"]
mod function_database;
#[path = "../../../../tests/support/lambda_runtime.rs"]
#[expect(dead_code, reason = "not every crate uses all of it")]
mod lambda_runtime;

use std::time::Duration;

use agent_service::{
    chat::{TurnFinish, TurnRecord},
    config::Config,
    conversation::{
        AdmitOutcome, ConversationStore, FrameChunk, NewRun, NewTurn, PostgresConversations, RunEnding, RunKey,
        RunOutcome, WithDeadlines,
        dynamodb::{DynamoAccess, DynamoConversations, DynamoTable},
    },
    erasure::erase_user,
    identity::{RequestId, SessionId, UserId},
    llm::Message,
    memory::Filter,
    postgres::Database,
};
use function_database::TestDatabase;
use lambda_runtime::{FunctionOutput, LambdaFunction};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_remember");

struct Fixture {
    database: TestDatabase,
    store: WithDeadlines<PostgresConversations>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let database = TestDatabase::start(directory.path()).await;
        let url = database.url("writer");
        let config = Config::read(&|name| (name == "DATABASE_URL").then(|| url.clone())).unwrap();
        let roles = Database::from_config(&config.stores.database).unwrap().pools();
        let patience = Duration::from_secs(60);
        let store = PostgresConversations::with_deadlines(&roles.conversations, patience, patience);
        Self { database, store, _directory: directory }
    }

    async fn function(&self, more: &[(&str, &str)]) -> LambdaFunction {
        let url = self.database.url("writer");
        let mut variables = vec![
            ("AUTH", "none"),
            ("EMBEDDING_PROVIDER", "hashed"),
            ("DEMO_MODE", "true"),
            ("DATABASE_URL", url.as_str()),
            ("CONVERSATIONS", "postgres"),
        ];
        variables.extend(more);
        LambdaFunction::start(PROGRAM, &variables).await
    }

    async fn store_turn(&self, user_id: &str, session_id: &str, question: &str) {
        store_turn(&self.store, user_id, session_id, question).await;
    }

    /// The sorted memories of a user with a source type (`fact` or `chat`).
    async fn remembered(&self, user_id: &str, source_type: &str) -> Vec<String> {
        let filter = Filter { source_types: vec![source_type.into()], ..Filter::default() };
        let page = self.database.engine.list(&user(user_id), &filter, 100, None).await.unwrap();
        let mut texts: Vec<_> = page.memories.into_iter().map(|memory| memory.content).collect();
        texts.sort_unstable();
        texts
    }
}

/// Stores a finished turn, as a chat does.
async fn store_turn(store: &dyn ConversationStore, user_id: &str, session_id: &str, question: &str) {
    let request = RequestId::generate();
    let run = NewRun {
        key: RunKey { user: user(user_id), session: session(session_id), request },
        fingerprint: [0; 32],
        head: Vec::new(),
        takes_session: true,
        resumes: false,
        quotas: None,
        history_budget: None,
    };
    let AdmitOutcome::Started { lease, .. } = store.admit(&run).await.unwrap() else { panic!("not started") };
    let answer = Message::Assistant { content: "Noted.".into(), reasoning: None, calls: Vec::new() };
    let messages = vec![Message::User(question.into()), answer];
    let record = TurnRecord::new(messages, "m".into(), TurnFinish::Stop);
    let turn = NewTurn {
        record: record.to_bytes().unwrap(),
        tokens: record.estimate_tokens(),
        is_complete: true,
        provisional_title: record.provisional_title(),
        may_be_learned: true,
    };
    let ending = RunEnding {
        chunk: FrameChunk { first: 1, count: 1, frames: b"frame".to_vec() },
        outcome: RunOutcome::Final,
        turn: Some(turn),
        tokens: 0,
        resumed_turn: None,
        profile: None,
    };
    store.finish(&lease.take(), &ending).await.unwrap();
}

fn user(id: &str) -> UserId {
    UserId::parse("user_id", id).unwrap()
}

fn session(id: &str) -> SessionId {
    SessionId::parse("session_id", id).unwrap()
}

fn turn_record(number: &str, user_id: &str, session_id: &str, turn: u32) -> Value {
    insert_record(number, user_id, &format!("turn/{session_id}/{turn:010}"))
}

fn insert_record(number: &str, user_id: &str, item: &str) -> Value {
    json!({
        "eventID": number, "eventName": "INSERT", "eventVersion": "1.1", "eventSource": "aws:dynamodb",
        "awsRegion": "eu-central-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_795_600_000, "StreamViewType": "NEW_IMAGE", "SizeBytes": 100,
            "SequenceNumber": number,
            "Keys": {"user_id": {"S": user_id}, "item_id": {"S": item}},
            "NewImage": {"user_id": {"S": user_id}, "item_id": {"S": item}, "is_complete": {"BOOL": true},
                         "may_be_learned": {"BOOL": true}, "record": {"B": "eA=="}},
        },
    })
}

async fn invoke(function: &mut LambdaFunction, event: Value) -> Result<Value, String> {
    invoke_within(function, event, Duration::from_secs(60)).await
}

async fn invoke_within(function: &mut LambdaFunction, event: Value, time: Duration) -> Result<Value, String> {
    function.invoke(event, time);
    let mut bytes = Vec::new();
    loop {
        match function.next().await {
            FunctionOutput::Head(_) => {}
            FunctionOutput::Chunk(chunk) => bytes.extend(chunk),
            FunctionOutput::End => return Ok(serde_json::from_slice(&bytes).unwrap()),
            FunctionOutput::Error(error) => return Err(error),
        }
    }
}

fn failures(numbers: &[&str]) -> Value {
    let failures: Vec<_> = numbers.iter().map(|number| json!({"itemIdentifier": number})).collect();
    json!({ "batchItemFailures": failures })
}

#[tokio::test]
async fn turn_is_learned_once_despite_redelivery() {
    let fixture = Fixture::new().await;
    let mut function = fixture.function(&[]).await;
    fixture.store_turn("ann", "s", "I live in Rome.").await;
    fixture.store_turn("ann", "s", "I moved to Oslo.").await;
    fixture.store_turn("bob", "t", "我叫小明。").await;
    let records = [
        turn_record("1", "ann", "s", 1),
        insert_record("2", "ann", "session/s"),
        turn_record("3", "bob", "t", 1),
        turn_record("4", "ann", "s", 2),
        turn_record("5", "ann", "gone", 1),
    ];
    for _ in 0..2 {
        assert_eq!(invoke(&mut function, json!({"Records": records})).await.unwrap(), failures(&[]));
        assert_eq!(fixture.remembered("ann", "fact").await, ["The user lives in Oslo.", "The user lives in Rome."]);
        assert_eq!(fixture.remembered("ann", "chat").await.len(), 4);
        assert_eq!(fixture.remembered("bob", "fact").await, ["用户的名字是小明。"]);
    }
    let titled = fixture.store.get_session(&user("bob"), &session("t")).await.unwrap().unwrap();
    assert_eq!(titled.title, "我叫小明");
}

#[tokio::test]
async fn unreadable_record_fails_alone() {
    let fixture = Fixture::new().await;
    let mut function = fixture.function(&[]).await;
    fixture.store_turn("ann", "s", "I live in Rome.").await;
    let mut odd = turn_record("2", "ann", "s", 1);
    odd["dynamodb"]["Keys"]["user_id"] = json!({"N": "1"});
    let records = [turn_record("1", "ann", "s", 1), odd, json!("no record at all")];
    // An empty identifier fails the whole batch.
    assert_eq!(invoke(&mut function, json!({"Records": records})).await.unwrap(), failures(&["2", ""]));
    assert_eq!(fixture.remembered("ann", "fact").await, ["The user lives in Rome."]);
    for no_event in [json!({}), json!({"Records": 1}), json!(null)] {
        assert!(invoke(&mut function, no_event).await.is_err());
    }
}

#[tokio::test]
async fn records_without_time_left_are_retried() {
    let fixture = Fixture::new().await;
    let mut function = fixture.function(&[]).await;
    fixture.store_turn("ann", "s", "I live in Rome.").await;
    let event = json!({"Records": [turn_record("1", "ann", "s", 1)]});
    let late = invoke_within(&mut function, event.clone(), Duration::from_secs(10)).await.unwrap();
    assert_eq!((late, fixture.remembered("ann", "chat").await.len()), (failures(&["1"]), 0));
    assert_eq!(invoke(&mut function, event).await.unwrap(), failures(&[]));
}

#[tokio::test]
async fn store_failure_blocks_later_turns_of_the_user() {
    let fixture = Fixture::new().await;
    for turn in ["I live in Rome.", "I live in Oslo."] {
        fixture.store_turn("ann", "s", turn).await;
    }
    fixture.store_turn("bob", "s", "I live in Bonn.").await;
    // No memory can be stored while the embedding provider is unreachable.
    let unreachable = "http://127.0.0.1:1/v1";
    let variables =
        [("EMBEDDING_PROVIDER", "openai"), ("EMBEDDING_API_KEY", "k"), ("EMBEDDING_API_BASE_URL", unreachable)];
    let mut function = fixture.function(&variables).await;
    let records = [turn_record("1", "ann", "s", 1), turn_record("2", "bob", "s", 1), turn_record("3", "ann", "s", 2)];
    let failed = invoke(&mut function, json!({"Records": records})).await.unwrap();
    let mut numbers: Vec<_> =
        failed["batchItemFailures"].as_array().unwrap().iter().map(|f| &f["itemIdentifier"]).collect();
    numbers.sort_unstable_by_key(|number| number.as_str().unwrap());
    assert_eq!(numbers, ["1", "2", "3"]);
    assert_eq!(fixture.remembered("ann", "chat").await.len(), 0);
}

#[tokio::test]
async fn scheduled_event_drains_the_database_queue() {
    let fixture = Fixture::new().await;
    let mut function = fixture.function(&[]).await;
    fixture.store_turn("ann", "s", "I live in Rome.").await;
    fixture.store_turn("bob", "s", "I live in Oslo.").await;
    let event = json!({"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}});
    assert_eq!(invoke(&mut function, event.clone()).await.unwrap(), json!({"settled": 2}));
    assert_eq!(fixture.remembered("bob", "fact").await, ["The user lives in Oslo."]);
    assert_eq!(invoke(&mut function, event).await.unwrap(), json!({"settled": 0}));
}

/// Only with the DynamoDB emulator: `infra/dynamodb.sh cargo test --package remember`.
#[tokio::test]
async fn dynamodb_stream_records_are_learned() {
    let Some(mut variables) = dynamodb::variables() else { return };
    let fixture = Fixture::new().await;
    let patience = Duration::from_secs(60);
    let access = DynamoAccess::from_env().unwrap();
    let table = DynamoTable { name: dynamodb::TABLE.to_owned(), access, extraction_jobs: None };
    let store = DynamoConversations::with_deadlines(table, patience, patience);
    let ann = format!("ann-{}", RequestId::generate());
    store_turn(&store, &ann, "s", "I live in Rome.").await;
    // Larger than a DynamoDB item.
    store_turn(&store, &ann, "s", &format!("I moved to Oslo.\n\n{}", "very long ".repeat(60_000))).await;
    let records = dynamodb::records_of(&ann).await;
    assert!(records.len() > 6, "runs, leases and parts are in the stream as well: {}", records.len());
    let conversations = format!("dynamodb://{}", dynamodb::TABLE);
    variables.push(("CONVERSATIONS", conversations));
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut function = fixture.function(&variables).await;
    for _ in 0..2 {
        assert_eq!(invoke(&mut function, json!({"Records": records})).await.unwrap(), failures(&[]));
        assert_eq!(fixture.remembered(&ann, "fact").await, ["The user lives in Oslo.", "The user lives in Rome."]);
    }
    assert_eq!(store.get_session(&user(&ann), &session("s")).await.unwrap().unwrap().title, "I live in Rome");
    // Title updates are in the stream as well.
    assert_eq!(
        invoke(&mut function, json!({"Records": dynamodb::records_of(&ann).await})).await.unwrap(),
        failures(&[])
    );
}

#[tokio::test]
async fn nothing_is_learned_after_user_deleted_everything() {
    let fixture = Fixture::new().await;
    let mut function = fixture.function(&[]).await;
    fixture.store_turn("ann", "s", "I live in Rome.").await;
    erase_user(&fixture.database.engine, &user("ann")).await.unwrap();
    let event = json!({"Records": [turn_record("1", "ann", "s", 1)]});
    assert_eq!(invoke(&mut function, event).await.unwrap(), failures(&[]));
    assert_eq!(fixture.remembered("ann", "chat").await.len(), 0);
}

#[tokio::test]
async fn missing_conversations_setting_is_reported() {
    let mut function = LambdaFunction::start(PROGRAM, &[("DEMO_MODE", "true")]).await;
    let error = invoke(&mut function, json!({"Records": []})).await.unwrap_err();
    assert!(error.contains("CONVERSATIONS"), "{error}");
}
