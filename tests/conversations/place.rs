//! A store for a test, with a way to let time pass, and short words for what tests do most.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_service::{
    conversation::{
        AdmitOutcome, ConversationStore, FrameChunk, Lease, NewRun, NewTurn, PostgresConversations, RunEnding, RunKey,
        RunOutcome,
    },
    identity::{RequestId, SessionId, UserId},
    postgres::Database,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use sqlx::Executor as _;
use uuid::Uuid;

use crate::postgres::{TestDatabase, config};

/// Longest turn of the stores.
pub const LONGEST_TURN: Duration = Duration::from_secs(600);
/// Longest admission of the stores: a test machine may be slower than a real one.
pub const ADMISSION: Duration = Duration::from_secs(20);

/// What is done to a store from behind, as no service can.
#[async_trait::async_trait]
pub trait Backdoor: Send + Sync {
    /// Makes it as if so much time had passed since everything that was done so far.
    async fn let_pass(&self, time: Duration);

    /// What the clock of the store shows.
    fn now(&self) -> Timestamp;

    /// Does work that ends turns of a user, all of them at one moment.
    async fn at_one_moment<'a>(&'a self, user: &'a UserId, work: BoxFuture<'a, ()>);
}

/// A store of one test.
pub struct Place {
    pub store: Arc<dyn ConversationStore>,
    pub backdoor: Arc<dyn Backdoor>,
    /// Keeps users of tests apart that share a database.
    suffix: String,
}

/// A store in a Postgres of its own.
pub async fn in_postgres() -> Option<Place> {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), ADMISSION);
    Some(Place::new(Arc::new(store), Arc::new(BehindPostgres { database })))
}

/// A store in a table of its own, where `infra/dynamodb.sh` tells of a DynamoDB.
#[cfg(feature = "dynamodb")]
pub async fn in_dynamodb() -> Option<Place> {
    let table = crate::dynamodb::TestTable::create().await?;
    Some(Place::new(Arc::new(table.store(ADMISSION)), Arc::new(table)))
}

/// The store of a database.
pub fn postgres_store(url: &str, admission: Duration) -> PostgresConversations {
    let roles = Database::from_config(&config(&[("DATABASE_URL", url)]).stores.database).unwrap().pools();
    PostgresConversations::new(roles.conversations, LONGEST_TURN, admission)
}

struct BehindPostgres {
    database: TestDatabase,
}

#[async_trait::async_trait]
impl Backdoor for BehindPostgres {
    async fn let_pass(&self, time: Duration) {
        let seconds = time.as_secs();
        // In the order of the store's own locks, so that it can be done beside other things.
        let age = format!(
            "select from user_usage order by user_id for update;
             update runs set lease_until = lease_until - interval '{seconds} s',
                             watched_until = watched_until - interval '{seconds} s',
                             started_at = started_at - interval '{seconds} s',
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
        let mut behind = self.database.connect().await;
        let before: jiff_sqlx::Timestamp =
            sqlx::query_scalar("select clock_timestamp()").persistent(false).fetch_one(&mut behind).await.unwrap();
        work.await;
        let since = "update sessions set updated_at = $2 where user_id = $1 and updated_at > $2";
        sqlx::query(since).bind(user.as_str()).bind(before).execute(&mut behind).await.unwrap();
    }
}

impl Place {
    pub fn new(store: Arc<dyn ConversationStore>, backdoor: Arc<dyn Backdoor>) -> Self {
        Self { store, backdoor, suffix: Uuid::new_v4().simple().to_string() }
    }

    pub fn user(&self, name: &str) -> UserId {
        UserId::parse("user_id", &format!("{name}-{}", self.suffix)).unwrap()
    }

    /// A request of `ann` that takes the conversation.
    pub fn run(&self, session: &str, request: &str) -> NewRun {
        NewRun {
            key: RunKey { user: self.user("ann"), session: self::session(session), request: self::request(request) },
            fingerprint: [7; 32],
            head: b"head".to_vec(),
            takes_session: true,
            resumes: false,
            quotas: None,
        }
    }

    /// Starts a run that must be let in.
    pub async fn start(&self, run: &NewRun) -> Lease {
        started(self.store.admit(run).await.unwrap())
    }

    /// Starts a request of `ann` and ends it with a turn.
    pub async fn talk(&self, session: &str, request: &str, record: &[u8]) {
        let lease = self.start(&self.run(session, request)).await;
        self.store.finish(&lease, &RunEnding { turn: Some(turn(record)), ..ending(1) }).await.unwrap();
    }

    /// Lets so much time pass that nobody is taken to be alive any more.
    pub async fn let_leases_expire(&self) {
        self.backdoor.let_pass(agent_service::conversation::LEASE_DURATION + Duration::from_secs(1)).await;
    }
}

/// Does something that is right only if it takes less than `limit`. Where it went wrong and took longer, it is done again.
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

/// Does something that no minute may end in. Where one did, it is done again.
pub async fn within_one_minute(place: &Place, work: impl AsyncFn(usize)) {
    let minute = || place.backdoor.now().as_second() / 60;
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

pub fn started(admission: AdmitOutcome) -> Lease {
    match admission {
        AdmitOutcome::Started { lease, .. } => lease,
        other => panic!("not started but {other:?}"),
    }
}

/// Frames whose bytes tell their numbers.
pub fn chunk(first: u32, count: u32) -> FrameChunk {
    let frames = (first..first + count).map(|number| format!("frame {number};")).collect::<String>();
    FrameChunk { first, count, frames: frames.into_bytes() }
}

/// An end with one last frame and without a turn.
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
