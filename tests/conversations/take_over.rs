//! Runs whose process died, or seemed to.

use agent_service::conversation::{
    AdmitOutcome, CompletedPendingTurn, Lease, NewRun, RunEnding, RunState, StoreError, ToolResultOutcome,
};

use crate::place::{Place, chunk, ending, request, session, started, turn};

/// Shows that a lease is good for nothing any more, and that nothing of what is tried with it is kept.
async fn is_lost(place: &Place, lease: &Lease) {
    let store = &place.store;
    let user = &lease.key.user;
    let before = store.follow(user, &lease.key.request, 0).await.unwrap().map(|run| (run.head, run.chunks));
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
    // That one is no error, and does nothing either.
    store.revoke_admission(lease).await.unwrap();
    let after = store.follow(user, &lease.key.request, 0).await.unwrap().map(|run| (run.head, run.chunks));
    assert_eq!(after, before);
}

pub async fn a_conversation_goes_to_the_next_request_when_its_holder_dies(place: &Place) {
    let dead = place.start(&place.run("s", "r1")).await;
    place.store.checkpoint(&dead, Some(&chunk(1, 2))).await.unwrap();
    place.let_leases_expire().await;
    let lease = place.start(&place.run("s", "r2")).await;
    is_lost(place, &dead).await;
    let lost = place.store.follow(&dead.key.user, &request("r1"), 0).await.unwrap().unwrap();
    assert_eq!((lost.state, lost.chunks), (RunState::Lost, vec![chunk(1, 2)]));
    // The one who came is not disturbed.
    place.store.checkpoint(&lease, None).await.unwrap();
    place.store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    let kept = place.store.get_session(&dead.key.user, &session("s")).await.unwrap().unwrap();
    assert_eq!((kept.turns, kept.running), (1, None));
    is_lost(place, &dead).await;
    let AdmitOutcome::Started { profile, .. } = place.store.admit(&place.run("s", "r3")).await.unwrap() else {
        panic!()
    };
    assert_eq!(profile, None);
}

pub async fn a_request_whose_process_died_is_started_anew(place: &Place) {
    let run = place.run("s", "r");
    let dead = place.start(&run).await;
    place.store.checkpoint(&dead, Some(&chunk(1, 5))).await.unwrap();
    place.store.cancel(&run.key.user, &run.key.session, None).await.unwrap().unwrap();
    place.store.follow(&run.key.user, &run.key.request, 0).await.unwrap().unwrap();
    place.let_leases_expire().await;
    let anew = NewRun { head: b"new head".to_vec(), fingerprint: [8; 32], ..run.clone() };
    let lease = place.start(&anew).await;
    assert_ne!(lease.lease_token, dead.lease_token);
    let AdmitOutcome::Known { fingerprint, .. } = place.store.admit(&run).await.unwrap() else { panic!() };
    assert_eq!(fingerprint, [8; 32]);
    is_lost(place, &dead).await;
    let signals = place.store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    assert!(!signals.is_cancelled, "that was meant for the dead one");
    let followed = place.store.follow(&run.key.user, &run.key.request, 0).await.unwrap().unwrap();
    assert_eq!(followed.state, RunState::Running);
    assert_eq!((followed.head, followed.chunks), (b"new head".to_vec(), vec![chunk(1, 1)]));
    place.store.finish(&lease, &ending(2)).await.unwrap();
    is_lost(place, &dead).await;
}

/// The same request may come for another conversation, once its run is dead.
pub async fn a_request_that_is_started_anew_elsewhere_leaves_its_conversation(place: &Place) {
    place.start(&place.run("s", "r")).await;
    place.let_leases_expire().await;
    let lease = place.start(&place.run("t", "r")).await;
    place.start(&place.run("s", "r2")).await;
    place.store.checkpoint(&lease, None).await.unwrap();
    assert!(matches!(place.store.admit(&place.run("t", "r3")).await.unwrap(), AdmitOutcome::Busy { .. }));
}

pub async fn a_lease_that_expired_is_good_until_somebody_takes_it(place: &Place) {
    let lease = place.start(&place.run("s", "r1")).await;
    place.let_leases_expire().await;
    let expired = place.store.follow(&lease.key.user, &request("r1"), 0).await.unwrap().unwrap();
    assert_eq!(expired.state, RunState::Lost);
    place.store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    assert!(matches!(place.store.admit(&place.run("s", "r2")).await.unwrap(), AdmitOutcome::Busy { .. }));
    assert!(matches!(place.store.admit(&place.run("s", "r1")).await.unwrap(), AdmitOutcome::Known { .. }));
    let renewed = place.store.follow(&lease.key.user, &request("r1"), 0).await.unwrap().unwrap();
    assert_eq!(renewed.state, RunState::Running);
    place.let_leases_expire().await;
    place.store.store_pending_turn(&lease, b"state", &["c"]).await.unwrap();
    place.store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(2) }).await.unwrap();
    assert_eq!(place.store.get_session(&lease.key.user, &session("s")).await.unwrap().unwrap().turns, 1);
}

/// A run that takes no conversation has a lease as well.
pub async fn a_run_beside_a_conversation_lives_and_dies_by_itself(place: &Place) {
    let beside = NewRun { takes_session: false, ..place.run("s", "r1") };
    let dead = place.start(&beside).await;
    place.let_leases_expire().await;
    place.start(&place.run("s", "r2")).await;
    // Nobody took anything from it.
    place.store.checkpoint(&dead, None).await.unwrap();
    place.let_leases_expire().await;
    let lease = place.start(&beside).await;
    is_lost(place, &dead).await;
    place.store.checkpoint(&lease, None).await.unwrap();
}

/// The last result of a turn may be given again when the run that went on with it died.
pub async fn a_turn_that_went_on_is_lost_with_its_run(place: &Place) {
    let asking = place.start(&place.run("s", "r1")).await;
    place.store.store_pending_turn(&asking, b"state", &["a", "b"]).await.unwrap();
    place.store.finish(&asking, &ending(1)).await.unwrap();
    let giving = |request: &str| NewRun { takes_session: false, ..place.run("s", request) };
    let first = place.start(&giving("r2")).await;
    assert!(matches!(place.store.record_tool_result(&first, "a", b"1").await.unwrap(), ToolResultOutcome::Pending));
    place.store.finish(&first, &ending(1)).await.unwrap();
    let dead = place.start(&giving("r3")).await;
    assert!(matches!(
        place.store.record_tool_result(&dead, "b", b"2").await.unwrap(),
        ToolResultOutcome::Complete { .. }
    ));
    let meanwhile = place.start(&giving("r4")).await;
    assert!(matches!(
        place.store.record_tool_result(&meanwhile, "b", b"2").await.unwrap(),
        ToolResultOutcome::Duplicate
    ));
    place.store.finish(&meanwhile, &ending(1)).await.unwrap();

    place.let_leases_expire().await;
    // By the same request, as a client does that heard nothing, or by another one.
    for request in ["r3", "r5"] {
        let lease = started(place.store.admit(&giving(request)).await.unwrap());
        let accepted = place.store.record_tool_result(&lease, "b", b"3").await.unwrap();
        let ToolResultOutcome::Complete(CompletedPendingTurn { state, mut results, .. }) = accepted else {
            panic!("{accepted:?}")
        };
        results.sort();
        assert_eq!(state, b"state");
        assert_eq!(results, [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"3".to_vec())]);
        assert!(matches!(place.store.admit(&place.run("s", "r6")).await.unwrap(), AdmitOutcome::Busy { .. }));
        place.let_leases_expire().await;
    }
    is_lost(place, &dead).await;
}
