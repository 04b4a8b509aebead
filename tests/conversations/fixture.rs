use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_service::{
    conversation::{
        AdmitOutcome, ConversationStore, FrameChunk, Lease, NewRun, NewTurn, PostgresConversations, RunEnding, RunKey,
        RunOutcome, WithDeadlines,
    },
    identity::{RequestId, SessionId, UserId},
    postgres::Database,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use sqlx::Executor as _;
use uuid::Uuid;

use crate::postgres::{TestDatabase, config};

pub const MAX_TURN: Duration = Duration::from_secs(600);
/// Generous: a test machine may be slow.
pub const ADMIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Changes the data of a store as no service can.
#[async_trait::async_trait]
pub trait Backdoor: Send + Sync {
    /// Moves all stored times into the past.
    async fn let_pass(&self, time: Duration);

    fn now(&self) -> Timestamp;

    /// The turns of the user that `work` ends get the same time.
    async fn at_one_moment<'a>(&'a self, user: &'a UserId, work: BoxFuture<'a, ()>);
}

pub struct StoreFixture {
    pub store: Arc<dyn ConversationStore>,
    pub backdoor: Arc<dyn Backdoor>,
    suffix: String,
}

pub async fn in_postgres() -> Option<StoreFixture> {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    Some(StoreFixture::new(Arc::new(store), Arc::new(PostgresBackdoor { database })))
}

#[cfg(feature = "dynamodb")]
pub async fn in_dynamodb() -> Option<StoreFixture> {
    let table = crate::dynamodb::TestTable::create().await?;
    Some(StoreFixture::new(Arc::new(table.store(ADMIT_TIMEOUT)), Arc::new(table)))
}

pub fn postgres_store(url: &str, admit_timeout: Duration) -> WithDeadlines<PostgresConversations> {
    let pools = Database::from_config(&config(&[("DATABASE_URL", url)]).stores.database).unwrap().pools();
    PostgresConversations::with_deadlines(&pools.conversations, MAX_TURN, admit_timeout)
}

struct PostgresBackdoor {
    database: TestDatabase,
}

#[async_trait::async_trait]
impl Backdoor for PostgresBackdoor {
    async fn let_pass(&self, time: Duration) {
        let seconds = time.as_secs();
        // In the lock order of the store, so that it can run beside other calls.
        let age = format!(
            "select from user_usage order by user_id for update;
             update runs set lease_until = lease_until - interval '{seconds} s',
                             watched_until = watched_until - interval '{seconds} s',
                             started_at = started_at - interval '{seconds} s',
                             unread_since = unread_since - interval '{seconds} s',
                             ended_at = ended_at - interval '{seconds} s';
             update pending_turns set created_at = created_at - interval '{seconds} s',
                                      resumed_at = resumed_at - interval '{seconds} s';
             update user_usage set minute = date_trunc('minute', minute - interval '{seconds} s', 'UTC')
             where minute > '-infinity';
             update user_usage set day = ((now() - interval '{seconds} s') at time zone 'UTC')::date
             where day > '-infinity'"
        );
        self.database.connect().await.execute(sqlx::AssertSqlSafe(age)).await.unwrap();
    }

    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn at_one_moment<'a>(&'a self, user: &'a UserId, work: BoxFuture<'a, ()>) {
        let mut direct = self.database.connect().await;
        let before: jiff_sqlx::Timestamp =
            sqlx::query_scalar("select clock_timestamp()").persistent(false).fetch_one(&mut direct).await.unwrap();
        work.await;
        let since = "update sessions set updated_at = $2 where user_id = $1 and updated_at > $2";
        sqlx::query(since).bind(user.as_str()).bind(before).execute(&mut direct).await.unwrap();
    }
}

impl StoreFixture {
    pub fn new(store: Arc<dyn ConversationStore>, backdoor: Arc<dyn Backdoor>) -> Self {
        Self { store, backdoor, suffix: Uuid::new_v4().simple().to_string() }
    }

    pub fn user(&self, name: &str) -> UserId {
        UserId::parse("user_id", &format!("{name}-{}", self.suffix)).unwrap()
    }

    pub fn run(&self, session: &str, request: &str) -> NewRun {
        new_run(self.user("ann"), session, request)
    }

    pub async fn start(&self, run: &NewRun) -> Lease {
        started(self.store.admit(run).await.unwrap())
    }

    pub async fn talk(&self, session: &str, request: &str, record: &[u8]) {
        let lease = self.start(&self.run(session, request)).await;
        self.store.finish(&lease, &RunEnding { turn: Some(turn(record)), ..ending(1) }).await.unwrap();
    }

    pub async fn let_leases_expire(&self) {
        self.backdoor.let_pass(agent_service::conversation::LEASE_DURATION + Duration::from_secs(1)).await;
    }
}

/// Repeats work that failed if it took longer than `limit`, within which it has to succeed.
pub async fn within(limit: Duration, work: impl AsyncFn(usize)) {
    for attempt in 0.. {
        let begun = Instant::now();
        match AssertUnwindSafe(work(attempt)).catch_unwind().await {
            Ok(()) => return,
            Err(_) if begun.elapsed() >= limit && attempt < 20 => {}
            Err(failed) => std::panic::resume_unwind(failed),
        }
    }
}

pub async fn within_one_minute(fixture: &StoreFixture, work: impl AsyncFn(usize)) {
    let minute = || fixture.backdoor.now().as_second() / 60;
    for attempt in 0.. {
        let before = minute();
        let done = AssertUnwindSafe(work(attempt)).catch_unwind().await;
        match done {
            _ if minute() != before => {}
            Ok(()) => return,
            Err(failed) => std::panic::resume_unwind(failed),
        }
    }
}

pub fn session(id: &str) -> SessionId {
    SessionId::parse("session_id", id).unwrap()
}

pub fn request(id: &str) -> RequestId {
    RequestId::parse("request_id", id).unwrap()
}

pub fn new_run(user: UserId, session: &str, request: &str) -> NewRun {
    let key = RunKey { user, session: self::session(session), request: self::request(request) };
    let head = b"head".to_vec();
    NewRun { key, fingerprint: [7; 32], head, takes_session: true, resumes: false, quotas: None, history_budget: None }
}

pub fn started(admission: AdmitOutcome) -> Lease {
    match admission {
        AdmitOutcome::Started { lease, .. } => lease.take(),
        other => panic!("not started: {other:?}"),
    }
}

pub fn chunk(first: u32, count: u32) -> FrameChunk {
    let frames = (first..first + count).map(|number| format!("frame {number};")).collect::<String>();
    FrameChunk { first, count, frames: frames.into_bytes() }
}

pub fn ending(last: u32) -> RunEnding {
    RunEnding {
        chunk: chunk(last, 1),
        outcome: RunOutcome::Final,
        turn: None,
        tokens: 0,
        resumed_turn: None,
        profile: None,
    }
}

pub fn turn(record: &[u8]) -> NewTurn {
    NewTurn {
        record: record.to_vec(),
        tokens: 10,
        is_complete: true,
        provisional_title: "Provisional".to_owned(),
        may_be_learned: true,
    }
}
