use std::time::Duration;

use agent_service::conversation::{
    AdmitOutcome, FramePage, NewTurn, Preemption, ReaderSignals, RunEnding, RunKey, RunState, StoreError, WATCH_WINDOW,
};

use crate::fixture::{StoreFixture, chunk, ending, request, session, turn, within};

/// Longer than a run stays watched after a reader has left.
const SECOND: Duration = Duration::from_secs(1);
const UNREAD: ReaderSignals = ReaderSignals { is_watched: false, is_preempted: false };

fn requested(id: &str) -> Preemption {
    Preemption::Requested { request: request(id) }
}

fn refused(id: &str) -> Preemption {
    Preemption::Refused { request: request(id), is_watched: false }
}

pub async fn unread_run_is_asked_to_end(fixture: &StoreFixture) {
    let store = &fixture.store;
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    let next = fixture.run("s", "r2");
    assert_eq!(store.preempt(&next.key, false).await.unwrap(), refused("r1"), "a run is read until it says otherwise");
    for _ in 0..2 {
        assert_eq!(store.set_read(&lease, false).await.unwrap(), UNREAD);
    }
    for _ in 0..2 {
        assert_eq!(store.preempt(&next.key, false).await.unwrap(), requested("r1"));
        let preempted = ReaderSignals { is_preempted: true, ..UNREAD };
        assert_eq!(store.set_read(&lease, false).await.unwrap(), preempted);
    }
    assert!(matches!(store.admit(&next).await.unwrap(), AdmitOutcome::Busy { .. }), "until it has ended");
    assert!(!store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap().is_cancelled);
    let partial = NewTurn { is_complete: false, ..turn(b"partial") };
    store.finish(&lease, &RunEnding { turn: Some(partial), ..ending(2) }).await.unwrap();
    let started = fixture.start(&next).await;
    assert_eq!(store.preempt(&fixture.run("s", "r3").key, false).await.unwrap(), refused("r2"));
    assert_eq!(store.set_read(&started, false).await.unwrap(), UNREAD, "the request was for the other run");
}

pub async fn read_run_keeps_its_session(fixture: &StoreFixture) {
    let store = &fixture.store;
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    let next = fixture.run("s", "r2").key;
    store.set_read(&lease, false).await.unwrap();
    store.set_read(&lease, true).await.unwrap();
    for takes_over in [false, true] {
        assert_eq!(store.preempt(&next, takes_over).await.unwrap(), refused("r1"));
    }
    assert_eq!(store.set_read(&lease, true).await.unwrap(), UNREAD);
    store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
}

pub async fn session_without_other_run_is_free(fixture: &StoreFixture) {
    let store = &fixture.store;
    let run = fixture.run("s", "r1");
    let other_user = RunKey { user: fixture.user("bob"), ..fixture.run("s", "r2").key };
    for takes_over in [false, true] {
        assert_eq!(store.preempt(&run.key, takes_over).await.unwrap(), Preemption::Free);
    }
    let lease = fixture.start(&run).await;
    store.set_read(&lease, false).await.unwrap();
    for key in [&run.key, &other_user, &fixture.run("t", "r2").key] {
        assert_eq!(store.preempt(key, true).await.unwrap(), Preemption::Free, "{key:?}");
    }
    store.checkpoint(&lease, None).await.unwrap();
    fixture.let_leases_expire().await;
    assert_eq!(store.preempt(&fixture.run("s", "r2").key, false).await.unwrap(), Preemption::Free);
}

pub async fn session_of_unresponsive_owner_is_taken_over(fixture: &StoreFixture) {
    let store = &fixture.store;
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    store.checkpoint(&lease, Some(&chunk(1, 2))).await.unwrap();
    store.set_read(&lease, false).await.unwrap();
    let next = fixture.run("s", "r2");
    assert_eq!(store.preempt(&next.key, true).await.unwrap(), requested("r1"));
    for late in [
        store.set_read(&lease, false).await.map(drop),
        store.checkpoint(&lease, None).await.map(drop),
        store.finish(&lease, &RunEnding { turn: Some(turn(b"late")), ..ending(3) }).await,
    ] {
        assert!(matches!(late, Err(StoreError::LeaseLost)), "{late:?}");
    }
    let lost = store.follow(&lease.key.user, &request("r1"), &FramePage::after(0)).await.unwrap().unwrap();
    assert_eq!((lost.state, lost.chunks), (RunState::Lost, vec![chunk(1, 2)]));
    let started = fixture.start(&next).await;
    store.finish(&started, &RunEnding { turn: Some(turn(b"new")), ..ending(1) }).await.unwrap();
    let turns = store.list_turns(&lease.key.user, &session("s"), None, 10).await.unwrap();
    assert_eq!(turns.iter().map(|turn| &*turn.record).collect::<Vec<_>>(), [b"new"]);
}

pub async fn reader_that_came_back_was_not_asked_to_give_way(fixture: &StoreFixture) {
    let store = &fixture.store;
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    let next = fixture.run("s", "r2").key;
    store.set_read(&lease, false).await.unwrap();
    assert_eq!(store.preempt(&next, false).await.unwrap(), requested("r1"));
    store.set_read(&lease, true).await.unwrap();
    assert_eq!(store.preempt(&next, false).await.unwrap(), refused("r1"));
    assert_eq!(store.set_read(&lease, false).await.unwrap(), UNREAD, "the request was refused");
}

pub async fn one_of_two_readers_of_another_process_leaves(fixture: &StoreFixture) {
    let store = &fixture.store;
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    let (user, next) = (&lease.key.user, fixture.run("s", "r2").key);
    store.set_read(&lease, false).await.unwrap();
    store.follow(user, &request("r1"), &FramePage::after(0)).await.unwrap().unwrap();
    store.unwatch(user, &request("r1")).await.unwrap();
    store.follow(user, &request("r1"), &FramePage::after(0)).await.unwrap().unwrap();
    fixture.backdoor.let_pass(SECOND).await;
    let watched = Preemption::Refused { request: request("r1"), is_watched: true };
    assert_eq!(store.preempt(&next, true).await.unwrap(), watched);
}

pub async fn reader_of_another_process_counts_until_it_leaves(fixture: &StoreFixture) {
    let store = &fixture.store;
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    let (user, next) = (&lease.key.user, fixture.run("s", "r2").key);
    store.set_read(&lease, false).await.unwrap();
    store.follow(user, &request("r1"), &FramePage::after(0)).await.unwrap().unwrap();
    assert_eq!(store.set_read(&lease, false).await.unwrap(), ReaderSignals { is_watched: true, ..UNREAD });
    let watched = Preemption::Refused { request: request("r1"), is_watched: true };
    assert_eq!(store.preempt(&next, true).await.unwrap(), watched);
    store.unwatch(user, &request("r1")).await.unwrap();
    fixture.backdoor.let_pass(SECOND).await;
    assert_eq!(store.set_read(&lease, false).await.unwrap(), UNREAD);
    assert_eq!(store.preempt(&next, false).await.unwrap(), requested("r1"));
    store.finish(&lease, &ending(1)).await.unwrap();
    store.unwatch(user, &request("r1")).await.unwrap();
    store.unwatch(user, &request("never")).await.unwrap();
}

pub async fn follow_marks_run_as_watched_for_a_while(fixture: &StoreFixture) {
    let slack = Duration::from_secs(2);
    within(slack, async |attempt| {
        let name = format!("r{attempt}");
        let lease = fixture.start(&fixture.run(&name, &name)).await;
        let follow = async || {
            fixture.store.follow(&lease.key.user, &request(&name), &FramePage::after(0)).await.unwrap().unwrap()
        };
        let is_watched = async || fixture.store.set_read(&lease, false).await.unwrap().is_watched;
        assert!(!is_watched().await);
        for _ in 0..2 {
            fixture.store.checkpoint(&lease, None).await.unwrap();
            follow().await;
            assert!(is_watched().await);
            fixture.backdoor.let_pass(WATCH_WINDOW - slack).await;
            assert!(is_watched().await);
            follow().await;
            fixture.backdoor.let_pass(WATCH_WINDOW - slack).await;
            assert!(is_watched().await);
            fixture.backdoor.let_pass(WATCH_WINDOW).await;
            assert!(!is_watched().await);
        }
    })
    .await;
}
