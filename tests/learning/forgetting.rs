//! Who has everything forgotten is not learned of from what was said before.

use std::{sync::Arc, time::Duration};

use agent_service::{
    erasure::erase_user,
    identity::{RequestId, UserId},
    learning::{RuleExtractor, RuleSummarizer},
    memory::{Metadata, NewMemory, TurnMemories, TurnWriteOutcome},
};
use jiff::{Timestamp, ToSpan as _};
use tokio::sync::Semaphore;

use crate::world::{ScriptedModel, World, record, session, user, work};

const ROME: &str = r#"{"facts": [{"kind": "place", "fact": "The user lives in Rome.", "quote": "I live in Rome"}]}"#;

/// Tables that may hold something of a user for the memory or for learning.
const TABLES: [&str; 6] =
    ["memories", "memory_vectors", "memory_users", "memory_postings", "learning_jobs", "learned_turns"];

async fn rows(world: &World, user: &UserId) -> i64 {
    let mut rows = 0;
    for table in TABLES {
        rows += world.count(&format!("{table} where user_id = '{user}'")).await;
    }
    rows
}

async fn forget(world: &World, user: &UserId) {
    erase_user(&world.memory, user).await.unwrap();
}

#[tokio::test]
async fn jobs_and_marks_go_with_everything_else() {
    let world = World::new().await;
    let (ann, bob) = (user("ann"), user("bob"));
    let learning = world.process(Arc::new(RuleExtractor));
    for user in [&ann, &bob] {
        world.keep(user, &session("a"), &record("I live in Rome.", "Noted.")).await;
    }
    assert_eq!(work(&learning).await, 2);
    for user in [&ann, &bob] {
        world.keep(user, &session("b"), &record("I like tea.", "Noted.")).await;
    }
    let of_bob = rows(&world, &bob).await;
    forget(&world, &ann).await;
    assert_eq!((rows(&world, &ann).await, rows(&world, &bob).await), (0, of_bob));
    assert_eq!(work(&learning).await, 1, "that of bob");
    assert_eq!(rows(&world, &ann).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_being_learned_from_meanwhile_leaves_nothing() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    world.keep(&ann, &s, &record("I live in Rome.", "Noted.")).await;
    let gate = Arc::new(Semaphore::new(0));
    let model = ScriptedModel { gate: Some(gate.clone()), ..ScriptedModel::default() };
    model.script(&[ROME]);
    let model = Arc::new(model);
    let learning = world.process(model.extractor());
    let forgets = async {
        while model.times_asked() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(rows(&world, &ann).await > 0, "what was said is remembered by now");
        forget(&world, &ann).await;
        gate.add_permits(1);
    };
    tokio::join!(work(&learning), forgets);
    assert_eq!(rows(&world, &ann).await, 0);
    // The conversation itself is another matter, and what is said from now on is learned from.
    world.keep(&ann, &s, &record("I like tea.", "Noted.")).await;
    work(&world.process(Arc::new(RuleExtractor))).await;
    assert_eq!(world.fact_texts(&ann).await, ["The user likes tea."]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_comes_first_nothing_of_before_is_left_in_the_end() {
    let world = Arc::new(World::new().await);
    let learner = Arc::new(world.learner(Arc::new(RuleExtractor), Arc::new(RuleSummarizer)));
    for round in 0..10 {
        let ann = user(&format!("ann-{round}"));
        let turn = world.keep(&ann, &session("s"), &record("I live in Rome.", "Noted.")).await;
        let (s, learner) = (session("s"), learner.clone());
        let (learned, ()) = tokio::join!(learner.learn(&ann, &s, &turn), forget(&world, &ann));
        learned.unwrap();
        assert_eq!(rows(&world, &ann).await, 0);
        let again = learner.learn(&ann, &s, &turn).await.unwrap();
        assert!(again.was_settled);
        assert_eq!(rows(&world, &ann).await, 0);
    }
}

#[tokio::test]
async fn a_lesson_counts_by_when_it_was_said() {
    let world = World::new().await;
    let (ann, s) = (user("ann"), session("s"));
    forget(&world, &ann).await;
    let now = Timestamp::now();
    for (said_at, is_kept) in [(now - 1.minute(), false), (now + 1.minute(), true)] {
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
        let lesson = TurnMemories {
            session: &s,
            request: &request,
            turn_ended_at: said_at,
            memories: vec![memory],
            is_final: true,
        };
        let kept = world.memory.add_turn_memories(&ann, lesson.clone()).await.unwrap();
        assert_eq!(matches!(kept, TurnWriteOutcome::Added(_)), is_kept, "{kept:?}");
        let again = world.memory.add_turn_memories(&ann, lesson).await.unwrap();
        assert_eq!(again, if is_kept { TurnWriteOutcome::AlreadyExtracted } else { TurnWriteOutcome::UserErased });
    }
    assert_eq!(world.count("memories").await, 1);
}

#[tokio::test]
async fn that_a_user_had_everything_forgotten_is_itself_forgotten_after_a_week() {
    let world = World::new().await;
    for name in ["ann", "bob"] {
        forget(&world, &user(name)).await;
    }
    assert_eq!(world.count("forgotten_users").await, 2);
    let mut behind = world.behind().await;
    let old = "update forgotten_users set forgotten_at = now() - interval '8 days' where user_digest = sha256('ann')";
    assert_eq!(sqlx::query(old).execute(&mut behind).await.unwrap().rows_affected(), 1);
    forget(&world, &user("eve")).await;
    let left = "forgotten_users where user_digest in (sha256('bob'), sha256('eve'))";
    assert_eq!((world.count("forgotten_users").await, world.count(left).await), (2, 2));
}
