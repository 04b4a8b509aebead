//! Transactions that lock rows of the same user never wait for each other in a circle. Each pair is stopped at each row that one of
//! them may lock, one after the other, and then let go.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use agent_service::{
    conversation::{FrameChunk, NewTurn, RunEnding, RunOutcome, SessionSelection, StoreError},
    erasure::erase_user,
    identity::{RequestId, UserId},
    learning::RuleExtractor,
    memory::{Metadata, NewMemory},
    retention::RetentionSweep,
};
use jiff::{Timestamp, ToSpan as _};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::task::JoinHandle;

use crate::harness::{Harness, TEST_TIMEOUT, new_run, process_queue, record, session, started, user};

const WAITING: &str = "
    select count(distinct locks.pid) from pg_locks locks join pg_stat_activity activity on activity.pid = locks.pid
    where not locks.granted and activity.datname = current_database()";

/// Rows of a user: old ones, which the sweep and the worker delete, and new ones.
const ROWS: &str = "
    insert into user_usage (user_id) values ('USER') on conflict do nothing;
    insert into sessions (user_id, session_id, title, turns, created_at, updated_at)
    select 'USER', 's' || number, 'Title', 1, now(), now() from generate_series(1, 3) number on conflict do nothing;
    insert into runs (user_id, request_id, session_id, fingerprint, head, lease_until, holds_session, started_at, ended_at)
    select 'USER', 'r' || number, 's' || number, '', '', now(), false, now() - interval '9 days', now() - interval '9 days'
    from generate_series(1, 3) number on conflict do nothing;
    insert into pending_turns (user_id, session_id, turn_id, state, created_at)
    select 'USER', 's' || number, 't', '', now() - interval '2 days' from generate_series(1, 3) number on conflict do nothing;
    insert into learning_jobs (user_id, session_id, turn, failed_at)
    select 'USER', 's' || number, number, case when number < 3 then now() - interval '91 days' end
    from generate_series(1, 4) number on conflict do nothing;
    insert into memory_users (user_id, tokenizer) values ('USER', 1) on conflict do nothing;
    insert into learned_turns (user_id, session_id, request_id, learned_at)
    select 'USER', 's' || number, 'r' || number, now() - interval '31 days' from generate_series(1, 3) number on conflict do nothing;
    insert into forgotten_users (user_digest, forgotten_at)
    values (sha256(convert_to('USER', 'UTF8')), now() - interval '8 days')
    on conflict (user_digest) do update set forgotten_at = excluded.forgotten_at";

/// As the sweep leaves users who were absent for a week.
const WITHOUT_USAGE: &str = "; delete from user_usage where user_id = 'USER'";

/// Rows at which a transaction is stopped.
const BLOCKED: [&str; 10] = [
    "memory_users where user_id = 'USER'",
    "user_usage where user_id = 'USER'",
    "forgotten_users where user_digest = sha256(convert_to('USER', 'UTF8'))",
    "learned_turns where user_id = 'USER' and session_id = 's2'",
    "learning_jobs where user_id = 'USER' and turn = 1",
    "learning_jobs where user_id = 'USER' and turn = 3",
    "runs where user_id = 'USER' and request_id = 'r2'",
    "pending_turns where user_id = 'USER' and session_id = 's2'",
    "sessions where user_id = 'USER' and session_id = 's2'",
    "retention_queue where owner_id = 'USER'",
];

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Erase,
    DeleteSessions,
    Learn,
    Turn,
    Write,
    Sweep,
}

impl Operation {
    /// As another process does it.
    fn of(self, harness: &Harness, user: &UserId) -> Work {
        let (other, user) = (harness.other_process(), user.clone());
        match self {
            Self::Erase => Box::pin(async move {
                erase_user(&other.memory, &user).await.unwrap();
            }),
            Self::DeleteSessions => Box::pin(async move {
                other.store.delete_sessions(&user, &SessionSelection::All).await.unwrap();
            }),
            Self::Learn => {
                let worker = harness.worker(Arc::new(RuleExtractor));
                Box::pin(async move {
                    process_queue(&worker).await;
                })
            }
            Self::Turn => Box::pin(async move {
                let admitted = other.store.admit(&new_run(&user, &session("s2"), &RequestId::generate())).await;
                let ended = other.store.finish(&started(admitted.unwrap()), &ending()).await;
                assert!(matches!(ended, Ok(()) | Err(StoreError::LeaseLost)), "{ended:?}");
            }),
            Self::Write => Box::pin(async move {
                other.memory.add(&user, vec![note()]).await.unwrap();
            }),
            Self::Sweep => {
                let sweep = RetentionSweep::new(&other.roles);
                let later = Timestamp::now() + (24 * 100).hours();
                Box::pin(async move {
                    sweep.sweep_at(later).await.unwrap();
                })
            }
        }
    }
}

fn note() -> NewMemory {
    NewMemory {
        id: None,
        content: "a note".into(),
        source_type: "note".into(),
        tags: Vec::new(),
        created_at: None,
        metadata: Metadata::new(),
        supersedes: Vec::new(),
    }
}

fn ending() -> RunEnding {
    let record = record("I like tea.", "Noted.");
    let turn = NewTurn {
        record: record.to_bytes().unwrap(),
        tokens: 1,
        is_complete: true,
        provisional_title: "Tea".to_owned(),
        may_be_learned: true,
    };
    RunEnding {
        chunk: FrameChunk { first: 1, count: 1, frames: b"frame".to_vec() },
        outcome: RunOutcome::Final,
        turn: Some(turn),
        tokens: 1,
        resumed_turn: None,
        profile: None,
    }
}

/// Until the task has ended, or one more transaction waits for a lock than before.
async fn until_blocked(watching: &mut PgConnection, task: &JoinHandle<()>, waiting: i64) {
    let blocked = async {
        while !task.is_finished() {
            let now: i64 = sqlx::query_scalar(WAITING).persistent(false).fetch_one(&mut *watching).await.unwrap();
            if now > waiting {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, blocked).await.expect("a transaction neither ends nor waits");
}

async fn clear(direct: &mut PgConnection) {
    for table in ["sessions", "runs", "pending_turns", "learning_jobs", "learned_turns", "memories", "memory_users"] {
        direct.execute(AssertSqlSafe(format!("delete from {table}"))).await.unwrap();
    }
}

async fn assert_no_deadlock(harness: &Harness, rows: &str, first: (Operation, &UserId), second: (Operation, &UserId)) {
    let (mut blocking, mut watching) = (harness.owner_connection().await, harness.owner_connection().await);
    for blocked in BLOCKED {
        for user in [first.1, second.1] {
            blocking.execute(AssertSqlSafe(rows.replace("USER", user.as_str()))).await.unwrap();
        }
        let mut blocker = blocking.begin().await.unwrap();
        // Nobody else has a lock yet.
        let lock = format!("select from {} for update", blocked.replace("USER", first.1.as_str()));
        blocker.execute(AssertSqlSafe(lock)).await.unwrap();
        let tasks = [first, second].map(|(operation, user)| operation.of(harness, user));
        let mut running = Vec::new();
        for work in tasks {
            let task = tokio::spawn(work);
            let waiting = running.iter().filter(|task: &&JoinHandle<()>| !task.is_finished()).count();
            until_blocked(&mut watching, &task, i64::try_from(waiting).unwrap()).await;
            running.push(task);
        }
        blocker.rollback().await.unwrap();
        for task in running {
            let ended = tokio::time::timeout(TEST_TIMEOUT, task).await;
            ended.unwrap_or_else(|_| panic!("{first:?} and {second:?} wait for each other after {blocked}")).unwrap();
        }
        clear(&mut blocking).await;
    }
}

async fn harness() -> Harness {
    let harness = Harness::new().await;
    // The embedded Postgres does not look for deadlocks: there the transactions wait until the test gives up.
    let detect =
        "do $$ begin execute format('alter database %I set deadlock_timeout = ''20ms''', current_database()); end $$";
    harness.owner_connection().await.execute(detect).await.unwrap();
    harness
}

async fn assert_no_deadlock_of(pairs: &[(Operation, Operation)]) {
    let (harness, ann) = (harness().await, user("ann"));
    for (first, second) in pairs {
        for (first, second) in [(*first, *second), (*second, *first)] {
            for rows in [ROWS.to_owned(), format!("{ROWS}{WITHOUT_USAGE}")] {
                assert_no_deadlock(&harness, &rows, (first, &ann), (second, &ann)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_and_other_transactions_do_not_deadlock() {
    use Operation::{DeleteSessions, Erase, Learn, Sweep, Turn, Write};
    assert_no_deadlock_of(&[(Erase, DeleteSessions), (Erase, Learn), (Erase, Turn), (Erase, Write), (Erase, Sweep)])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_of_sessions_and_other_transactions_do_not_deadlock() {
    use Operation::{DeleteSessions, Learn, Sweep, Turn};
    assert_no_deadlock_of(&[(DeleteSessions, Learn), (DeleteSessions, Turn), (DeleteSessions, Sweep), (Sweep, Learn)])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sweeps_and_turns_do_not_deadlock() {
    use Operation::{Sweep, Turn, Write};
    assert_no_deadlock_of(&[(Sweep, Sweep), (Sweep, Turn), (Sweep, Write)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn erasures_of_two_users_do_not_deadlock() {
    let (harness, ann, bob) = (harness().await, user("ann"), user("bob"));
    let mut direct = harness.owner_connection().await;
    for _ in 0..3 {
        for user in [&ann, &bob] {
            direct.execute(AssertSqlSafe(ROWS.replace("USER", user.as_str()))).await.unwrap();
        }
        let mut watching = harness.owner_connection().await;
        let mut blocker = direct.begin().await.unwrap();
        // Both have marked their own erasure, and then delete old marks of all users.
        blocker.execute("select from learned_turns where session_id = 's2' for update").await.unwrap();
        let mut running = Vec::new();
        for user in [&ann, &bob] {
            let task = tokio::spawn(Operation::Erase.of(&harness, user));
            until_blocked(&mut watching, &task, i64::try_from(running.len()).unwrap()).await;
            running.push(task);
        }
        blocker.rollback().await.unwrap();
        for task in running {
            tokio::time::timeout(TEST_TIMEOUT, task).await.expect("two erasures wait for each other").unwrap();
        }
        clear(&mut direct).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_of_a_user_without_a_row_keep_turns_waiting() {
    let (harness, ann) = (harness().await, user("ann"));
    let (mut blocking, mut watching) = (harness.owner_connection().await, harness.owner_connection().await);
    let rows = format!("{ROWS}{WITHOUT_USAGE}").replace("USER", "ann");
    for operation in [Operation::Erase, Operation::DeleteSessions] {
        blocking.execute(AssertSqlSafe(rows.as_str())).await.unwrap();
        let mut blocker = blocking.begin().await.unwrap();
        blocker.execute("select from pending_turns where session_id = 's2' for update").await.unwrap();
        let mut running = Vec::new();
        for (waiting, operation) in [operation, Operation::Turn].into_iter().enumerate() {
            let task = tokio::spawn(operation.of(&harness, &ann));
            until_blocked(&mut watching, &task, i64::try_from(waiting).unwrap()).await;
            assert!(!task.is_finished(), "{operation:?} does not wait");
            running.push(task);
        }
        blocker.rollback().await.unwrap();
        for task in running {
            tokio::time::timeout(TEST_TIMEOUT, task).await.expect("it waits for ever").unwrap();
        }
        clear(&mut blocking).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_of_a_user_without_a_row_leaves_none() {
    let (harness, ann) = (harness().await, user("ann"));
    let mut direct = harness.owner_connection().await;
    let rows = format!("{ROWS}{WITHOUT_USAGE}; delete from runs").replace("USER", "ann");
    direct.execute(AssertSqlSafe(rows.as_str())).await.unwrap();
    assert_eq!(harness.count_rows("retention_queue where owner_id = 'ann'").await, 1);
    harness.store.delete_sessions(&ann, &SessionSelection::Listed(vec![session("s1")])).await.unwrap();
    assert_eq!(harness.count_rows("user_usage").await, 0);
    assert_eq!(harness.count_rows("retention_queue").await, 1, "marks of learned turns are left");
    erase_user(&harness.memory, &ann).await.unwrap();
    for table in ["user_usage", "retention_queue", "memory_users", "learned_turns", "learning_jobs", "pending_turns"] {
        assert_eq!(harness.count_rows(table).await, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_waits_for_one_of_the_previous_program() {
    let (harness, ann) = (harness().await, user("ann"));
    let (mut previous, mut watching) = (harness.owner_connection().await, harness.owner_connection().await);
    previous.execute(AssertSqlSafe(ROWS.replace("USER", "ann"))).await.unwrap();
    let mut claim = previous.begin().await.unwrap();
    claim.execute("select pg_advisory_xact_lock(hashtextextended('learning ' || 'ann', 0))").await.unwrap();
    let task = tokio::spawn(Operation::Learn.of(&harness, &ann));
    until_blocked(&mut watching, &task, 0).await;
    assert!(!task.is_finished(), "two workers claim at once");
    claim.rollback().await.unwrap();
    tokio::time::timeout(TEST_TIMEOUT, task).await.expect("the claim waits for ever").unwrap();
}
