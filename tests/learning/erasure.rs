//! After a user is erased, nothing is learned from earlier turns.

use std::{sync::Arc, time::Duration};

use agent_service::{
    erasure::erase_user,
    identity::{RequestId, UserId},
    learning::{RuleExtractor, RuleSummarizer},
    memory::{Metadata, NewMemory, TurnMemories, TurnWriteOutcome},
};
use jiff::{Timestamp, ToSpan as _};
use tokio::sync::Semaphore;

use crate::harness::{Harness, ScriptedModel, process_queue, record, session, user};

const ROME: &str = r#"{"facts": [{"kind": "place", "fact": "The user lives in Rome.", "quote": "I live in Rome"}]}"#;

/// Tables of the memory and of learning with rows of a user.
const TABLES: [&str; 7] = [
    "memories",
    "memory_vectors",
    "memory_half_vectors",
    "memory_users",
    "memory_postings",
    "learning_jobs",
    "learned_turns",
];

async fn count_user_rows(harness: &Harness, user: &UserId) -> i64 {
    let mut rows = 0;
    for table in TABLES {
        rows += harness.count_rows(&format!("{table} where user_id = '{user}'")).await;
    }
    rows
}

async fn erase(harness: &Harness, user: &UserId) {
    erase_user(&harness.memory, user).await.unwrap();
}

#[tokio::test]
async fn erasure_deletes_jobs_and_learned_turn_marks() {
    let harness = Harness::new().await;
    let (ann, bob) = (user("ann"), user("bob"));
    let worker = harness.worker(Arc::new(RuleExtractor));
    for user in [&ann, &bob] {
        harness.store_turn(user, &session("a"), &record("I live in Rome.", "Noted.")).await;
    }
    assert_eq!(process_queue(&worker).await, 2);
    for user in [&ann, &bob] {
        harness.store_turn(user, &session("b"), &record("I like tea.", "Noted.")).await;
    }
    let bob_rows = count_user_rows(&harness, &bob).await;
    erase(&harness, &ann).await;
    assert_eq!((count_user_rows(&harness, &ann).await, count_user_rows(&harness, &bob).await), (0, bob_rows));
    assert_eq!(process_queue(&worker).await, 1, "only the job of bob is left");
    assert_eq!(count_user_rows(&harness, &ann).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_during_extraction_leaves_no_rows() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    harness.store_turn(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let gate = Arc::new(Semaphore::new(0));
    let model = ScriptedModel { gate: Some(gate.clone()), ..ScriptedModel::default() };
    model.script(&[ROME]);
    let model = Arc::new(model);
    let worker = harness.worker(model.extractor());
    let erases = async {
        while model.request_count() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(count_user_rows(&harness, &ann).await > 0, "the verbatim memories are written before the extraction");
        erase(&harness, &ann).await;
        gate.add_permits(1);
    };
    tokio::join!(process_queue(&worker), erases);
    assert_eq!(count_user_rows(&harness, &ann).await, 0);
    // Erasing the memory leaves the session, and later turns are learned from.
    harness.store_turn(&ann, &s, &record("I like tea.", "Noted.")).await;
    process_queue(&harness.worker(Arc::new(RuleExtractor))).await;
    assert_eq!(harness.current_facts(&ann).await, ["The user likes tea."]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_erasure_and_learning_leave_no_rows() {
    let harness = Arc::new(Harness::new().await);
    let learner = Arc::new(harness.learner(Arc::new(RuleExtractor), Arc::new(RuleSummarizer)));
    for round in 0..10 {
        let ann = user(&format!("ann-{round}"));
        let turn = harness.store_turn(&ann, &session("s"), &record("I live in Rome.", "Noted.")).await;
        let (s, learner) = (session("s"), learner.clone());
        let (learned, ()) = tokio::join!(learner.learn(&ann, &s, &turn), erase(&harness, &ann));
        learned.unwrap();
        assert_eq!(count_user_rows(&harness, &ann).await, 0);
        let again = learner.learn(&ann, &s, &turn).await.unwrap();
        assert!(again.was_settled);
        assert_eq!(count_user_rows(&harness, &ann).await, 0);
    }
}

#[tokio::test]
async fn erasure_applies_by_the_time_of_the_turn() {
    let harness = Harness::new().await;
    let (ann, s) = (user("ann"), session("s"));
    erase(&harness, &ann).await;
    let now = Timestamp::now();
    for (said_at, is_added) in [(now - 1.minute(), false), (now + 1.minute(), true)] {
        let memory = NewMemory {
            id: None,
            content: format!("said at {said_at}"),
            source_type: "chat".into(),
            tags: Vec::new(),
            created_at: Some(said_at),
            metadata: Metadata::new(),
            supersedes: Vec::new(),
        };
        let request = RequestId::generate();
        let memories = TurnMemories {
            session: &s,
            request: &request,
            turn_ended_at: said_at,
            memories: vec![memory],
            is_final: true,
        };
        let outcome = harness.memory.add_turn_memories(&ann, memories.clone()).await.unwrap();
        assert_eq!(matches!(outcome, TurnWriteOutcome::Added(_)), is_added, "{outcome:?}");
        let again = harness.memory.add_turn_memories(&ann, memories).await.unwrap();
        assert_eq!(again, if is_added { TurnWriteOutcome::AlreadyExtracted } else { TurnWriteOutcome::UserErased });
    }
    assert_eq!(harness.count_rows("memories").await, 1);
}

#[tokio::test]
async fn erasure_record_is_deleted_after_a_week() {
    let harness = Harness::new().await;
    for name in ["ann", "bob"] {
        erase(&harness, &user(name)).await;
    }
    assert_eq!(harness.count_rows("forgotten_users").await, 2);
    let mut connection = harness.owner_connection().await;
    let old = "update forgotten_users set forgotten_at = now() - interval '8 days' where user_digest = sha256('ann')";
    assert_eq!(sqlx::query(old).execute(&mut connection).await.unwrap().rows_affected(), 1);
    erase(&harness, &user("eve")).await;
    let left = "forgotten_users where user_digest in (sha256('bob'), sha256('eve'))";
    assert_eq!((harness.count_rows("forgotten_users").await, harness.count_rows(left).await), (2, 2));
}
