//! Deletion in Postgres: of old runs by the store itself, and of sessions in batches.

use std::time::Duration;

use agent_service::{
    conversation::{ConversationStore, RunEnding, SessionSelection},
    identity::UserId,
};
use sqlx::{Executor as _, PgConnection};

use crate::{
    fixture::{ADMIT_TIMEOUT, ending, new_run, postgres_store, session, started, turn},
    postgres::TestDatabase,
};

const HANG_TIMEOUT: Duration = Duration::from_secs(60);

async fn count_runs(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from runs").persistent(false).fetch_one(connection).await.unwrap()
}

async fn talk(store: &impl ConversationStore, session: &str, request: &str) {
    let ann = UserId::parse("user_id", "ann").unwrap();
    let lease = started(store.admit(&new_run(ann, session, request)).await.unwrap());
    store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), tokens: 7, ..ending(1) }).await.unwrap();
}

#[tokio::test]
async fn old_runs_are_deleted_although_an_earlier_deletion_failed() {
    const AGE: &str = "update runs set ended_at = ended_at - interval '9 days'";
    let database = TestDatabase::create().await;
    let mut direct = database.connect().await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    for number in 0..3 {
        talk(&store, "s", &format!("old{number}")).await;
    }
    direct.execute(AGE).await.unwrap();
    // Every deletion fails.
    direct
        .execute(
            "create function refuse() returns trigger language plpgsql as $$ begin raise 'refused'; end $$;
             create trigger refuse before delete on runs for each row execute function refuse()",
        )
        .await
        .unwrap();
    talk(&store, "s", "r1").await;
    drop(store);
    assert_eq!(count_runs(&mut direct).await, 4);
    direct.execute("drop trigger refuse on runs").await.unwrap();

    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    talk(&store, "s", "r2").await;
    let deleted = async {
        while count_runs(&mut direct).await > 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANG_TIMEOUT, deleted).await.expect("old runs are left");
}

#[tokio::test]
async fn deletion_of_many_sessions_leaves_nothing() {
    let database = TestDatabase::create().await;
    let store = postgres_store(&database.service_url(), ADMIT_TIMEOUT);
    let ann = UserId::parse("user_id", "ann").unwrap();
    for number in 0..25 {
        talk(&store, &format!("s{number}"), &format!("r{number}")).await;
    }
    // Its session exists once it ends.
    drop(started(store.admit(&new_run(ann.clone(), "t", "live")).await.unwrap()));
    let listed = (0..12).map(|number| session(&format!("s{number}"))).collect();
    assert_eq!(store.delete_sessions(&ann, &SessionSelection::Listed(listed)).await.unwrap(), 12);
    assert_eq!(store.delete_sessions(&ann, &SessionSelection::All).await.unwrap(), 13);
    let mut direct = database.connect().await;
    assert_eq!(count_runs(&mut direct).await, 0);
}
