//! The retention sweep deletes what has expired, also of users who never come back. The clock is an argument of it.

use std::time::Duration;

use agent_service::{
    conversation::{ConversationStore, PostgresConversations, RunEnding, SessionSelection, WithDeadlines},
    identity::UserId,
    postgres::{Database, RolePools},
    retention::{RetentionSweep, SweptRows},
};
use jiff::{Timestamp, ToSpan as _};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    fixture::{ADMIT_TIMEOUT, ending, new_run, postgres_store, started, turn},
    postgres::{TestDatabase, config},
    previous_program::{database_of_previous_program, migrate},
};

const HANG_TIMEOUT: Duration = Duration::from_secs(60);

struct Fixture {
    store: WithDeadlines<PostgresConversations>,
    sweep: RetentionSweep,
    direct: PgConnection,
    roles: RolePools,
    database: TestDatabase,
}

impl Fixture {
    async fn on(database: TestDatabase) -> Self {
        let url = database.service_url();
        let roles = Database::from_config(&config(&[("DATABASE_URL", &url)]).stores.database).unwrap().pools();
        Self {
            store: postgres_store(&url, ADMIT_TIMEOUT),
            sweep: RetentionSweep::new(&roles),
            direct: database.connect().await,
            roles,
            database,
        }
    }

    async fn new() -> Self {
        Self::on(TestDatabase::create().await).await
    }

    async fn talk(&self, user: &str, session: &str, request: &str) {
        let lease = started(self.store.admit(&new_run(self::user(user), session, request)).await.unwrap());
        let end = RunEnding { turn: Some(turn(b"x")), tokens: 7, ..ending(1) };
        self.store.finish(&lease, &end).await.unwrap();
    }

    /// A turn that waits for a tool result.
    async fn ask(&self, user: &str, session: &str, request: &str) {
        let lease = started(self.store.admit(&new_run(self::user(user), session, request)).await.unwrap());
        self.store.store_pending_turn(&lease, b"state", &["call"]).await.unwrap();
        self.store.finish(&lease, &ending(1)).await.unwrap();
    }

    /// Rounds until no user is due.
    async fn sweep(&self, hours: i64) -> u64 {
        let mut rows = 0;
        loop {
            let round = self.sweep.sweep_at(Timestamp::now() + hours.hours());
            let swept = tokio::time::timeout(HANG_TIMEOUT, round).await.expect("the sweep waits").unwrap();
            rows += swept.rows;
            if !swept.is_partial {
                return rows;
            }
        }
    }

    async fn count(&mut self, table: &str) -> i64 {
        let count = format!("select count(*) from {table}");
        sqlx::query_scalar(AssertSqlSafe(count)).persistent(false).fetch_one(&mut self.direct).await.unwrap()
    }

    async fn counts<const N: usize>(&mut self, tables: [&str; N]) -> [i64; N] {
        let mut counts = [0; N];
        for (count, table) in counts.iter_mut().zip(tables) {
            *count = self.count(table).await;
        }
        counts
    }
}

fn user(id: &str) -> UserId {
    UserId::parse("user_id", id).unwrap()
}

const WEEK: i64 = 7 * 24;

#[tokio::test]
async fn expired_rows_of_absent_users_are_deleted() {
    let mut fixture = Fixture::new().await;
    for user in ["ann", "bob"] {
        fixture.talk(user, "s", "r1").await;
        fixture.ask(user, "t", "r2").await;
    }
    let lost = new_run(user("ann"), "u", "lost");
    drop(started(fixture.store.admit(&lost).await.unwrap()));
    let tables = ["runs", "run_chunks", "pending_turns", "pending_calls", "user_usage", "retention_queue"];
    assert_eq!(fixture.counts(tables).await, [5, 4, 2, 2, 2, 2]);
    assert_eq!(fixture.sweep(0).await, 0);
    assert_eq!(fixture.sweep(25).await, 2);
    assert_eq!(fixture.counts(tables).await, [5, 4, 0, 0, 2, 2]);
    assert_eq!(fixture.sweep(WEEK - 1).await, 0);
    assert_eq!(fixture.counts(tables).await, [5, 4, 0, 0, 2, 2]);
    fixture.sweep(WEEK + 25).await;
    assert_eq!(fixture.counts(tables).await, [0; 6]);
    // Sessions and turns stay until their user deletes them.
    assert_eq!(fixture.counts(["sessions", "turns"]).await, [2, 2]);
}

#[tokio::test]
async fn user_who_comes_back_is_swept_again() {
    let mut fixture = Fixture::new().await;
    for round in 0..2 {
        fixture.talk("ann", "s", &format!("r{round}")).await;
        assert_eq!(fixture.counts(["runs", "retention_queue"]).await, [1, 1]);
        fixture.sweep(WEEK + 25).await;
        assert_eq!(fixture.counts(["runs", "retention_queue", "user_usage"]).await, [0; 3]);
    }
    assert_eq!(fixture.store.delete_sessions(&user("ann"), &SessionSelection::All).await.unwrap(), 1);
}

#[tokio::test]
async fn many_expired_rows_are_deleted_in_bounded_transactions() {
    let mut fixture = Fixture::new().await;
    fixture.talk("ann", "s", "r").await;
    let many = "insert into runs (user_id, request_id, session_id, fingerprint, head, lease_until, holds_session, started_at, ended_at)
                select 'ann', 'old' || number, 's', '', '', now(), false, now(), now() - interval '8 days'
                from generate_series(1, 1000) number";
    fixture.direct.execute(many).await.unwrap();
    let bound = "create function refuse() returns trigger language plpgsql as $$ begin
                     if (select count(*) from gone) > 400 then raise 'too many rows'; end if;
                     return null;
                 end $$;
                 create trigger refuse after delete on runs referencing old table as gone
                 for each statement execute function refuse()";
    fixture.direct.execute(bound).await.unwrap();
    assert_eq!(fixture.sweep(25).await, 1_000);
    assert_eq!(fixture.counts(["runs", "run_chunks"]).await, [1, 1]);
}

#[tokio::test]
async fn rows_in_use_are_left_to_the_next_sweep() {
    let mut fixture = Fixture::new().await;
    for request in ["r1", "r2"] {
        fixture.talk("ann", "s", request).await;
    }
    let mut other = fixture.database.connect().await;
    let mut open = other.begin().await.unwrap();
    open.execute("select from runs where request_id = 'r1' for update").await.unwrap();
    assert_eq!(fixture.sweep(WEEK + 25).await, 1);
    open.rollback().await.unwrap();
    let mut open = other.begin().await.unwrap();
    open.execute("select from retention_queue for update").await.unwrap();
    assert_eq!(fixture.sweep(WEEK + 50).await, 0, "the user's row of the queue is locked");
    open.rollback().await.unwrap();
    fixture.sweep(WEEK + 50).await;
    assert_eq!(fixture.counts(["runs", "retention_queue"]).await, [0, 0]);
}

#[tokio::test]
async fn sweeps_of_several_processes_delete_each_row_once() {
    let mut fixture = Fixture::new().await;
    for number in 0..20 {
        fixture.talk(&format!("user-{number}"), "s", "r").await;
    }
    let now = Timestamp::now() + (WEEK + 25).hours();
    let sweeps = (0..4).map(|_| fixture.sweep.sweep_at(now));
    let swept = futures_util::future::join_all(sweeps).await;
    let rows: u64 = swept.into_iter().map(|swept: Result<SweptRows, _>| swept.unwrap().rows).sum();
    // A run and the use of quotas each.
    assert_eq!(rows, 40);
    assert_eq!(fixture.counts(["runs", "user_usage", "retention_queue"]).await, [0; 3]);
}

#[tokio::test]
async fn quotas_in_use_survive_the_sweep() {
    let mut fixture = Fixture::new().await;
    fixture.talk("ann", "s", "r").await;
    fixture.direct.execute("delete from runs; update retention_queue set due_at = now()").await.unwrap();
    fixture.sweep(0).await;
    assert_eq!(fixture.counts(["user_usage", "retention_queue"]).await, [1, 1]);
}

#[tokio::test]
async fn marks_and_failed_jobs_expire() {
    let mut fixture = Fixture::new().await;
    let rows = "insert into learned_turns (user_id, session_id, request_id) values ('ann', 's', 'r');
                insert into learning_jobs (user_id, session_id, turn, failed_at) values ('bob', 's', 1, now()), ('bob', 's', 2, null);
                insert into forgotten_users (user_digest, forgotten_at)
                values (sha256('carl'), now() - interval '8 days'), (sha256('dora'), now() - interval '6 days')";
    fixture.direct.execute(rows).await.unwrap();
    assert_eq!(fixture.sweep(0).await, 1);
    let tables = ["learned_turns", "learning_jobs", "forgotten_users", "retention_queue"];
    assert_eq!(fixture.counts(tables).await, [1, 2, 1, 1]);
    fixture.sweep(31 * 24).await;
    assert_eq!(fixture.counts(tables).await, [0, 2, 1, 0]);
    fixture.sweep(91 * 24).await;
    assert_eq!(fixture.counts(tables).await, [0, 1, 1, 0], "the job that has not failed stays");
}

#[tokio::test]
async fn user_whose_rows_cannot_be_deleted_is_postponed_and_stops_nobody() {
    let mut fixture = Fixture::new().await;
    for user in ["ann", "bob"] {
        fixture.talk(user, "s", "r").await;
    }
    let rows = "update retention_queue set due_at = now() - interval '1 hour' where owner_id = 'ann';
                delete from learning_jobs;
                insert into learning_jobs (user_id, session_id, turn, failed_at)
                values ('ann', 's', 1, now() - interval '91 days'), ('carl', 's', 1, now() - interval '91 days');
                create function refuse() returns trigger language plpgsql as $$ begin
                    if old.user_id = 'ann' then raise 'refused'; end if;
                    return old;
                end $$;
                create trigger refuse before delete on runs for each row execute function refuse();
                create trigger refuse before delete on learning_jobs for each row execute function refuse()";
    fixture.direct.execute(rows).await.unwrap();
    let now = Timestamp::now() + (WEEK + 25).hours();
    let error = fixture.sweep.sweep_at(now).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(fixture.counts(["runs", "retention_queue", "user_usage", "learning_jobs"]).await, [1; 4]);
    fixture.direct.execute("drop trigger refuse on learning_jobs").await.unwrap();
    // Postponed by a day: the next rounds begin with others.
    assert_eq!(fixture.sweep(WEEK + 48).await, 1, "the failed job of ann");
    assert_eq!(fixture.count("runs").await, 1);
    fixture.direct.execute("drop trigger refuse on runs").await.unwrap();
    fixture.sweep(WEEK + 50).await;
    assert_eq!(fixture.counts(["runs", "retention_queue", "user_usage", "learning_jobs"]).await, [0; 4]);
}

#[tokio::test]
async fn ids_that_no_user_can_have_do_not_fill_a_round() {
    let mut fixture = Fixture::new().await;
    fixture.talk("ann", "s", "r").await;
    let rows = "insert into retention_queue (owner_id, due_at)
                select 'no/user-' || number, '-infinity' from generate_series(1, 1200) number;
                delete from learning_jobs;
                insert into learning_jobs (user_id, session_id, turn, failed_at)
                select 'a/' || number, 's', 1, now() - interval '91 days' from generate_series(1, 300) number
                union all select 'ann', 's', 1, now() - interval '91 days'";
    fixture.direct.execute(rows).await.unwrap();
    let swept = fixture.sweep.sweep_at(Timestamp::now() + (WEEK + 25).hours()).await.unwrap();
    // The run, the use of quotas, and the failed job.
    assert_eq!(swept, SweptRows { rows: 3, is_partial: false });
    assert_eq!(fixture.counts(["runs", "retention_queue", "learning_jobs"]).await, [0, 1200, 300]);
}

#[tokio::test]
async fn round_that_can_do_nothing_asks_for_no_other() {
    let mut fixture = Fixture::new().await;
    let many = "insert into retention_queue (owner_id, due_at)
                select 'user-' || number, now() from generate_series(1, 600) number";
    fixture.direct.execute(many).await.unwrap();
    let mut other = fixture.database.connect().await;
    let mut open = other.begin().await.unwrap();
    open.execute("select from retention_queue for update").await.unwrap();
    let now = Timestamp::now() + 25.hours();
    assert_eq!(fixture.sweep.sweep_at(now).await.unwrap(), SweptRows { rows: 0, is_partial: false });
    open.rollback().await.unwrap();
    assert!(fixture.sweep.sweep_at(now).await.unwrap().is_partial);
    assert_eq!(fixture.count("retention_queue").await, 100);
}

#[tokio::test]
async fn sweep_goes_by_the_clock_of_the_database() {
    let mut fixture = Fixture::new().await;
    for user in ["ann", "bob"] {
        fixture.talk(user, "s", "r").await;
    }
    let rows = "update runs set ended_at = now() - interval '169 hours' where user_id = 'ann';
                update runs set ended_at = now() - interval '167 hours' where user_id = 'bob';
                update retention_queue set due_at = now()";
    fixture.direct.execute(rows).await.unwrap();
    assert_eq!(fixture.sweep.sweep().await.unwrap().rows, 1);
    assert_eq!(fixture.counts(["runs where user_id = 'ann'", "runs where user_id = 'bob'"]).await, [0, 1]);
}

#[tokio::test]
async fn users_of_an_older_store_are_swept() {
    let (database, mut previous) = database_of_previous_program().await;
    previous.talk("s", "r").await;
    migrate(&database).await;
    // The triggers fill the queue for the previous program, too.
    database.connect().await.execute("delete from retention_queue; delete from user_usage").await.unwrap();
    previous.talk("s", "r2").await;
    let mut fixture = Fixture::on(database).await;
    assert_eq!(fixture.counts(["runs", "retention_queue"]).await, [2, 1]);
    fixture.sweep(WEEK + 25).await;
    assert_eq!(fixture.counts(["runs", "run_chunks", "retention_queue"]).await, [0; 3]);
}

#[tokio::test]
async fn migration_queues_the_users_of_an_older_store() {
    let (database, mut previous) = database_of_previous_program().await;
    previous.talk("s", "r").await;
    let mut direct = database.connect().await;
    direct.execute("insert into memory_users (user_id, tokenizer) values ('bob', 1)").await.unwrap();
    migrate(&database).await;
    let users: Vec<String> =
        sqlx::query_scalar("select owner_id from retention_queue where due_at <= now() order by 1")
            .persistent(false)
            .fetch_all(&mut direct)
            .await
            .unwrap();
    assert_eq!(users, ["ann", "bob"]);
}

#[tokio::test]
async fn maintenance_role_sees_who_is_due_and_nothing_else() {
    let fixture = Fixture::new().await;
    fixture.talk("ann", "s", "r").await;
    for (statement, is_allowed) in [
        ("select owner_id, due_at from retention_queue", true),
        ("delete from retention_queue", false),
        ("update retention_queue set due_at = now()", false),
        ("select user_id from runs", false),
        ("delete from runs", false),
        ("select user_id from learned_turns", false),
    ] {
        let mut transaction = fixture.roles.maintenance.begin_without_user().await.unwrap();
        let done = sqlx::query(statement).persistent(false).fetch_all(&mut *transaction).await;
        assert_eq!(done.is_ok(), is_allowed, "{statement}: {done:?}");
    }
    let mut transaction = fixture.roles.service.begin(&user("bob")).await.unwrap();
    let seen = sqlx::query("select from retention_queue").persistent(false).fetch_all(&mut *transaction).await.unwrap();
    assert!(seen.is_empty(), "a user sees the row of another one");
}
