use std::{
    future::pending,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::*;
use crate::conversation::{RunOutcome, SessionSelection};

const TIMEOUTS: StoreTimeouts = StoreTimeouts {
    admit: Duration::from_secs(1),
    late_admission: Duration::from_secs(6),
    short: Duration::from_secs(2),
    long: Duration::from_secs(3),
    finish: Duration::from_secs(4),
    delete: Duration::from_secs(5),
};

/// Only admissions and revocations ever return, unless it says otherwise.
#[derive(Debug, Default)]
struct SlowStore {
    admits_after: Duration,
    /// Then ends of runs return at once.
    deletes_after: Option<Duration>,
    checkpoints: AtomicUsize,
    is_unreachable: AtomicBool,
    admitted: AtomicUsize,
    revoked: AtomicUsize,
}

#[async_trait::async_trait]
impl ConversationStore for SlowStore {
    async fn admit(&self, run: &NewRun) -> Result<AdmitOutcome> {
        sleep(self.admits_after).await;
        self.admitted.fetch_add(1, Ordering::SeqCst);
        let lease = Lease { key: run.key.clone(), lease_token: Uuid::nil() };
        Ok(AdmitOutcome::Started { lease: AdmittedLease::unguarded(lease), profile: None, history: None })
    }

    async fn revoke_admission(&self, _: &Lease) -> Result<()> {
        self.revoked.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn checkpoint(&self, _: &Lease, _: Option<&FrameChunk>) -> Result<RunSignals> {
        self.checkpoints.fetch_add(1, Ordering::SeqCst);
        pending().await
    }

    async fn finish(&self, _: &Lease, _: &RunEnding) -> Result<()> {
        if self.deletes_after.is_some() { Ok(()) } else { pending().await }
    }

    async fn follow(&self, _: &UserId, _: &RequestId, _: &FramePage) -> Result<Option<RunSnapshot>> {
        pending().await
    }

    async fn unwatch(&self, _: &UserId, _: &RequestId) -> Result<()> {
        pending().await
    }

    async fn set_read(&self, _: &Lease, _: bool) -> Result<ReaderSignals> {
        pending().await
    }

    async fn preempt(&self, _: &RunKey, _: bool) -> Result<Preemption> {
        pending().await
    }

    async fn cancel(&self, _: &UserId, _: &SessionId, _: Option<&RequestId>) -> Result<Option<RequestId>> {
        pending().await
    }

    async fn store_pending_turn(&self, _: &Lease, _: &[u8], _: &[&str]) -> Result<()> {
        pending().await
    }

    async fn record_tool_result(&self, _: &Lease, _: &str, _: &[u8]) -> Result<ToolResultOutcome> {
        pending().await
    }

    async fn load_profile(&self, _: &UserId) -> Result<Option<Vec<u8>>> {
        pending().await
    }

    async fn load_history(&self, _: &UserId, _: &SessionId, _: u32) -> Result<History> {
        pending().await
    }

    async fn list_sessions(&self, _: &UserId, _: usize, _: Option<&SessionCursor>) -> Result<Vec<Session>> {
        pending().await
    }

    async fn get_session(&self, _: &UserId, _: &SessionId) -> Result<Option<Session>> {
        pending().await
    }

    async fn list_turns(&self, _: &UserId, _: &SessionId, _: Option<u32>, _: usize) -> Result<Vec<StoredTurn>> {
        pending().await
    }

    async fn rename_session(&self, _: &UserId, _: &SessionId, _: &str) -> Result<Option<Session>> {
        pending().await
    }

    async fn update_session(&self, _: &UserId, _: &SessionId, _: &SessionUpdate) -> Result<()> {
        pending().await
    }

    async fn delete_sessions(&self, _: &UserId, _: &SessionSelection) -> Result<u32> {
        let Some(deletes_after) = self.deletes_after else { return pending().await };
        sleep(deletes_after).await;
        Ok(1)
    }

    async fn warm_up(&self) {
        pending().await
    }

    async fn is_unreachable(&self) -> bool {
        self.is_unreachable.load(Ordering::SeqCst)
    }
}

fn slow(admits_after: Duration, concurrent_admissions: usize) -> WithDeadlines<SlowStore> {
    WithDeadlines::new(SlowStore { admits_after, ..SlowStore::default() }, TIMEOUTS, concurrent_admissions)
}

fn counts(store: &WithDeadlines<SlowStore>) -> (usize, usize) {
    (store.store.admitted.load(Ordering::SeqCst), store.store.revoked.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn admission_in_time_is_not_revoked() {
    let store = slow(TIMEOUTS.admit / 2, 1);
    let admitted = store.admit(&NewRun::example()).await.unwrap();
    let AdmitOutcome::Started { lease, .. } = admitted else { panic!("{admitted:?}") };
    sleep(TIMEOUTS.late_admission).await;
    assert_eq!(counts(&store), (1, 0), "while its handler prepares the turn");
    lease.take();
    sleep(TIMEOUTS.late_admission).await;
    assert_eq!(counts(&store), (1, 0));
    assert_eq!(Arc::strong_count(&store.store), 1, "the task still holds the store");
}

#[tokio::test(start_paused = true)]
async fn admission_dropped_after_the_hand_over_is_revoked() {
    let store = slow(Duration::ZERO, 1);
    let admitted = store.admit(&NewRun::example()).await.unwrap();
    assert!(matches!(admitted, AdmitOutcome::Started { .. }), "{admitted:?}");
    drop(admitted);
    sleep(TIMEOUTS.late_admission).await;
    assert_eq!(counts(&store), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn admission_dropped_between_hand_over_and_take_over_is_revoked() {
    let store = slow(TIMEOUTS.admit / 2, 1);
    let run = NewRun::example();
    {
        let mut admission = std::pin::pin!(store.admit(&run));
        assert!(futures_util::poll!(admission.as_mut()).is_pending());
        // The task has sent its answer, and the handler is dropped before it is polled again.
        sleep(TIMEOUTS.admit * 3 / 4).await;
        assert_eq!(counts(&store), (1, 0));
    }
    sleep(TIMEOUTS.late_admission).await;
    assert_eq!(counts(&store), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn admission_after_its_timeout_is_revoked() {
    let store = slow(TIMEOUTS.admit * 2, 1);
    let started = Instant::now();
    let refused = store.admit(&NewRun::example()).await;
    assert!(matches!(refused, Err(StoreError::Timeout)), "{refused:?}");
    assert_eq!(started.elapsed(), TIMEOUTS.admit);
    assert_eq!(counts(&store), (0, 0));
    sleep(TIMEOUTS.late_admission).await;
    assert_eq!(counts(&store), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn admission_of_dropped_caller_is_revoked() {
    let store = slow(TIMEOUTS.admit / 2, 1);
    let dropped = timeout(TIMEOUTS.admit / 4, store.admit(&NewRun::example())).await;
    assert!(dropped.is_err(), "{dropped:?}");
    sleep(TIMEOUTS.late_admission).await;
    assert_eq!(counts(&store), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn admission_that_never_arrives_ends_its_task() {
    let store = slow(Duration::from_hours(1), 1);
    assert!(store.admit(&NewRun::example()).await.is_err());
    sleep(TIMEOUTS.admit + TIMEOUTS.late_admission).await;
    assert_eq!(Arc::strong_count(&store.store), 1, "the task still holds the store");
    assert_eq!(counts(&store), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn admission_timeout_starts_with_the_permit() {
    let store = slow(TIMEOUTS.admit * 3 / 4, 2);
    let started = Instant::now();
    let runs = vec![NewRun::example(); 6];
    let admitted = futures_util::future::join_all(runs.iter().map(|run| store.admit(run))).await;
    assert!(admitted.iter().all(Result::is_ok), "{admitted:?}");
    assert_eq!(started.elapsed(), TIMEOUTS.admit * 9 / 4, "two at a time");
}

#[tokio::test(start_paused = true)]
async fn admission_without_a_permit_times_out() {
    let store = slow(Duration::ZERO, 0);
    let started = Instant::now();
    let refused = store.admit(&NewRun::example()).await;
    assert!(matches!(refused, Err(StoreError::Timeout)), "{refused:?}");
    assert_eq!((started.elapsed(), counts(&store)), (ADMIT_QUEUE_TIMEOUT, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn admission_to_an_unreachable_store_says_so_at_once() {
    let store = slow(TIMEOUTS.admit * 20, 4).with_user_locks();
    store.store.is_unreachable.store(true, Ordering::SeqCst);
    // Those that follow must not wait for the first one's turn, which it still has.
    for _ in 0..3 {
        let started = Instant::now();
        let refused = store.admit(&NewRun::example()).await;
        assert!(matches!(refused, Err(StoreError::Unreachable)), "{refused:?}");
        assert_eq!(started.elapsed(), PROBE_AFTER);
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_with_its_deadline() {
    async fn times_out<T: std::fmt::Debug>(name: &str, expected: Duration, call: impl Future<Output = Result<T>>) {
        let started = Instant::now();
        let ended = call.await;
        assert!(matches!(ended, Err(StoreError::Timeout)), "{name}: {ended:?}");
        assert_eq!(started.elapsed(), expected, "{name}");
    }
    let StoreTimeouts { admit, late_admission: _, short, long, finish, delete } = TIMEOUTS;
    let store = slow(Duration::ZERO, 1);
    let key = NewRun::example().key;
    let lease = Lease { key: key.clone(), lease_token: Uuid::nil() };
    let (user, session) = (&key.user, &key.session);
    let ending = empty_ending();
    times_out("checkpoint", short, store.checkpoint(&lease, Some(&ending.chunk))).await;
    times_out("heartbeat", short, store.checkpoint(&lease, None)).await;
    times_out("unwatch", short, store.unwatch(user, &key.request)).await;
    times_out("set_read", short, store.set_read(&lease, true)).await;
    times_out("preempt", short, store.preempt(&key, false)).await;
    times_out("finish", finish, store.finish(&lease, &ending)).await;
    times_out("follow", long, store.follow(user, &key.request, &FramePage::after(0))).await;
    times_out("cancel", short, store.cancel(user, session, None)).await;
    times_out("store_pending_turn", long, store.store_pending_turn(&lease, b"", &[])).await;
    times_out("record_tool_result", admit, store.record_tool_result(&lease, "c", b"")).await;
    times_out("load_history", long, store.load_history(user, session, 1)).await;
    times_out("load_profile", short, store.load_profile(user)).await;
    times_out("list_sessions", short, store.list_sessions(user, 1, None)).await;
    times_out("get_session", short, store.get_session(user, session)).await;
    times_out("list_turns", long, store.list_turns(user, session, None, 1)).await;
    times_out("rename_session", short, store.rename_session(user, session, "t")).await;
    times_out("update_session", short, store.update_session(user, session, &SessionUpdate::Title("t".into()))).await;
    times_out("delete_sessions", delete, store.delete_sessions(user, &SessionSelection::All)).await;
    let started = Instant::now();
    store.warm_up().await;
    assert_eq!(started.elapsed(), short, "warm_up");
}

fn empty_ending() -> RunEnding {
    RunEnding {
        chunk: FrameChunk { first: 1, count: 0, frames: Vec::new() },
        outcome: RunOutcome::Final,
        turn: None,
        tokens: 0,
        resumed_turn: None,
        profile: None,
    }
}

fn run_of(user: &str) -> NewRun {
    let mut run = NewRun::example();
    run.key.user = UserId::parse("user_id", user).unwrap();
    run
}

#[tokio::test(start_paused = true)]
async fn admissions_take_turns_per_user() {
    let store = slow(TIMEOUTS.admit / 2, 100).with_user_locks();
    let users = ["ann", "bob", "ann", "eve", "ann"];
    let started = Instant::now();
    let ends = users.map(async |user| {
        store.admit(&run_of(user)).await.unwrap();
        (user, started.elapsed())
    });
    let mut ends = futures_util::future::join_all(ends).await;
    ends.sort();
    let after = |turns| TIMEOUTS.admit / 2 * turns;
    let expected = [("ann", after(1)), ("ann", after(2)), ("ann", after(3)), ("bob", after(1)), ("eve", after(1))];
    assert_eq!(ends, expected);
    assert!(store.locks.unwrap().user.is_empty(), "a queue without calls is left");
}

#[tokio::test(start_paused = true)]
async fn locked_user_delays_no_other_user() {
    let store = slow(TIMEOUTS.admit * 3, 4).with_user_locks();
    let started = Instant::now();
    let refused = store.admit(&run_of("ann")).await;
    assert!(matches!(refused, Err(StoreError::Timeout)), "{refused:?}");
    // The late admission is still in the store: the next call waits for it, and not longer than for the store.
    let refused = store.admit(&run_of("ann")).await;
    assert!(matches!(refused, Err(StoreError::Timeout)), "{refused:?}");
    assert_eq!((started.elapsed(), counts(&store)), (TIMEOUTS.admit * 2, (0, 0)));
    let resuming = NewRun { resumes: true, ..run_of("ann") };
    let bobs = run_of("bob");
    let (_, _) = tokio::join!(store.admit(&bobs), store.admit(&resuming));
    assert_eq!(started.elapsed(), TIMEOUTS.admit * 3, "neither waited for the user's turn");
}

#[tokio::test(start_paused = true)]
async fn waiting_calls_of_a_user_are_bounded() {
    let store = slow(TIMEOUTS.admit * 3, 4).with_user_locks();
    let (run, bobs) = (run_of("ann"), run_of("bob"));
    let calls = futures_util::future::join_all((0..400).map(|_| store.admit(&run)));
    let mut calls = std::pin::pin!(calls);
    assert!(futures_util::poll!(calls.as_mut()).is_pending());
    let started = Instant::now();
    assert!(store.admit(&run).await.is_err());
    assert_eq!(started.elapsed(), Duration::ZERO, "it was refused without waiting");
    drop(store.admit(&bobs).await);
    assert_eq!(started.elapsed(), TIMEOUTS.admit);
}

#[tokio::test(start_paused = true)]
async fn calls_with_a_lease_wait_behind_any_number_of_admissions() {
    let store = slow(TIMEOUTS.admit * 3, 4).with_user_locks();
    let run = run_of("ann");
    let lease = Lease { key: run.key.clone(), lease_token: Uuid::nil() };
    let admissions = futures_util::future::join_all((0..400).map(|_| store.admit(&run)));
    let mut admissions = std::pin::pin!(admissions);
    assert!(futures_util::poll!(admissions.as_mut()).is_pending());
    let started = Instant::now();
    assert!(store.finish(&lease, &empty_ending()).await.is_err(), "the store never answers");
    assert_eq!(started.elapsed(), TIMEOUTS.finish, "it was refused without waiting");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_wait_for_polls() {
    let store = slow(Duration::ZERO, 4).with_user_locks();
    let lease = Lease { key: run_of("ann").key, lease_token: Uuid::nil() };
    let polls = futures_util::future::join_all((0..400).map(|_| store.set_read(&lease, true)));
    let mut polls = std::pin::pin!(polls);
    assert!(futures_util::poll!(polls.as_mut()).is_pending());
    let mut heartbeat = std::pin::pin!(store.checkpoint(&lease, None));
    assert!(futures_util::poll!(heartbeat.as_mut()).is_pending());
    assert_eq!(store.store.checkpoints.load(Ordering::SeqCst), 1, "the heartbeat waits");
}

#[tokio::test(start_paused = true)]
async fn runs_end_between_the_batches_of_a_deletion() {
    const BATCH_TIME: Duration = Duration::from_secs(1);
    let store = SlowStore { deletes_after: Some(BATCH_TIME), ..SlowStore::default() };
    let store = WithDeadlines::new(store, TIMEOUTS, 4).with_user_locks();
    let run = run_of("ann");
    let lease = Lease { key: run.key.clone(), lease_token: Uuid::nil() };
    let sessions = SessionSelection::Listed(vec![run.key.session.clone(); 3 * DELETED_AT_ONCE]);
    let (ending, started) = (empty_ending(), Instant::now());
    let deletion = async {
        assert_eq!(store.delete_sessions(&run.key.user, &sessions).await.unwrap(), 3);
        started.elapsed()
    };
    let end = async {
        store.finish(&lease, &ending).await.unwrap();
        started.elapsed()
    };
    assert_eq!(tokio::join!(deletion, end), (BATCH_TIME * 3, BATCH_TIME));
}
