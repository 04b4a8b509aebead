//! Counts of a kept turn in Postgres. No clock: it would measure the machine.

use agent_service::{
    conversation::{
        AdmitOutcome, ConversationStore as _, FrameChunk, FramePage, NewRun, NewTurn, PostgresConversations, RunEnding,
        SessionSelection, UserQuotas, WithDeadlines,
    },
    identity::UserId,
    postgres::{Database, RolePool},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions};

use crate::{
    fixture::{ADMIT_TIMEOUT, MAX_TURN, ending, new_run, session, started, turn},
    postgres::{TestDatabase, config},
};

/// Of an admission that reads a profile and the history, and of an end that stores frames, the turn and its job.
const MAX_BUFFERS: i64 = 150;
const QUOTAS: UserQuotas =
    UserQuotas { requests_per_minute: 1_000_000, concurrent_streams: 16, tokens_per_day: 1_000_000_000 };

#[derive(Debug, Clone, Copy)]
struct Counts {
    transactions: i64,
    buffers: i64,
}

struct Measured {
    database: TestDatabase,
    pool: RolePool,
    store: WithDeadlines<PostgresConversations>,
    user: UserId,
    /// In another database, so that reading the counts does not change them.
    beside: PgConnection,
}

impl Measured {
    async fn create() -> Self {
        let database = TestDatabase::create().await;
        let pools = Database::from_config(&config(&[("DATABASE_URL", &database.url)]).stores.database).unwrap();
        // One connection, whose counts can be flushed.
        let pool = pools.pools_with_limit(1).conversations;
        let store = PostgresConversations::with_deadlines(&pool, MAX_TURN, ADMIT_TIMEOUT);
        let options: PgConnectOptions = database.url.parse().unwrap();
        let beside = PgConnection::connect_with(&options.database("postgres")).await.unwrap();
        let user = UserId::parse("user_id", "ann").unwrap();
        Self { database, pool, store, user, beside }
    }

    /// Gives the user that many ended turns of the last days, ten a session.
    async fn grow(&self, turns: u32) {
        self.grow_more(0, turns).await;
    }

    async fn grow_more(&self, from: u32, to: u32) {
        let mut direct = self.database.connect().await;
        let grown = format!(
            "begin;
             set local synchronous_commit = off;
             insert into sessions (user_id, session_id, title, turns, created_at, updated_at)
             select 'ann', 'old' || n, 'Title', 10, moment, moment
             from generate_series({from} / 10 + 1, {to} / 10) n, lateral (select now() - make_interval(secs => 100000 + n) as moment) t;
             insert into turns (user_id, session_id, seq, request_id, record, tokens, is_complete, created_at)
             select 'ann', 'old' || n, seq, 'old' || n || '-' || seq, sha512(n::text::bytea), 10, true, now()
             from generate_series({from} / 10 + 1, {to} / 10) n, generate_series(1, 10) seq;
             insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session,
                               started_at, ended_at)
             select user_id, request_id, session_id, sha256(request_id::bytea), sha512(request_id::bytea), '\\x00',
                    moment, false, moment, moment
             from turns, lateral (select now() - make_interval(secs => 100000 + seq) as moment) t
             where request_id like 'old%' and seq <= 10
             on conflict do nothing;
             insert into run_chunks (user_id, request_id, first_frame, frame_count, frames)
             select user_id, request_id, 1, 1, sha512(request_id::bytea) from turns where request_id like 'old%'
             on conflict do nothing;
             commit"
        );
        direct.execute(AssertSqlSafe(grown)).await.unwrap();
    }

    async fn session_costs(&mut self, number: u32) -> i64 {
        let id = session(&format!("old{number}"));
        let before = self.counts().await;
        assert_eq!(self.store.load_history(&self.user, &id, 6_000).await.unwrap().turns.len(), 10);
        assert_eq!(self.store.list_sessions(&self.user, 5, None).await.unwrap().len(), 5);
        assert_eq!(self.store.list_turns(&self.user, &id, None, 5).await.unwrap().len(), 5);
        let listed = SessionSelection::Listed(vec![id]);
        assert_eq!(self.store.delete_sessions(&self.user, &listed).await.unwrap(), 1);
        self.counts().await.buffers - before.buffers
    }

    async fn counts(&mut self) -> Counts {
        // The counts of a transaction are published when the next one of its connection ends.
        let mut transaction = self.pool.begin(&self.user).await.unwrap();
        transaction.execute("select pg_stat_force_next_flush()").await.unwrap();
        transaction.commit().await.unwrap();
        drop(self.pool.begin(&self.user).await.unwrap());
        let read = "select xact_commit, blks_hit + blks_read as buffers from pg_stat_database where datname = $1";
        let name = self.database.url.parse::<PgConnectOptions>().unwrap();
        let row =
            sqlx::query(read).bind(name.get_database()).persistent(false).fetch_one(&mut self.beside).await.unwrap();
        Counts { transactions: row.get("xact_commit"), buffers: row.get("buffers") }
    }

    async fn talk(&self, session: &str, request: &str) {
        let run = new_run(self.user.clone(), session, request);
        let lease = started(
            self.store.admit(&NewRun { quotas: Some(QUOTAS), history_budget: Some(6_000), ..run }).await.unwrap(),
        );
        let frames = request.repeat(1_000).into_bytes();
        let chunk = FrameChunk { first: 1, count: 100, frames };
        let turn = NewTurn { tokens: 300, ..turn(&[7; 1_500]) };
        let end = RunEnding { chunk, turn: Some(turn), tokens: 300, ..ending(1) };
        self.store.finish(&lease, &end).await.unwrap();
    }

    /// Of one turn, in the mean of some; the least of several rounds, because autovacuum counts as well.
    async fn costs(&mut self, name: &str) -> Counts {
        const TURNS: i64 = 20;
        let mut least = Counts { transactions: i64::MAX, buffers: i64::MAX };
        for round in 0..5 {
            let before = self.counts().await;
            for number in 0..TURNS {
                self.talk(&format!("{name}-{round}-{}", number / 5), &format!("{name}-{round}-{number}")).await;
            }
            let after = self.counts().await;
            least.transactions = least.transactions.min((after.transactions - before.transactions) / TURNS);
            least.buffers = least.buffers.min((after.buffers - before.buffers) / TURNS);
        }
        least
    }
}

#[tokio::test]
async fn turn_costs_are_bounded_and_independent_of_earlier_turns() {
    let mut measured = Measured::create().await;
    // Opens the connection and fills its caches.
    measured.costs("warm").await;
    let few = measured.costs("few").await;
    measured.grow(5_000).await;
    let many = measured.costs("many").await;
    // Dead rows of live turns pile up as well, until autovacuum comes by.
    for number in 0..500 {
        measured.talk(&format!("live-{}", number / 50), &format!("live-{number}")).await;
    }
    let after_live_turns = measured.costs("live").await;
    println!("{few:?}, {many:?}, {after_live_turns:?}");
    for costs in [few, many, after_live_turns] {
        assert_eq!(costs.transactions, 2, "admission and end: {costs:?}");
        assert!(costs.buffers <= MAX_BUFFERS, "of {MAX_BUFFERS} buffers: {costs:?}");
        // A deeper index and the map of free space.
        assert!(costs.buffers <= few.buffers + 50, "it grows with the turns of the user: {few:?}, {costs:?}");
    }
}

/// Deletion of a session, listing and history touch what they need, and not all rows of the user.
#[tokio::test]
async fn session_calls_are_independent_of_other_sessions() {
    let mut measured = Measured::create().await;
    measured.grow(100).await;
    let (mut few, mut many) = (Vec::new(), Vec::new());
    measured.session_costs(1).await;
    for number in 2..5 {
        few.push(measured.session_costs(number).await);
    }
    measured.grow_more(100, 5_000).await;
    for number in 5..8 {
        many.push(measured.session_costs(number).await);
    }
    let least = |costs: &[i64]| costs.iter().copied().min().unwrap();
    let (few, many) = (least(&few), least(&many));
    println!("{few} buffers, {many}");
    assert!(many <= few + 60, "{few} buffers, with many sessions {many}");
}

/// Entries of ended runs stay in the index of live ones until a vacuum, which an open snapshot holds up.
#[tokio::test]
async fn heartbeats_and_followers_are_independent_of_ended_runs() {
    const CALLS: i64 = 20;
    let mut measured = Measured::create().await;
    let run = new_run(measured.user.clone(), "s", "live");
    let lease = started(measured.store.admit(&run).await.unwrap());
    let mut direct = measured.database.connect().await;
    direct.execute("alter table runs set (autovacuum_enabled = off)").await.unwrap();
    let mut reading = measured.database.connect().await;
    let mut snapshot = reading.begin().await.unwrap();
    snapshot.execute("set transaction isolation level repeatable read; select from runs").await.unwrap();
    let mut costs = Vec::new();
    for ended in [0, 5_000] {
        let end = format!(
            "insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session, started_at)
             select 'ann', 'ended' || n, 'ended', '', '', '\\x00', now(), false, now() from generate_series(1, {ended}) n;
             update runs set ended_at = now() where session_id = 'ended'"
        );
        direct.execute(AssertSqlSafe(end)).await.unwrap();
        for _ in 0..CALLS {
            measured.store.checkpoint(&lease, None).await.unwrap();
            measured.store.follow(&measured.user, &run.key.request, &FramePage::after(0)).await.unwrap().unwrap();
        }
        let before = measured.counts().await;
        for _ in 0..CALLS {
            measured.store.checkpoint(&lease, None).await.unwrap();
            measured.store.follow(&measured.user, &run.key.request, &FramePage::after(0)).await.unwrap().unwrap();
            measured.store.set_read(&lease, true).await.unwrap();
        }
        costs.push((measured.counts().await.buffers - before.buffers) / CALLS);
    }
    println!("{costs:?}");
    assert!(costs[1] <= costs[0] + 50, "buffers without and with ended runs: {costs:?}");
    snapshot.rollback().await.unwrap();
}

/// Records of megabytes would be read under the lock of the user, for whom all other admissions wait.
#[tokio::test]
async fn admission_leaves_a_huge_history_to_the_turn() {
    let measured = Measured::create().await;
    for (number, size, is_read) in [(1, 100_000, true), (2, 100_000, true), (3, 100_000, false), (4, 3_000_000, false)]
    {
        // Does not compress.
        let mut state = 1_u32;
        let record: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24).try_into().unwrap()
        })
        .take(size)
        .collect();
        let run = new_run(measured.user.clone(), "s", &format!("r{number}"));
        let lease = started(measured.store.admit(&run).await.unwrap());
        let end = RunEnding { turn: Some(turn(&record)), ..ending(1) };
        measured.store.finish(&lease, &end).await.unwrap();
        let next = NewRun { history_budget: Some(6_000), ..new_run(measured.user.clone(), "s", &format!("n{number}")) };
        let admitted = measured.store.admit(&next).await.unwrap();
        let AdmitOutcome::Started { lease, history, .. } = admitted else { panic!("{admitted:?}") };
        assert_eq!(history.is_some(), is_read, "after turn {number}");
        let loaded = measured.store.load_history(&measured.user, &next.key.session, 6_000).await.unwrap();
        assert_eq!(loaded.turns.len(), number);
        assert_eq!(history.unwrap_or_else(|| loaded.clone()), loaded);
        measured.store.revoke_admission(lease.lease()).await.unwrap();
    }
}
