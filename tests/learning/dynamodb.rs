//! Learning from conversations in DynamoDB by the server that stores them. Without the emulator of `infra/dynamodb.sh` these
//! tests are skipped.

use std::sync::Arc;

use agent_service::{
    composition::App,
    conversation::{
        ConversationStore as _, FrameChunk, NewTurn, RunEnding, RunOutcome, WithDeadlines,
        dynamodb::{DynamoAccess, DynamoConversations, DynamoTable, ExtractionJobs},
    },
    identity::{RequestId, UserId},
    postgres::{Database, RolePools},
};
use tokio::sync::mpsc;

use crate::{
    harness::{Harness, TEST_TIMEOUT, new_run, process_queue, record, session, started},
    http_double::{HttpDouble, HttpRequest},
    postgres::{TestDatabase, config},
};

const TABLE: &str = "agent-conversations";

struct Server {
    harness: Harness,
    app: App,
}

impl Server {
    /// `None` without the emulator.
    async fn start() -> Option<Self> {
        std::env::var_os("TEST_DYNAMODB_URL")?;
        let database = TestDatabase::create().await;
        let url = database.service_url();
        let conversations = format!("dynamodb://{TABLE}");
        let variables =
            [("DATABASE_URL", url.as_str()), ("EMBEDDING_PROVIDER", "hashed"), ("CONVERSATIONS", &conversations)];
        let config = config(&variables);
        let roles = Database::from_config(&config.stores.database).unwrap().pools();
        let app = App::from_config(&config, roles.clone()).unwrap();
        let store = app.conversations.clone().unwrap();
        Some(Self { harness: Harness { database, roles, memory: app.engine.clone(), store }, app })
    }

    async fn process_queue(&self) -> usize {
        process_queue(self.app.extraction_worker.as_ref().unwrap()).await
    }
}

/// All tests share the table.
fn new_user() -> UserId {
    UserId::parse("user_id", RequestId::generate().as_str()).unwrap()
}

fn ending(question: &str) -> RunEnding {
    let record = record(question, "Noted.");
    RunEnding {
        chunk: FrameChunk { first: 1, count: 1, frames: b"frame".to_vec() },
        outcome: RunOutcome::Final,
        turn: Some(NewTurn {
            record: record.to_bytes().unwrap(),
            tokens: record.estimate_tokens(),
            is_complete: true,
            provisional_title: record.provisional_title(),
            may_be_learned: true,
        }),
        tokens: 0,
        resumed_turn: None,
        profile: None,
    }
}

fn store_at(url: Option<&str>, roles: &RolePools) -> WithDeadlines<DynamoConversations> {
    let access = DynamoAccess::read(&|name| match (name, url) {
        ("AWS_ENDPOINT_URL_DYNAMODB", Some(url)) => Some(url.to_owned()),
        _ => std::env::var(name).ok(),
    });
    let extraction_jobs = Some(ExtractionJobs::new(roles));
    let table = DynamoTable { name: TABLE.to_owned(), access: access.unwrap(), extraction_jobs };
    DynamoConversations::with_deadlines(table, TEST_TIMEOUT, TEST_TIMEOUT)
}

#[tokio::test]
async fn dynamodb_turns_are_learned_by_their_server() {
    let Some(server) = Server::start().await else { return };
    let (ann, harness) = (new_user(), &server.harness);
    harness.store_turn(&ann, &session("s"), &record("I live in Rome.", "Noted.")).await;
    harness.store_turn(&ann, &session("s"), &record("I moved to Oslo.", "Noted.")).await;
    assert_eq!(server.process_queue().await, 2);
    assert_eq!(harness.current_facts(&ann).await, ["The user lives in Oslo."]);
    assert_eq!(harness.store.get_session(&ann, &session("s")).await.unwrap().unwrap().title, "I live in Rome");
    assert_eq!(harness.count_rows("learning_jobs").await, 0);
}

#[tokio::test]
async fn dynamodb_turn_without_consent_or_end_has_no_job() {
    let Some(server) = Server::start().await else { return };
    let (ann, harness) = (new_user(), &server.harness);
    for (is_complete, may_be_learned) in [(true, false), (false, true)] {
        let lease = started(harness.store.admit(&new_run(&ann, &session("s"), &RequestId::generate())).await.unwrap());
        let mut ending = ending("I live in Rome.");
        ending.turn = ending.turn.map(|turn| NewTurn { is_complete, may_be_learned, ..turn });
        harness.store.finish(&lease, &ending).await.unwrap();
    }
    assert_eq!(harness.store.list_turns(&ann, &session("s"), None, 9).await.unwrap().len(), 2);
    assert_eq!(harness.count_rows("learning_jobs").await, 0);
}

/// Forwards requests to the emulator. The response to the transaction that ends a run is withheld.
async fn proxy_that_withholds_the_end(committed: mpsc::UnboundedSender<()>) -> HttpDouble {
    let client = reqwest::Client::new();
    let emulator = std::env::var("TEST_DYNAMODB_URL").unwrap();
    HttpDouble::start(move |request: HttpRequest| {
        let (client, emulator, committed) = (client.clone(), emulator.clone(), committed.clone());
        async move {
            let mut forwarded = client.post(&emulator);
            for name in ["authorization", "content-type", "x-amz-target", "x-amz-date"] {
                forwarded = forwarded.header(name, request.header(name).unwrap());
            }
            let is_end = String::from_utf8_lossy(&request.body).contains("SET phase = :ended");
            let response = forwarded.body(request.body).send().await.unwrap();
            let (status, body) = (response.status().as_u16(), response.text().await.unwrap());
            if is_end {
                committed.send(()).unwrap();
                std::future::pending::<()>().await;
            }
            (status, body)
        }
    })
    .await
}

#[tokio::test]
async fn dynamodb_turn_of_a_process_that_died_is_learned() {
    let Some(server) = Server::start().await else { return };
    let (ann, harness) = (new_user(), &server.harness);
    let (committed, mut commits) = mpsc::unbounded_channel();
    let proxy = proxy_that_withholds_the_end(committed).await;
    let dying = Arc::new(store_at(Some(&proxy.url), &harness.roles));
    let lease = started(dying.admit(&new_run(&ann, &session("s"), &RequestId::generate())).await.unwrap());
    let finishing = tokio::spawn({
        let dying = dying.clone();
        async move { dying.finish(&lease, &ending("I live in Rome.")).await }
    });
    commits.recv().await.unwrap();
    finishing.abort();
    assert!(finishing.await.unwrap_err().is_cancelled());

    assert_eq!(harness.store.list_turns(&ann, &session("s"), None, 9).await.unwrap().len(), 1);
    assert_eq!(server.process_queue().await, 0, "a job is due before its turn is sure to be stored");
    assert_eq!(harness.expire_retry_delays().await, 1);
    assert_eq!(server.process_queue().await, 1);
    assert_eq!(harness.current_facts(&ann).await, ["The user lives in Rome."]);
}

#[tokio::test]
async fn repeated_end_of_dynamodb_turn_queues_one_job() {
    let Some(server) = Server::start().await else { return };
    let (ann, harness) = (new_user(), &server.harness);
    let lease = started(harness.store.admit(&new_run(&ann, &session("s"), &RequestId::generate())).await.unwrap());
    for _ in 0..2 {
        harness.store.finish(&lease, &ending("I live in Rome.")).await.unwrap();
    }
    assert_eq!(harness.count_rows("learning_jobs").await, 1);
    assert_eq!(server.process_queue().await, 1);
}

#[tokio::test]
async fn dynamodb_turn_is_stored_although_the_queue_is_unreachable() {
    let Some(server) = Server::start().await else { return };
    let (ann, harness) = (new_user(), &server.harness);
    let url = "postgres://nobody@127.0.0.1:1/none";
    let unreachable = Database::from_config(&config(&[("DATABASE_URL", url)]).stores.database).unwrap().pools();
    let store = store_at(None, &unreachable);
    let lease = started(store.admit(&new_run(&ann, &session("s"), &RequestId::generate())).await.unwrap());
    let finished = tokio::time::timeout(TEST_TIMEOUT, store.finish(&lease, &ending("I live in Rome."))).await;
    finished.expect("the end waits for the queue").unwrap();
    assert_eq!(harness.store.list_turns(&ann, &session("s"), None, 9).await.unwrap().len(), 1);
}

/// A turn of a deleted session had the same number, and its job failed for good or is still processed.
#[tokio::test]
async fn job_of_dynamodb_turn_replaces_that_of_a_deleted_session() {
    let Some(server) = Server::start().await else { return };
    let harness = &server.harness;
    for (before, attempts_after) in [("failed_at = now(), attempts = 5", 0), ("locked_until = now() + '1 h'", 1)] {
        let ann = new_user();
        let old = "insert into learning_jobs (user_id, session_id, turn) values ($1, 's', 1)";
        sqlx::query(old).bind(ann.as_str()).execute(&mut harness.owner_connection().await).await.unwrap();
        let old = sqlx::AssertSqlSafe(format!("update learning_jobs set {before} where user_id = $1"));
        sqlx::query(old).bind(ann.as_str()).execute(&mut harness.owner_connection().await).await.unwrap();
        harness.store_turn(&ann, &session("s"), &record("I live in Rome.", "Noted.")).await;
        let condition = format!(
            "learning_jobs where user_id = '{}' and attempts = {attempts_after} and failed_at is null and locked_until is null",
            ann.as_str()
        );
        assert_eq!(harness.count_rows(&condition).await, 1, "{before}");
        assert_eq!(server.process_queue().await, 1, "{before}");
        assert_eq!(harness.current_facts(&ann).await, ["The user lives in Rome."], "{before}");
    }
}
