//! The queue of turns that are to be learned from.

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

use crate::world::{PATIENCE, ScriptedModel, World, record, session, user, work};

const ROME: &str = r#"{"facts": [{"kind": "place", "fact": "The user lives in Rome.", "quote": "I live in Rome"}]}"#;
const NOTHING: &str = r#"{"facts": []}"#;

/// How a job stands: attempts, whether it is locked, given up, and how many seconds it waits.
async fn job(behind: &mut PgConnection) -> (i32, bool, bool, i64) {
    let job = "select attempts, coalesce(locked_until > now(), false) as locked, failed_at is not null as failed,
                      round(extract(epoch from due_at - now()))::bigint as wait from learning_jobs";
    let row = sqlx::query(job).persistent(false).fetch_one(behind).await.unwrap();
    (row.get("attempts"), row.get("locked"), row.get("failed"), row.get("wait"))
}

async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A model that waits to be let through.
fn waiting(answers: &[&str]) -> (Arc<ScriptedModel>, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let model = ScriptedModel { gate: Some(gate.clone()), ..ScriptedModel::default() };
    model.script(answers);
    (Arc::new(model), gate)
}

#[tokio::test]
async fn a_turn_waits_in_the_queue_until_it_is_learned_from() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    let learning = world.process(Arc::new(RuleExtractor));
    assert_eq!(work(&learning).await, 0);
    world.keep(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    assert_eq!(world.count("learning_jobs").await, 1);
    assert_eq!(work(&learning).await, 1);
    assert_eq!((world.count("learning_jobs").await, world.fact_texts(&ann).await.len()), (0, 1));
    assert_eq!(world.store.get_session(&ann, &s).await.unwrap().unwrap().title, "I live in Rome");
}

#[tokio::test]
async fn jobs_of_conversations_that_are_deleted_go_with_them() {
    let world = World::new().await;
    let ann = user("ann");
    for name in ["a", "b", "c"] {
        world.keep(&ann, &session(name), &record("I live in Rome.", "Noted.")).await;
    }
    world.store.delete_sessions(&ann, &SessionSelection::Listed(vec![session("a")])).await.unwrap();
    assert_eq!(world.count("learning_jobs").await, 2);
    world.store.delete_sessions(&ann, &SessionSelection::All).await.unwrap();
    assert_eq!(world.count("learning_jobs").await, 0);
}

#[tokio::test]
async fn a_turn_that_is_gone_meanwhile_is_done() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    world.keep(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    sqlx::query("delete from sessions").execute(&mut world.behind().await).await.unwrap();
    assert_eq!(work(&world.process(Arc::new(RuleExtractor))).await, 1);
    assert_eq!((world.count("learning_jobs").await, world.everything(&ann).await.len()), (0, 0));
}

#[tokio::test]
async fn a_turn_that_fails_is_tried_again_later_and_given_up_after_five_times() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    world.keep(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let model = ScriptedModel::new(&["", "", "", "", "", ROME]);
    let learning = world.process(model.extractor());
    let mut behind = world.behind().await;
    for (attempt, wait) in [(1, 15), (2, 90), (3, 540), (4, 3240)] {
        assert_eq!(work(&learning).await, 1);
        let (attempts, locked, failed, waits) = job(&mut behind).await;
        assert_eq!((attempts, locked, failed), (attempt, false, false));
        assert!((wait - 60..=wait).contains(&waits), "{waits}");
        assert_eq!(work(&learning).await, 0, "it is not its time");
        world.let_waits_pass().await;
    }
    work(&learning).await;
    let (attempts, locked, failed, _) = job(&mut behind).await;
    assert_eq!((attempts, locked, failed), (5, false, true));
    world.let_waits_pass().await;
    assert_eq!((work(&learning).await, model.times_asked()), (0, 5));
    // As the runbook says.
    let again = "update learning_jobs set failed_at = null, attempts = 0, due_at = now() where failed_at is not null";
    sqlx::query(again).execute(&mut behind).await.unwrap();
    work(&learning).await;
    assert_eq!((world.count("learning_jobs").await, world.fact_texts(&ann).await.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_are_never_at_the_same_turn_nor_at_two_of_one_user() {
    let world = World::new().await;
    for number in 0..4 {
        for name in ["ann", "bob"] {
            let s = session(&format!("s{number}"));
            world.keep(&user(name), &s, &record(&format!("I live in Rome {number}."), "Noted.")).await;
        }
    }
    let (model, gate) = waiting(&[NOTHING; 8]);
    let processes = [world.process(model.extractor()), world.process(model.extractor())];
    let (_ready, is_ready) = watch::channel(true);
    let stop = CancellationToken::new();
    let both = futures_util::future::join_all(processes.iter().map(|one| one.run(is_ready.clone(), stop.clone())));
    let watched = async {
        for done in 0..4 {
            // Nobody goes on before it is let through, so that what is locked is what they are at.
            wait_until("both users have a turn", async || model.times_asked() == 2 * (done + 1)).await;
            let locked = "learning_jobs where locked_until > now()";
            assert_eq!(world.count(locked).await, 2);
            assert_eq!(world.count(&format!("(select distinct user_id from {locked})")).await, 2);
            gate.add_permits(2);
        }
        wait_until("all is done", async || world.count("learning_jobs").await == 0).await;
        stop.cancel();
    };
    tokio::join!(both, watched);
    assert_eq!((model.times_asked(), world.count("learned_turns").await), (8, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_taken_for_dead_changes_nothing_any_more() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    world.keep(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let oslo = ROME.replace("lives in Rome", "has a flat in Rome");
    let (slow, gate) = waiting(&[&oslo]);
    let learning = world.process(slow.extractor());
    let dead = async {
        // Its answer comes when all is done.
        work(&learning).await
    };
    let other = async {
        wait_until("it has begun", async || slow.times_asked() == 1).await;
        let expire = "update learning_jobs set locked_until = now() - interval '1 second'";
        sqlx::query(expire).execute(&mut world.behind().await).await.unwrap();
        assert_eq!(work(&world.process(ScriptedModel::new(&[ROME]).extractor())).await, 1);
        assert_eq!(world.count("learning_jobs").await, 0);
        world.keep(&ann, &session("later"), &record("And now?", "Nothing.")).await;
        gate.add_permits(2);
        slow.script(&[&oslo, NOTHING]);
    };
    tokio::join!(dead, other);
    assert_eq!(world.fact_texts(&ann).await, ["The user lives in Rome."]);
}

/// Runs what works on the queue while something else is done, and then stops it.
async fn beside(learning: &ExtractionWorker, ready: watch::Receiver<bool>, work: impl AsyncFnOnce()) {
    let stop = CancellationToken::new();
    let done = async {
        work().await;
        stop.cancel();
    };
    let both = async { tokio::join!(learning.run(ready, stop.clone()), done) };
    timeout(PATIENCE, both).await.expect("it does not stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_the_same_process_is_learned_from_at_once_when_the_database_is_ready() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    let learner = Arc::new(world.learner(Arc::new(RuleExtractor), Arc::new(RuleSummarizer)));
    let bell = world.store.learning_wakeup().unwrap();
    let learning = ExtractionWorker::new(&world.roles, learner, world.store.clone(), bell);
    let (ready, is_ready) = watch::channel(false);
    beside(&learning, is_ready, async || {
        world.keep(&ann, &s, &record("I live in Rome.", "Noted.")).await;
        tokio::task::yield_now().await;
        assert_eq!(world.count("learning_jobs").await, 1);
        ready.send_replace(true);
        wait_until("it is learned from", async || world.count("learning_jobs").await == 0).await;
        // Sooner than it would look by itself.
        let began = std::time::Instant::now();
        for number in 0..6 {
            world.keep(&ann, &session(&format!("t{number}")), &record("I live in Oslo.", "Noted.")).await;
            wait_until("it is learned from", async || world.count("learning_jobs").await == 0).await;
        }
        assert!(began.elapsed() < Duration::from_secs(15), "the bell is not heard");
    })
    .await;
    assert_eq!(world.fact_texts(&ann).await, ["The user lives in Oslo."]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_a_process_stops_is_put_back() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    world.keep(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let (model, _gate) = waiting(&[ROME]);
    let learning = world.process(model.extractor());
    let (_ready, is_ready) = watch::channel(true);
    beside(&learning, is_ready, async || wait_until("it has begun", async || model.times_asked() == 1).await).await;
    let (attempts, locked, failed, _) = job(&mut world.behind().await).await;
    assert_eq!((attempts, locked, failed), (0, false, false));
    assert_eq!(work(&world.process(Arc::new(RuleExtractor))).await, 1);
}
