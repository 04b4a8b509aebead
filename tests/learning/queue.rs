//! The queue of extraction jobs and its workers.

use std::{sync::Arc, time::Duration};

use agent_service::{
    conversation::SessionSelection,
    learning::{ExtractionWorker, RuleExtractor, RuleSummarizer},
};
use sqlx::{PgConnection, Row as _};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, ScriptedModel, TEST_TIMEOUT, process_queue, record, session, user};

const ROME: &str = r#"{"facts": [{"kind": "place", "fact": "The user lives in Rome.", "quote": "I live in Rome"}]}"#;
const NOTHING: &str = r#"{"facts": []}"#;

/// The only job: attempts, whether it is locked, whether it failed for good, and the seconds until it is due.
async fn job(connection: &mut PgConnection) -> (i32, bool, bool, i64) {
    let job = "select attempts, coalesce(locked_until > now(), false) as locked, failed_at is not null as failed,
                      round(extract(epoch from due_at - now()))::bigint as wait from learning_jobs";
    let row = sqlx::query(job).persistent(false).fetch_one(connection).await.unwrap();
    (row.get("attempts"), row.get("locked"), row.get("failed"), row.get("wait"))
}

async fn wait_until(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, waited).await.unwrap_or_else(|_| panic!("timed out waiting until {condition}"));
}

/// A model whose answers wait for permits.
fn gated_model(answers: &[&str]) -> (Arc<ScriptedModel>, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let model = ScriptedModel { gate: Some(gate.clone()), ..ScriptedModel::default() };
    model.script(answers);
    (Arc::new(model), gate)
}

#[tokio::test]
async fn stored_turn_is_queued_and_processed_once() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    let worker = harness.worker(Arc::new(RuleExtractor));
    assert_eq!(process_queue(&worker).await, 0);
    harness.store_turn(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    assert_eq!(harness.count_rows("learning_jobs").await, 1);
    assert_eq!(process_queue(&worker).await, 1);
    assert_eq!((harness.count_rows("learning_jobs").await, harness.current_facts(&ann).await.len()), (0, 1));
    assert_eq!(harness.store.get_session(&ann, &s).await.unwrap().unwrap().title, "I live in Rome");
}

#[tokio::test]
async fn deleting_sessions_deletes_their_jobs() {
    let harness = Harness::new().await;
    let ann = user("ann");
    for name in ["a", "b", "c"] {
        harness.store_turn(&ann, &session(name), &record("I live in Rome.", "Noted.")).await;
    }
    harness.store.delete_sessions(&ann, &SessionSelection::Listed(vec![session("a")])).await.unwrap();
    assert_eq!(harness.count_rows("learning_jobs").await, 2);
    harness.store.delete_sessions(&ann, &SessionSelection::All).await.unwrap();
    assert_eq!(harness.count_rows("learning_jobs").await, 0);
}

/// More than one query of the queue visits.
#[tokio::test]
async fn jobs_of_many_users_are_processed_from_any_place_in_the_walk() {
    const USERS: usize = 30;
    let harness = Harness::new().await;
    let worker = harness.worker(Arc::new(RuleExtractor));
    for round in 0..2 {
        for number in 0..USERS {
            // The second walk begins behind the user of the first one.
            let s = session(&format!("s{round}"));
            harness.store_turn(&user(&format!("user{number}")), &s, &record("Hello.", "Hello.")).await;
        }
        assert_eq!(process_queue(&worker).await, USERS);
        assert_eq!((harness.count_rows("learning_jobs").await, process_queue(&worker).await), (0, 0));
        harness.store_turn(&user("user15"), &session("between"), &record("Hello.", "Hello.")).await;
        assert_eq!(process_queue(&worker).await, 1);
    }
}

#[tokio::test]
async fn job_of_deleted_turn_is_done() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    harness.store_turn(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    sqlx::query("delete from sessions").execute(&mut harness.owner_connection().await).await.unwrap();
    assert_eq!(process_queue(&harness.worker(Arc::new(RuleExtractor))).await, 1);
    assert_eq!((harness.count_rows("learning_jobs").await, harness.memories(&ann).await.len()), (0, 0));
}

#[tokio::test]
async fn failing_job_is_retried_with_backoff_and_fails_for_good() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    harness.store_turn(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let model = ScriptedModel::new(&["", "", "", "", "", ROME]);
    let worker = harness.worker(model.extractor());
    let mut connection = harness.owner_connection().await;
    for (attempt, wait) in [(1, 15), (2, 90), (3, 540), (4, 3240)] {
        assert_eq!(process_queue(&worker).await, 1);
        let (attempts, locked, failed, waits) = job(&mut connection).await;
        assert_eq!((attempts, locked, failed), (attempt, false, false));
        assert!((wait - 60..=wait).contains(&waits), "{waits}");
        assert_eq!(process_queue(&worker).await, 0, "the job is not due yet");
        harness.expire_retry_delays().await;
    }
    process_queue(&worker).await;
    let (attempts, locked, failed, _) = job(&mut connection).await;
    assert_eq!((attempts, locked, failed), (5, false, true));
    harness.expire_retry_delays().await;
    assert_eq!((process_queue(&worker).await, model.request_count()), (0, 5));
    // The statement of the runbook in docs/how-to/troubleshoot.md.
    let again = "update learning_jobs set failed_at = null, attempts = 0, due_at = now() where failed_at is not null";
    sqlx::query(again).execute(&mut connection).await.unwrap();
    process_queue(&worker).await;
    assert_eq!((harness.count_rows("learning_jobs").await, harness.current_facts(&ann).await.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_process_one_job_of_a_user_at_a_time() {
    let harness = Harness::new().await;
    for number in 0..4 {
        for name in ["ann", "bob"] {
            let s = session(&format!("s{number}"));
            harness.store_turn(&user(name), &s, &record(&format!("I live in Rome {number}."), "Noted.")).await;
        }
    }
    let (model, gate) = gated_model(&[NOTHING; 8]);
    let processes = [harness.worker(model.extractor()), harness.worker(model.extractor())];
    let (_ready, is_ready) = watch::channel(true);
    let stop = CancellationToken::new();
    let both = futures_util::future::join_all(processes.iter().map(|one| one.run(is_ready.clone(), stop.clone())));
    let watched = async {
        for done in 0..4 {
            // The model is gated, so the locked jobs are those under way.
            wait_until("a job of each user is under way", async || model.request_count() == 2 * (done + 1)).await;
            let locked = "learning_jobs where locked_until > now()";
            assert_eq!(harness.count_rows(locked).await, 2);
            assert_eq!(harness.count_rows(&format!("(select distinct user_id from {locked})")).await, 2);
            gate.add_permits(2);
        }
        wait_until("the queue is empty", async || harness.count_rows("learning_jobs").await == 0).await;
        stop.cancel();
    };
    tokio::join!(both, watched);
    assert_eq!((model.request_count(), harness.count_rows("learned_turns").await), (8, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_with_expired_lock_cannot_settle_its_job() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    harness.store_turn(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let oslo = ROME.replace("lives in Rome", "has a flat in Rome");
    let (slow, gate) = gated_model(&[&oslo]);
    let worker = harness.worker(slow.extractor());
    let stale = async { process_queue(&worker).await };
    let other = async {
        wait_until("the extraction has begun", async || slow.request_count() == 1).await;
        let expire = "update learning_jobs set locked_until = now() - interval '1 second'";
        sqlx::query(expire).execute(&mut harness.owner_connection().await).await.unwrap();
        assert_eq!(process_queue(&harness.worker(ScriptedModel::new(&[ROME]).extractor())).await, 1);
        assert_eq!(harness.count_rows("learning_jobs").await, 0);
        harness.store_turn(&ann, &session("later"), &record("And now?", "Nothing.")).await;
        gate.add_permits(2);
        slow.script(&[&oslo, NOTHING]);
    };
    tokio::join!(stale, other);
    assert_eq!(harness.current_facts(&ann).await, ["The user lives in Rome."]);
}

/// Runs the worker until `actions` are done.
async fn run_during(worker: &ExtractionWorker, ready: watch::Receiver<bool>, actions: impl AsyncFnOnce()) {
    let stop = CancellationToken::new();
    let done = async {
        actions().await;
        stop.cancel();
    };
    let both = async { tokio::join!(worker.run(ready, stop.clone()), done) };
    timeout(TEST_TIMEOUT, both).await.expect("the worker does not stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_turn_wakes_the_worker_once_database_is_ready() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    let learner = Arc::new(harness.learner(Arc::new(RuleExtractor), Arc::new(RuleSummarizer)));
    let stored_turns = harness.store.stored_turns().unwrap();
    let worker = ExtractionWorker::new(&harness.roles, learner, harness.store.clone(), stored_turns);
    let (ready, is_ready) = watch::channel(false);
    run_during(&worker, is_ready, async || {
        harness.store_turn(&ann, &s, &record("I live in Rome.", "Noted.")).await;
        tokio::task::yield_now().await;
        assert_eq!(harness.count_rows("learning_jobs").await, 1);
        ready.send_replace(true);
        wait_until("the turn is learned from", async || harness.count_rows("learning_jobs").await == 0).await;
        // Six polling intervals would take 30 seconds.
        let began = std::time::Instant::now();
        for number in 0..6 {
            harness.store_turn(&ann, &session(&format!("t{number}")), &record("I live in Oslo.", "Noted.")).await;
            wait_until("the turn is learned from", async || harness.count_rows("learning_jobs").await == 0).await;
        }
        assert!(began.elapsed() < Duration::from_secs(15), "the worker waited for its polling interval");
    })
    .await;
    assert_eq!(harness.current_facts(&ann).await, ["The user lives in Oslo."]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_worker_releases_its_jobs() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    harness.store_turn(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let (model, _gate) = gated_model(&[ROME]);
    let worker = harness.worker(model.extractor());
    let (_ready, is_ready) = watch::channel(true);
    run_during(&worker, is_ready, async || {
        wait_until("the extraction has begun", async || model.request_count() == 1).await
    })
    .await;
    let (attempts, locked, failed, _) = job(&mut harness.owner_connection().await).await;
    assert_eq!((attempts, locked, failed), (0, false, false));
    assert_eq!(process_queue(&harness.worker(Arc::new(RuleExtractor))).await, 1);
}
