//! The function as Lambda runs it, on a database. It is told of turns by records as the stream of DynamoDB has them. What was
//! said is read from Postgres, which the function does not notice, but for one test, with the stand-in for DynamoDB.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

#[path = "../../../manage-memory/tests/function/database.rs"]
mod database;
#[path = "../../../stream-chat/tests/function/double.rs"]
#[expect(dead_code, reason = "these tests need less of it")]
mod double;
mod dynamodb;

use std::time::Duration;

use agent_service::{
    chat::{TurnFinish, TurnRecord},
    config::Config,
    conversation::{
        AdmitOutcome, ConversationStore, FrameChunk, NewRun, NewTurn, PostgresConversations, RunEnding, RunKey,
        RunOutcome, dynamodb::DynamoConversations,
    },
    erasure::erase_user,
    identity::{RequestId, SessionId, UserId},
    llm::Message,
    memory::Filter,
    postgres::Database,
};
use database::TestDatabase;
use double::{Function, Said};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_remember");

/// A function on a database, and the store that it reads.
struct World {
    database: TestDatabase,
    store: PostgresConversations,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let database = TestDatabase::start(directory.path()).await;
        let url = database.url("writer");
        let config = Config::read(&|name| (name == "DATABASE_URL").then(|| url.clone())).unwrap();
        let roles = Database::from_config(&config.stores.database).unwrap().pools();
        let patience = Duration::from_secs(60);
        let store = PostgresConversations::new(roles.conversations, patience, patience);
        Self { database, store, _directory: directory }
    }

    async fn function(&self, more: &[(&str, &str)]) -> Function {
        let url = self.database.url("writer");
        let mut variables = vec![
            ("AUTH", "none"),
            ("EMBEDDING_PROVIDER", "hashed"),
            ("DEMO_MODE", "true"),
            ("DATABASE_URL", url.as_str()),
            ("CONVERSATIONS", "postgres"),
        ];
        variables.extend(more);
        Function::start(PROGRAM, &variables).await
    }

    /// Keeps a turn.
    async fn keep(&self, user_id: &str, session_id: &str, question: &str) {
        keep(&self.store, user_id, session_id, question).await;
    }

    /// What is remembered of a user: facts, or what was said.
    async fn remembered(&self, user_id: &str, source_type: &str) -> Vec<String> {
        let filter = Filter { source_types: vec![source_type.into()], ..Filter::default() };
        let page = self.database.engine.list(&user(user_id), &filter, 100, None).await.unwrap();
        let mut texts: Vec<_> = page.memories.into_iter().map(|memory| memory.content).collect();
        texts.sort_unstable();
        texts
    }
}

/// Keeps a turn as a chat does.
async fn keep(store: &dyn ConversationStore, user_id: &str, session_id: &str, question: &str) {
    let request = RequestId::generate();
    let run = NewRun {
        key: RunKey { user: user(user_id), session: session(session_id), request },
        fingerprint: [0; 32],
        head: Vec::new(),
        takes_session: true,
        resumes: false,
        quotas: None,
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
    store.finish(&lease, &ending).await.unwrap();
}

fn user(id: &str) -> UserId {
    UserId::parse("user_id", id).unwrap()
}

fn session(id: &str) -> SessionId {
    SessionId::parse("session_id", id).unwrap()
}

/// A record of a turn, as the stream of the table has it.
fn kept(number: &str, user_id: &str, session_id: &str, turn: u32) -> Value {
    written(number, user_id, &format!("turn/{session_id}/{turn:010}"))
}

/// A record of an item that is new.
fn written(number: &str, user_id: &str, item: &str) -> Value {
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

/// What the function says to an event.
async fn answer(function: &mut Function, event: Value) -> Result<Value, String> {
    answer_within(function, event, Duration::from_secs(60)).await
}

async fn answer_within(function: &mut Function, event: Value, time: Duration) -> Result<Value, String> {
    function.invoke(event, time);
    let mut bytes = Vec::new();
    loop {
        match function.next().await {
            Said::Head(_) => {}
            Said::Chunk(chunk) => bytes.extend(chunk),
            Said::End => return Ok(serde_json::from_slice(&bytes).unwrap()),
            Said::Error(error) => return Err(error),
        }
    }
}

fn failures(numbers: &[&str]) -> Value {
    let failures: Vec<_> = numbers.iter().map(|number| json!({"itemIdentifier": number})).collect();
    json!({ "batchItemFailures": failures })
}

#[tokio::test]
async fn turns_are_learned_from_once_however_often_they_are_told() {
    let world = World::new().await;
    let mut function = world.function(&[]).await;
    world.keep("ann", "s", "I live in Rome.").await;
    world.keep("ann", "s", "I moved to Oslo.").await;
    world.keep("bob", "t", "我叫小明。").await;
    let records = [
        kept("1", "ann", "s", 1),
        written("2", "ann", "session/s"),
        kept("3", "bob", "t", 1),
        kept("4", "ann", "s", 2),
        // Of a conversation that is gone by now.
        kept("5", "ann", "gone", 1),
    ];
    for _ in 0..2 {
        assert_eq!(answer(&mut function, json!({"Records": records})).await.unwrap(), failures(&[]));
        assert_eq!(world.remembered("ann", "fact").await, ["The user lives in Oslo.", "The user lives in Rome."]);
        assert_eq!(world.remembered("ann", "chat").await.len(), 4);
        assert_eq!(world.remembered("bob", "fact").await, ["用户的名字是小明。"]);
    }
    let titled = world.store.get_session(&user("bob"), &session("t")).await.unwrap().unwrap();
    assert_eq!(titled.title, "我叫小明");
}

#[tokio::test]
async fn a_record_that_can_not_be_read_fails_alone() {
    let world = World::new().await;
    let mut function = world.function(&[]).await;
    world.keep("ann", "s", "I live in Rome.").await;
    let mut odd = kept("2", "ann", "s", 1);
    odd["dynamodb"]["Keys"]["user_id"] = json!({"N": "1"});
    let records = [kept("1", "ann", "s", 1), odd, json!("no record at all")];
    // An empty name stands for the whole batch.
    assert_eq!(answer(&mut function, json!({"Records": records})).await.unwrap(), failures(&["2", ""]));
    assert_eq!(world.remembered("ann", "fact").await, ["The user lives in Rome."]);
    for no_event in [json!({}), json!({"Records": 1}), json!(null)] {
        assert!(answer(&mut function, no_event).await.is_err());
    }
}

#[tokio::test]
async fn what_there_is_no_time_for_comes_again() {
    let world = World::new().await;
    let mut function = world.function(&[]).await;
    world.keep("ann", "s", "I live in Rome.").await;
    let event = json!({"Records": [kept("1", "ann", "s", 1)]});
    let late = answer_within(&mut function, event.clone(), Duration::from_secs(10)).await.unwrap();
    assert_eq!((late, world.remembered("ann", "chat").await.len()), (failures(&["1"]), 0));
    assert_eq!(answer(&mut function, event).await.unwrap(), failures(&[]));
}

#[tokio::test]
async fn a_store_that_fails_makes_a_users_later_turns_wait_as_well() {
    let world = World::new().await;
    for turn in ["I live in Rome.", "I live in Oslo."] {
        world.keep("ann", "s", turn).await;
    }
    world.keep("bob", "s", "I live in Bonn.").await;
    // Nothing can be kept while the provider of the embeddings is out of reach.
    let nobody = "127.0.0.1:1";
    let address = format!("http://{nobody}/v1");
    let variables =
        [("EMBEDDING_PROVIDER", "openai"), ("EMBEDDING_API_KEY", "k"), ("EMBEDDING_API_BASE_URL", address.as_str())];
    let mut function = world.function(&variables).await;
    let records = [kept("1", "ann", "s", 1), kept("2", "bob", "s", 1), kept("3", "ann", "s", 2)];
    let failed = answer(&mut function, json!({"Records": records})).await.unwrap();
    let mut numbers: Vec<_> =
        failed["batchItemFailures"].as_array().unwrap().iter().map(|f| &f["itemIdentifier"]).collect();
    numbers.sort_unstable_by_key(|number| number.as_str().unwrap());
    assert_eq!(numbers, ["1", "2", "3"]);
    assert_eq!(world.remembered("ann", "chat").await.len(), 0);
}

#[tokio::test]
async fn on_a_schedule_the_queue_of_the_database_is_worked_on() {
    let world = World::new().await;
    let mut function = world.function(&[]).await;
    world.keep("ann", "s", "I live in Rome.").await;
    world.keep("bob", "s", "I live in Oslo.").await;
    let event = json!({"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}});
    assert_eq!(answer(&mut function, event.clone()).await.unwrap(), json!({"settled": 2}));
    assert_eq!(world.remembered("bob", "fact").await, ["The user lives in Oslo."]);
    assert_eq!(answer(&mut function, event).await.unwrap(), json!({"settled": 0}));
}

/// With the stand-in for DynamoDB alone: `infra/dynamodb.sh cargo test --package remember`.
#[tokio::test]
async fn what_the_stream_of_the_table_tells_is_learned_from() {
    let Some(mut variables) = dynamodb::variables() else { return };
    let world = World::new().await;
    let patience = Duration::from_secs(60);
    let store = DynamoConversations::new(dynamodb::TABLE.to_owned(), patience, patience).unwrap();
    let ann = format!("ann-{}", RequestId::generate());
    keep(&store, &ann, "s", "I live in Rome.").await;
    // Longer than one item may be.
    keep(&store, &ann, "s", &format!("I moved to Oslo.\n\n{}", "very long ".repeat(60_000))).await;
    let records = dynamodb::records_of(&ann).await;
    assert!(records.len() > 6, "runs, leases and parts are told as well: {}", records.len());
    let conversations = format!("dynamodb://{}", dynamodb::TABLE);
    variables.push(("CONVERSATIONS", conversations));
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut function = world.function(&variables).await;
    for _ in 0..2 {
        assert_eq!(answer(&mut function, json!({"Records": records})).await.unwrap(), failures(&[]));
        assert_eq!(world.remembered(&ann, "fact").await, ["The user lives in Oslo.", "The user lives in Rome."]);
    }
    assert_eq!(store.get_session(&user(&ann), &session("s")).await.unwrap().unwrap().title, "I live in Rome");
    // Notes of titles are told as well, and are no turns.
    assert_eq!(
        answer(&mut function, json!({"Records": dynamodb::records_of(&ann).await})).await.unwrap(),
        failures(&[])
    );
}

#[tokio::test]
async fn nothing_is_learned_of_who_had_everything_forgotten_meanwhile() {
    let world = World::new().await;
    let mut function = world.function(&[]).await;
    world.keep("ann", "s", "I live in Rome.").await;
    erase_user(&world.database.engine, &user("ann")).await.unwrap();
    let event = json!({"Records": [kept("1", "ann", "s", 1)]});
    assert_eq!(answer(&mut function, event).await.unwrap(), failures(&[]));
    assert_eq!(world.remembered("ann", "chat").await.len(), 0);
}

#[tokio::test]
async fn without_conversations_the_function_says_so() {
    let mut function = Function::start(PROGRAM, &[("DEMO_MODE", "true")]).await;
    let error = answer(&mut function, json!({"Records": []})).await.unwrap_err();
    assert!(error.contains("CONVERSATIONS"), "{error}");
}
