//! Memory, conversations and queue in a database per test, and a model with scripted answers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_service::{
    chat::{RecordedCitation, TurnFinish, TurnRecord},
    composition::build_embedder,
    conversation::{
        AdmitOutcome, ConversationStore, FrameChunk, Lease, NewRun, NewTurn, PostgresConversations, RunEnding, RunKey,
        RunOutcome, StoredTurn,
    },
    identity::{RequestId, SessionId, UserId},
    learning::{ExtractionWorker, Extractor, ModelExtractor, RuleExtractor, RuleSummarizer, Summarizer, TurnLearner},
    llm::{ChatModel, Finish, Message, ModelEvent, ModelRequest, ModelStream},
    memory::{ExportedMemory, Memory, MemoryEngine, Metadata},
    postgres::{Database, RolePools},
};
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::{sync::Semaphore, time::Instant};

use crate::postgres::{TestDatabase, config};

/// Only ends a test that hangs; no assertion depends on it.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Harness {
    pub database: TestDatabase,
    pub roles: RolePools,
    pub memory: Arc<MemoryEngine>,
    pub store: Arc<dyn ConversationStore>,
}

/// Shares only the database.
pub struct OtherProcess {
    pub roles: RolePools,
    pub memory: Arc<MemoryEngine>,
    pub store: Arc<dyn ConversationStore>,
}

impl Harness {
    pub async fn new() -> Self {
        let database = TestDatabase::create().await;
        let (roles, memory, store) = parts(&database);
        Self { database, roles, memory, store }
    }

    pub fn other_process(&self) -> OtherProcess {
        let (roles, memory, store) = parts(&self.database);
        OtherProcess { roles, memory, store }
    }

    /// The worker of another process on the same database.
    pub fn worker(&self, extractor: Arc<dyn Extractor>) -> ExtractionWorker {
        let (roles, memory, store) = parts(&self.database);
        let learner = TurnLearner::new(memory, store.clone(), extractor, Arc::new(RuleSummarizer));
        let stored_turns = store.stored_turns().unwrap();
        ExtractionWorker::new(&roles, Arc::new(learner), store, stored_turns)
    }

    pub fn learner(&self, extractor: Arc<dyn Extractor>, summarizer: Arc<dyn Summarizer>) -> TurnLearner {
        TurnLearner::new(self.memory.clone(), self.store.clone(), extractor, summarizer)
    }

    pub fn rule_learner(&self) -> TurnLearner {
        self.learner(Arc::new(RuleExtractor), Arc::new(RuleSummarizer))
    }

    pub async fn owner_connection(&self) -> PgConnection {
        self.database.connect().await
    }

    /// Stores a turn as a chat does.
    pub async fn store_turn(&self, user: &UserId, session: &SessionId, record: &TurnRecord) -> StoredTurn {
        let lease = started(self.store.admit(&new_run(user, session, &RequestId::generate())).await.unwrap());
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
        self.store.finish(&lease, &ending).await.unwrap();
        self.last_turn(user, session).await
    }

    pub async fn last_turn(&self, user: &UserId, session: &SessionId) -> StoredTurn {
        self.store.list_turns(user, session, None, 1).await.unwrap().remove(0)
    }

    /// Changes the time of the last turn.
    pub async fn set_turn_time(&self, user: &UserId, session: &SessionId, at: Timestamp) {
        let date = "update turns set created_at = $3 where user_id = $1 and session_id = $2
                    and seq = (select max(seq) from turns where user_id = $1 and session_id = $2)";
        let date = sqlx::query(date).bind(user.as_str()).bind(session.as_str()).bind(at.to_sqlx());
        date.execute(&mut self.owner_connection().await).await.unwrap();
    }

    /// All memories of a user, oldest first.
    pub async fn memories(&self, user: &UserId) -> Vec<Memory> {
        let mut exported: Vec<ExportedMemory> =
            Box::pin(self.memory.clone().export(user.clone())).map(Result::unwrap).collect().await;
        exported.reverse();
        exported.into_iter().map(|exported| exported.memory).collect()
    }

    /// The current and the superseded facts about a user.
    pub async fn facts(&self, user: &UserId) -> (Vec<Memory>, Vec<Memory>) {
        let facts = self.memories(user).await.into_iter().filter(|memory| memory.source_type == "fact");
        facts.partition(|fact| fact.superseded_by.is_none())
    }

    pub async fn current_facts(&self, user: &UserId) -> Vec<String> {
        self.facts(user).await.0.into_iter().map(|fact| fact.content).collect()
    }

    /// Makes every waiting job due, and returns their number.
    pub async fn expire_retry_delays(&self) -> u64 {
        let due = "update learning_jobs set due_at = now() where failed_at is null and due_at > now()";
        sqlx::query(due).execute(&mut self.owner_connection().await).await.unwrap().rows_affected()
    }

    /// `source` is a table, optionally with a condition.
    pub async fn count_rows(&self, source: &str) -> i64 {
        let count = AssertSqlSafe(format!("select count(*) from {source}"));
        sqlx::query_scalar(count).persistent(false).fetch_one(&mut self.owner_connection().await).await.unwrap()
    }
}

fn parts(database: &TestDatabase) -> (RolePools, Arc<MemoryEngine>, Arc<dyn ConversationStore>) {
    let url = database.service_url();
    let config = config(&[("DATABASE_URL", &url), ("EMBEDDING_PROVIDER", "hashed")]);
    let roles = Database::from_config(&config.stores.database).unwrap().pools();
    let embedder = build_embedder(&config.embedding).unwrap();
    let memory = Arc::new(MemoryEngine::new(config.memory, roles.clone(), embedder));
    let store = PostgresConversations::with_deadlines(&roles.service, TEST_TIMEOUT, TEST_TIMEOUT);
    (roles, memory, Arc::new(store))
}

/// Processes all due jobs, and returns how many were settled.
pub async fn process_queue(worker: &ExtractionWorker) -> usize {
    let settled = worker.run_until_idle(Instant::now() + TEST_TIMEOUT);
    tokio::time::timeout(TEST_TIMEOUT, settled).await.expect("the queue is not idle within the timeout").unwrap()
}

pub fn new_run(user: &UserId, session: &SessionId, request: &RequestId) -> NewRun {
    NewRun {
        key: RunKey { user: user.clone(), session: session.clone(), request: request.clone() },
        fingerprint: [0; 32],
        head: Vec::new(),
        takes_session: true,
        resumes: false,
        quotas: None,
        history_budget: None,
    }
}

pub fn started(admission: AdmitOutcome) -> Lease {
    match admission {
        AdmitOutcome::Started { lease, .. } => lease.take(),
        other => panic!("not started: {other:?}"),
    }
}

pub fn user(name: &str) -> UserId {
    UserId::parse("user_id", name).unwrap()
}

pub fn session(name: &str) -> SessionId {
    SessionId::parse("session_id", name).unwrap()
}

pub fn record(question: &str, answer: &str) -> TurnRecord {
    let answer = Message::Assistant { content: answer.into(), reasoning: None, calls: Vec::new() };
    let mut record = TurnRecord::new(vec![Message::User(question.into()), answer], "m".into(), TurnFinish::Stop);
    record.timezone = "Asia/Shanghai".into();
    record
}

/// A citation of a memory that the answer is grounded in.
pub fn citation(excerpt: &str) -> RecordedCitation {
    RecordedCitation { id: "m".into(), excerpt: excerpt.into(), score: 0.9, ..RecordedCitation::default() }
}

/// Gives its answers in order, then empty ones.
#[derive(Default)]
pub struct ScriptedModel {
    pub answers: Mutex<VecDeque<String>>,
    pub requests: Mutex<Vec<Vec<Message>>>,
    /// If set, each answer waits for a permit.
    pub gate: Option<Arc<Semaphore>>,
}

impl ScriptedModel {
    pub fn new(answers: &[&str]) -> Arc<Self> {
        let model = Self::default();
        model.script(answers);
        Arc::new(model)
    }

    /// Replaces the remaining answers.
    pub fn script(&self, answers: &[&str]) {
        *self.answers.lock().unwrap() = answers.iter().map(|answer| (*answer).to_owned()).collect();
    }

    pub fn extractor(self: &Arc<Self>) -> Arc<dyn Extractor> {
        Arc::new(ModelExtractor::new(self.clone()))
    }

    pub fn request_count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl ChatModel for ScriptedModel {
    fn answer(self: Arc<Self>, request: ModelRequest) -> ModelStream {
        let question = match request.messages.last() {
            Some(Message::User(question)) => question.clone(),
            other => panic!("{other:?}"),
        };
        Box::pin(
            stream::once(async move {
                self.requests.lock().unwrap().push(request.messages.to_vec());
                if let Some(gate) = &self.gate {
                    gate.acquire().await.unwrap().forget();
                }
                let answer = self.answers.lock().unwrap().pop_front().unwrap_or_default();
                resolve_ids(&answer, &question)
            })
            .flat_map(|answer| {
                let finished = ModelEvent::Finished { model: "scripted".into(), finish: Finish::Stop };
                let delta = (!answer.is_empty()).then_some(ModelEvent::Delta(answer));
                stream::iter(delta.into_iter().chain([finished]).map(Ok))
            }),
        )
    }

    fn name<'a>(&'a self, _requested: Option<&'a str>) -> &'a str {
        "scripted"
    }

    fn allows(&self, _model: &str) -> bool {
        true
    }
}

/// Replaces `@words` in an answer by the id that the prompt gave the known fact with these words.
fn resolve_ids(answer: &str, question: &str) -> String {
    let (Ok(mut answer_json), Ok(question)) =
        (serde_json::from_str::<Value>(answer), serde_json::from_str::<Value>(question))
    else {
        return answer.to_owned();
    };
    let name = |words: &str| {
        let known = question["known_facts"].as_array().cloned().unwrap_or_default();
        let found = known.iter().find(|fact| fact["fact"].as_str().unwrap().contains(words));
        found.map_or_else(|| panic!("no known fact has the words {words}: {question}"), |fact| fact["id"].clone())
    };
    let Some(facts) = answer_json.get_mut("facts").and_then(Value::as_array_mut) else { return answer.to_owned() };
    for fact in facts {
        if let Some(words) = fact["same_as"].as_str().and_then(|same| same.strip_prefix('@')) {
            fact["same_as"] = name(words);
        }
        for replaced in fact.get_mut("replaces").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(words) = replaced.as_str().and_then(|words| words.strip_prefix('@')) {
                *replaced = name(words);
            }
        }
    }
    answer_json.to_string()
}

/// Empty if the key is absent.
pub fn metadata<'m>(memory: &'m Memory, key: &str) -> &'m str {
    let metadata: &Metadata = &memory.metadata;
    metadata.get(key).map_or("", String::as_str)
}
