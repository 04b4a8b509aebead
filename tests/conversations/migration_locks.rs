//! Migrations run beside the turns of the previous program: none of them fails, and turns do not wait for long.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    postgres::TestDatabase,
    previous_program::{database_of_previous_program, migrate},
};

const HANG_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK_USER: &str = "select from user_usage where user_id = 'ann' for update";
/// Waiting for a lock of a table, as migrations do.
const IS_WAITING: &str = "select count(*) > 0 from pg_locks l join pg_database d on d.oid = l.database
                          where not l.granted and l.locktype = 'relation' and d.datname = current_database()";

async fn until(connection: &mut PgConnection, is_reached: &'static str) {
    let reached = async {
        while !sqlx::query_scalar::<_, bool>(is_reached).persistent(false).fetch_one(&mut *connection).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANG_TIMEOUT, reached).await.expect(is_reached);
}

/// A transaction that has executed `first` when the migration begins, and then executes `rest`.
async fn migrate_during(database: &TestDatabase, first: &str, rest: &str) {
    let (mut direct, mut watching) = (database.connect().await, database.connect().await);
    let mut open = direct.begin().await.unwrap();
    open.execute(AssertSqlSafe(first)).await.unwrap();
    let end = async {
        until(&mut watching, IS_WAITING).await;
        open.execute(AssertSqlSafe(rest)).await.expect("a transaction of the previous program fails");
        open.commit().await.unwrap();
    };
    let both = async { tokio::join!(migrate(database), end) };
    tokio::time::timeout(HANG_TIMEOUT, both).await.expect("the migration waits for ever");
}

#[tokio::test]
async fn migration_waits_for_turns_and_neither_fails() {
    for (first, rest) in [
        // A turn that has read its run, and then ends it.
        (
            "select from user_usage where user_id = 'ann' for update; select from runs where user_id = 'ann'",
            "update runs set ended_at = now() where user_id = 'ann';
             insert into learning_jobs (user_id, session_id, turn) values ('ann', 's', 7)",
        ),
        // A deletion of sessions.
        (
            "select from user_usage where user_id = 'ann' for update; delete from learning_jobs where user_id = 'ann'",
            "delete from runs where user_id = 'ann'; delete from sessions where user_id = 'ann'",
        ),
        // A heartbeat, without the lock of the user.
        ("select from runs where user_id = 'ann'", "update runs set lease_until = now() where user_id = 'ann'"),
        // An erasure.
        ("delete from learning_jobs where user_id = 'ann'", "delete from pending_turns where user_id = 'ann'"),
        // A write of memories.
        (
            "insert into memory_users (user_id, tokenizer) values ('ann', 1)",
            "delete from memory_vectors where user_id = 'ann'",
        ),
    ] {
        let (database, mut previous) = database_of_previous_program().await;
        previous.talk("s", "r").await;
        migrate_during(&database, first, rest).await;
    }
}

/// The timers of the embedded Postgres do not fire, and it is migrated before turns begin.
#[tokio::test]
async fn migration_lets_turns_pass_while_a_reader_holds_its_tables() {
    if std::env::var_os("TEST_DATABASE_URL").is_none() {
        return;
    }
    let (database, mut previous) = database_of_previous_program().await;
    previous.talk("s", "r").await;
    let (mut reading, mut watching) = (database.connect().await, database.connect().await);
    let mut backup = reading.begin().await.unwrap();
    backup.execute("select from runs").await.unwrap();
    let turns = async {
        until(&mut watching, IS_WAITING).await;
        // Behind the lock of the migration, which gives up although the backup goes on.
        watching.execute(LOCK_USER).await.unwrap();
        previous.talk("s", "r2").await;
        backup.commit().await.unwrap();
    };
    let both = async { tokio::join!(migrate(&database), turns) };
    tokio::time::timeout(HANG_TIMEOUT, both).await.expect("a turn or the migration waits for ever");
}
