use agent_service::conversation::{
    AdmitOutcome, CompletedPendingTurn, FramePage, Lease, NewRun, RunEnding, RunState, StoreError, ToolResultOutcome,
};

use crate::fixture::{StoreFixture, chunk, ending, request, session, started, turn};

async fn is_lost(fixture: &StoreFixture, lease: &Lease) {
    let store = &fixture.store;
    let user = &lease.key.user;
    let before =
        store.follow(user, &lease.key.request, &FramePage::after(0)).await.unwrap().map(|run| (run.head, run.chunks));
    let everything =
        || RunEnding { turn: Some(turn(b"never")), profile: Some(b"never".to_vec()), tokens: 1_000_000, ..ending(9) };
    for refused in [
        store.checkpoint(lease, None).await.map(drop),
        store.checkpoint(lease, Some(&chunk(9, 1))).await.map(drop),
        store.store_pending_turn(lease, b"never", &["c"]).await,
        store.record_tool_result(lease, "c", b"never").await.map(drop),
        store.finish(lease, &everything()).await,
    ] {
        assert!(matches!(refused, Err(StoreError::LeaseLost)), "{refused:?}");
    }
    store.revoke_admission(lease).await.unwrap();
    let after =
        store.follow(user, &lease.key.request, &FramePage::after(0)).await.unwrap().map(|run| (run.head, run.chunks));
    assert_eq!(after, before);
}

pub async fn session_is_taken_over_after_lease_expiry(fixture: &StoreFixture) {
    let dead = fixture.start(&fixture.run("s", "r1")).await;
    fixture.store.checkpoint(&dead, Some(&chunk(1, 2))).await.unwrap();
    fixture.let_leases_expire().await;
    let lease = fixture.start(&fixture.run("s", "r2")).await;
    is_lost(fixture, &dead).await;
    let lost = fixture.store.follow(&dead.key.user, &request("r1"), &FramePage::after(0)).await.unwrap().unwrap();
    assert_eq!((lost.state, lost.chunks), (RunState::Lost, vec![chunk(1, 2)]));
    fixture.store.checkpoint(&lease, None).await.unwrap();
    fixture.store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    let stored = fixture.store.get_session(&dead.key.user, &session("s")).await.unwrap().unwrap();
    assert_eq!((stored.turns, stored.running), (1, None));
    is_lost(fixture, &dead).await;
    let AdmitOutcome::Started { profile, .. } = fixture.store.admit(&fixture.run("s", "r3")).await.unwrap() else {
        panic!()
    };
    assert_eq!(profile, None);
}

pub async fn lost_request_starts_again(fixture: &StoreFixture) {
    let run = fixture.run("s", "r");
    let dead = fixture.start(&run).await;
    fixture.store.checkpoint(&dead, Some(&chunk(1, 5))).await.unwrap();
    fixture.store.cancel(&run.key.user, &run.key.session, None).await.unwrap().unwrap();
    fixture.store.follow(&run.key.user, &run.key.request, &FramePage::after(0)).await.unwrap().unwrap();
    fixture.let_leases_expire().await;
    let restarted = NewRun { head: b"new head".to_vec(), fingerprint: [8; 32], ..run.clone() };
    let lease = fixture.start(&restarted).await;
    assert_ne!(lease.lease_token, dead.lease_token);
    let AdmitOutcome::Known { fingerprint, .. } = fixture.store.admit(&run).await.unwrap() else { panic!() };
    assert_eq!(fingerprint, [8; 32]);
    is_lost(fixture, &dead).await;
    let signals = fixture.store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    assert!(!signals.is_cancelled, "the signal was for the lost run");
    let followed = fixture.store.follow(&run.key.user, &run.key.request, &FramePage::after(0)).await.unwrap().unwrap();
    assert_eq!(followed.state, RunState::Running);
    assert_eq!((followed.head, followed.chunks), (b"new head".to_vec(), vec![chunk(1, 1)]));
    fixture.store.finish(&lease, &ending(2)).await.unwrap();
    is_lost(fixture, &dead).await;
}

pub async fn lost_request_restarted_elsewhere_frees_its_session(fixture: &StoreFixture) {
    fixture.start(&fixture.run("s", "r")).await;
    fixture.let_leases_expire().await;
    let lease = fixture.start(&fixture.run("t", "r")).await;
    fixture.start(&fixture.run("s", "r2")).await;
    fixture.store.checkpoint(&lease, None).await.unwrap();
    assert!(matches!(fixture.store.admit(&fixture.run("t", "r3")).await.unwrap(), AdmitOutcome::Busy { .. }));
}

pub async fn expired_lease_is_good_until_taken_over(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    fixture.let_leases_expire().await;
    let expired = fixture.store.follow(&lease.key.user, &request("r1"), &FramePage::after(0)).await.unwrap().unwrap();
    assert_eq!(expired.state, RunState::Lost);
    fixture.store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    assert!(matches!(fixture.store.admit(&fixture.run("s", "r2")).await.unwrap(), AdmitOutcome::Busy { .. }));
    assert!(matches!(fixture.store.admit(&fixture.run("s", "r1")).await.unwrap(), AdmitOutcome::Known { .. }));
    let renewed = fixture.store.follow(&lease.key.user, &request("r1"), &FramePage::after(0)).await.unwrap().unwrap();
    assert_eq!(renewed.state, RunState::Running);
    fixture.let_leases_expire().await;
    fixture.store.store_pending_turn(&lease, b"state", &["c"]).await.unwrap();
    fixture.store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(2) }).await.unwrap();
    assert_eq!(fixture.store.get_session(&lease.key.user, &session("s")).await.unwrap().unwrap().turns, 1);
}

pub async fn run_without_session_has_its_own_lease(fixture: &StoreFixture) {
    let beside = NewRun { takes_session: false, ..fixture.run("s", "r1") };
    let dead = fixture.start(&beside).await;
    fixture.let_leases_expire().await;
    fixture.start(&fixture.run("s", "r2")).await;
    fixture.store.checkpoint(&dead, None).await.unwrap();
    fixture.let_leases_expire().await;
    let lease = fixture.start(&beside).await;
    is_lost(fixture, &dead).await;
    fixture.store.checkpoint(&lease, None).await.unwrap();
}

pub async fn resumed_turn_of_lost_run_resumes_again(fixture: &StoreFixture) {
    let asking = fixture.start(&fixture.run("s", "r1")).await;
    fixture.store.store_pending_turn(&asking, b"state", &["a", "b"]).await.unwrap();
    fixture.store.finish(&asking, &ending(1)).await.unwrap();
    let with_result = |request: &str| NewRun { takes_session: false, ..fixture.run("s", request) };
    let first = fixture.start(&with_result("r2")).await;
    assert!(matches!(fixture.store.record_tool_result(&first, "a", b"1").await.unwrap(), ToolResultOutcome::Pending));
    fixture.store.finish(&first, &ending(1)).await.unwrap();
    let dead = fixture.start(&with_result("r3")).await;
    assert!(matches!(
        fixture.store.record_tool_result(&dead, "b", b"2").await.unwrap(),
        ToolResultOutcome::Complete { .. }
    ));
    let meanwhile = fixture.start(&with_result("r4")).await;
    assert!(matches!(
        fixture.store.record_tool_result(&meanwhile, "b", b"2").await.unwrap(),
        ToolResultOutcome::Duplicate
    ));
    fixture.store.finish(&meanwhile, &ending(1)).await.unwrap();

    fixture.let_leases_expire().await;
    // By the same request, as a client whose answer was lost, or by another one.
    for request in ["r3", "r5"] {
        let lease = started(fixture.store.admit(&with_result(request)).await.unwrap());
        let outcome = fixture.store.record_tool_result(&lease, "b", b"3").await.unwrap();
        let ToolResultOutcome::Complete(CompletedPendingTurn { state, mut results, .. }) = outcome else {
            panic!("{outcome:?}")
        };
        results.sort();
        assert_eq!(state, b"state");
        assert_eq!(results, [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"3".to_vec())]);
        assert!(matches!(fixture.store.admit(&fixture.run("s", "r6")).await.unwrap(), AdmitOutcome::Busy { .. }));
        fixture.let_leases_expire().await;
    }
    is_lost(fixture, &dead).await;
}
