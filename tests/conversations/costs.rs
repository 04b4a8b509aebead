//! Counts of a kept turn in Postgres. No clock: it would measure the machine.

use std::time::Duration;

use agent_service::{
    conversation::{ConversationStore as _, PostgresConversations, RunEnding, WithDeadlines},
    identity::UserId,
    postgres::{Database, RolePool},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions};

use crate::{
    fixture::{ADMIT_TIMEOUT, MAX_TURN, ending, new_run, started, turn},
    postgres::{TestDatabase, config},
};

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
        let mut direct = self.database.connect().await;
        let grown = format!(
            "begin;
             set local synchronous_commit = off;
             insert into sessions (user_id, session_id, title, turns, created_at, updated_at)
             select 'ann', 'old' || n, 'Title', 10, moment, moment
             from generate_series(1, {turns} / 10) n, lateral (select now() - make_interval(secs => 100000 + n) as moment) t;
             insert into turns (user_id, session_id, seq, request_id, record, tokens, is_complete, created_at)
             select 'ann', 'old' || n, seq, 'old' || n || '-' || seq, sha512(n::text::bytea), 10, true, now()
             from generate_series(1, {turns} / 10) n, generate_series(1, 10) seq;
             insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session,
                               started_at, ended_at)
             select user_id, request_id, session_id, sha256(request_id::bytea), sha512(request_id::bytea), '\\x00',
                    moment, false, moment, moment
             from turns, lateral (select now() - make_interval(secs => 100000 + seq) as moment) t
             where request_id like 'old%';
             insert into run_chunks (user_id, request_id, first_frame, frame_count, frames)
             select user_id, request_id, 1, 1, sha512(request_id::bytea) from turns where request_id like 'old%';
             commit"
        );
        direct.execute(AssertSqlSafe(grown)).await.unwrap();
        direct.execute("vacuum analyze").await.unwrap();
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
        let lease = started(self.store.admit(&new_run(self.user.clone(), session, request)).await.unwrap());
        let end = RunEnding { turn: Some(turn(&[7; 1_500])), tokens: 40, ..ending(1) };
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
async fn kept_turn_costs_the_same_however_many_turns_its_user_has() {
    let mut measured = Measured::create().await;
    // Opens the connection and fills its caches.
    measured.costs("warm").await;
    let mut all = Vec::new();
    for turns in [0, 700, 5_000, 50_000] {
        if turns > 0 {
            measured.grow(turns).await;
        }
        let costs = measured.costs(&format!("at{turns}")).await;
        println!("{turns} turns: {costs:?}");
        all.push(costs);
        let mut direct = measured.database.connect().await;
        direct
            .execute("delete from sessions where session_id like 'old%'; delete from runs where request_id like 'old%'")
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::ZERO).await;
    for costs in all {
        assert!(costs.transactions <= 2 && costs.buffers <= 150, "{costs:?}");
    }
}
