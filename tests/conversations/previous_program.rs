//! The schema of the previous program: its rows are migrated, and its statements work on the current schema.

use agent_service::{
    conversation::{
        AdmitOutcome, ConversationStore as _, FramePage, NewRun, RunEnding, RunState, SessionSelection, StoreError,
    },
    identity::UserId,
    postgres::Database,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, migrate::Migrator};

use crate::{
    fixture::{ADMIT_TIMEOUT, ending, new_run, postgres_store, request, session, started, turn},
    postgres::{TestDatabase, config},
};

/// The last migration of the previous program.
const PREVIOUS: i64 = 8;

/// As the previous program: one transaction of the role for the user.
const ACT_AS_ANN: &str = "set local role agent_service; select set_config('agent.user_id', 'ann', true)";
const ADMIT: &str = "select outcome from admit_run('ann', $1, $2, sha256('x'), 'head', $3, true, false, 30, 604800,
                                                   100, 16, 1000000)";
const CHECKPOINT: &str = "select cancelled from checkpoint_run('ann', $1, $2, 30, 1, 1, 'frame 1;')";
const COUNT_TOKENS: &str = "
    insert into user_usage as u (user_id, day, tokens) values ('ann', (now() at time zone 'UTC')::date, 7)
    on conflict (user_id) do update set day = excluded.day,
        tokens = case when u.day = excluded.day then u.tokens else 0 end + excluded.tokens";
const END_RUN: &str = "
    with ended as (
        update runs set ended_at = clock_timestamp(), is_repeatable = false, holds_session = false
        where user_id = 'ann' and request_id = $1 and holder = $2 and ended_at is null
        returning user_id, request_id
    )
    insert into run_chunks (user_id, request_id, first_frame, frame_count, frames)
    select user_id, request_id, 2, 1, 'frame 2;' from ended
    on conflict (user_id, request_id, first_frame)
        do update set frame_count = excluded.frame_count, frames = excluded.frames";
const INSERT_TURN: &str = "
    with session as (
        insert into sessions as s (user_id, session_id, title, turns, created_at, updated_at)
        select 'ann', $1, 'Title', 1, moment, moment from clock_timestamp() as moment
        on conflict (user_id, session_id) do update set turns = s.turns + 1, updated_at = excluded.updated_at
        returning turns, updated_at
    ), to_learn as (
        insert into learning_jobs (user_id, session_id, turn) select 'ann', $1, turns from session on conflict do nothing
    )
    insert into turns (user_id, session_id, seq, request_id, record, tokens, is_complete, created_at)
    select 'ann', $1, turns, $2, 'old record', 10, true, updated_at from session";

pub struct PreviousProgram {
    connection: PgConnection,
}

impl PreviousProgram {
    async fn admit(&mut self, session: &str, request: &str, lease_token: &[u8]) -> String {
        let mut transaction = self.connection.begin().await.unwrap();
        transaction.execute(ACT_AS_ANN).await.unwrap();
        let admit = sqlx::query_scalar(ADMIT).bind(session).bind(request).bind(lease_token).persistent(false);
        let outcome = admit.fetch_one(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
        outcome
    }

    async fn finish(&mut self, session: &str, request: &str, lease_token: &[u8]) -> u64 {
        let mut transaction = self.connection.begin().await.unwrap();
        transaction.execute(ACT_AS_ANN).await.unwrap();
        let checkpoint = sqlx::query(CHECKPOINT).bind(request).bind(lease_token).persistent(false);
        checkpoint.execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
        let mut transaction = self.connection.begin().await.unwrap();
        transaction.execute(ACT_AS_ANN).await.unwrap();
        transaction.execute(COUNT_TOKENS).await.unwrap();
        let end = sqlx::query(END_RUN).bind(request).bind(lease_token).persistent(false);
        let ended = end.execute(&mut *transaction).await.unwrap().rows_affected();
        if ended > 0 {
            let turn = sqlx::query(INSERT_TURN).bind(session).bind(request).persistent(false);
            turn.execute(&mut *transaction).await.unwrap();
        }
        transaction.commit().await.unwrap();
        ended
    }

    pub async fn talk(&mut self, session: &str, request: &str) {
        assert_eq!(self.admit(session, request, request.as_bytes()).await, "started");
        assert_eq!(self.finish(session, request, request.as_bytes()).await, 1);
    }
}

pub async fn database_of_previous_program() -> (TestDatabase, PreviousProgram) {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    connection.execute("drop schema public cascade; create schema public").await.unwrap();
    let mut migrations = Migrator::new(std::path::Path::new("infra/migrations")).await.unwrap();
    migrations.migrations.to_mut().retain(|migration| migration.version <= PREVIOUS);
    migrations.run(&mut connection).await.unwrap();
    (database, PreviousProgram { connection })
}

pub async fn migrate(database: &TestDatabase) {
    let config = config(&[("DATABASE_URL", &database.url)]);
    let database = Database::from_config(&config.stores.database).unwrap();
    database.migrate().await.unwrap();
    database.check().await.unwrap();
}

fn ann() -> UserId {
    UserId::parse("user_id", "ann").unwrap()
}

fn run(session: &str, request: &str) -> NewRun {
    NewRun { history_budget: Some(1_000), ..new_run(ann(), session, request) }
}

#[tokio::test]
async fn migrated_rows_of_previous_program_are_used() {
    let (database, mut previous) = database_of_previous_program().await;
    for number in 0..5 {
        previous.talk("s", &format!("r{number}")).await;
    }
    assert_eq!(previous.admit("t", "running", b"token").await, "started");
    migrate(&database).await;

    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    assert!(matches!(store.admit(&run("s", "r4")).await.unwrap(), AdmitOutcome::Known { .. }));
    assert!(matches!(store.admit(&run("t", "new")).await.unwrap(), AdmitOutcome::Busy { .. }));
    let AdmitOutcome::Started { lease, history, .. } = store.admit(&run("s", "r5")).await.unwrap() else {
        panic!("not started")
    };
    let history = history.unwrap();
    assert_eq!(history.turns.iter().map(|turn| turn.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(history, store.load_history(&ann(), &session("s"), 1_000).await.unwrap());
    store.finish(&lease.take(), &RunEnding { turn: Some(turn(b"new")), ..ending(1) }).await.unwrap();
    let turns = store.list_turns(&ann(), &session("s"), None, 10).await.unwrap();
    assert_eq!((turns.len(), turns[0].seq, &*turns[0].record), (6, 6, &b"new"[..]));
    let replay = store.follow(&ann(), &request("r0"), &FramePage::after(0)).await.unwrap().unwrap();
    assert_eq!((replay.state, replay.chunks.len()), (RunState::Ended, 2));
    assert_eq!(store.delete_sessions(&ann(), &SessionSelection::All).await.unwrap(), 1);
    let mut direct = database.connect().await;
    let left =
        "select count(*) from (select from turns union all select from run_chunks union all select from runs) rows";
    let left: i64 = sqlx::query_scalar(AssertSqlSafe(left)).fetch_one(&mut direct).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn previous_program_runs_beside_this_one() {
    let (database, mut previous) = database_of_previous_program().await;
    migrate(&database).await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    for round in 0..3 {
        previous.talk("s", &format!("old{round}")).await;
        let lease = started(store.admit(&run("s", &format!("new{round}"))).await.unwrap());
        assert_eq!(previous.admit("s", "other", b"token").await, "busy");
        assert_eq!(previous.admit("s", &format!("new{round}"), b"token").await, "known");
        store.finish(&lease, &RunEnding { turn: Some(turn(b"new")), tokens: 7, ..ending(1) }).await.unwrap();
    }
    assert_eq!(previous.admit("s", "old3", b"token").await, "started");
    assert!(matches!(store.admit(&run("s", "new3")).await.unwrap(), AdmitOutcome::Busy { .. }));
    assert_eq!(store.cancel(&ann(), &session("s"), None).await.unwrap(), Some(request("old3")));
    assert_eq!(previous.finish("s", "old3", b"token").await, 1);
    let history = store.load_history(&ann(), &session("s"), 1_000).await.unwrap();
    assert_eq!(history.turns.iter().map(|turn| turn.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    let mut direct = database.connect().await;
    let used = "select tokens from user_usage where user_id = 'ann' and requests = 7";
    let used: i64 = sqlx::query_scalar(used).persistent(false).fetch_one(&mut direct).await.unwrap();
    assert_eq!(used, 49);

    // Each program notices that the other one has taken a session over.
    assert_eq!(previous.admit("s", "dead", b"dead").await, "started");
    let expire = "update runs set lease_until = now() - interval '1 s' where ended_at is null";
    direct.execute(expire).await.unwrap();
    let lease = started(store.admit(&run("s", "taken")).await.unwrap());
    assert_eq!(previous.finish("s", "dead", b"dead").await, 0);
    direct.execute(expire).await.unwrap();
    assert_eq!(previous.admit("s", "back", b"back").await, "started");
    let lost = store.finish(&lease, &RunEnding { turn: Some(turn(b"never")), ..ending(1) }).await;
    assert!(matches!(lost, Err(StoreError::LeaseLost)), "{lost:?}");
}
