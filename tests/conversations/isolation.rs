use agent_service::conversation::{
    AdmitOutcome, CompletedPendingTurn, FramePage, Lease, NewRun, PendingTurnDisposition, RunEnding, RunKey,
    SessionSelection, SessionUpdate, StoreError, Summary, ToolResultOutcome, UserQuotas,
};

use crate::fixture::{StoreFixture, chunk, ending, request, session, turn};

fn of(fixture: &StoreFixture, user: &str, run: &NewRun) -> NewRun {
    NewRun { key: RunKey { user: fixture.user(user), ..run.key.clone() }, ..run.clone() }
}

async fn all_data(fixture: &StoreFixture, user: &str) -> String {
    let (user, s, store) = (fixture.user(user), session("s"), &fixture.store);
    let mut seen = format!("{:?}\n", store.list_sessions(&user, 10, None).await.unwrap());
    seen += &format!("{:?}\n", store.get_session(&user, &s).await.unwrap());
    seen += &format!("{:?}\n", store.list_turns(&user, &s, None, 10).await.unwrap());
    seen += &format!("{:?}\n", store.load_history(&user, &s, 1_000).await.unwrap());
    for id in ["r1", "r2", "r3"] {
        seen += &format!("{:?}\n", store.follow(&user, &request(id), &FramePage::after(0)).await.unwrap());
    }
    seen
}

async fn assert_foreign_calls_fail(fixture: &StoreFixture, asking: &Lease) {
    let (store, bob) = (&fixture.store, fixture.user("bob"));
    let key = RunKey { user: bob.clone(), ..asking.key.clone() };
    let stolen = Lease { key, lease_token: asking.lease_token };
    store.revoke_admission(&stolen).await.unwrap();
    for refused in [
        store.checkpoint(&stolen, Some(&chunk(2, 1))).await.map(drop),
        store.store_pending_turn(&stolen, b"of bob", &["c"]).await,
        store.record_tool_result(&stolen, "c", b"of bob").await.map(drop),
        store.finish(&stolen, &RunEnding { turn: Some(turn(b"of bob")), ..ending(2) }).await,
    ] {
        assert!(matches!(refused, Err(StoreError::LeaseLost)), "{refused:?}");
    }
    assert_eq!(store.cancel(&bob, &session("s"), None).await.unwrap(), None);
    assert_eq!(store.cancel(&bob, &session("s"), Some(&request("r3"))).await.unwrap(), None);
    assert_eq!(store.rename_session(&bob, &session("s"), "of bob").await.unwrap(), None);
    store.update_session(&bob, &session("s"), &SessionUpdate::Title("of bob".into())).await.unwrap();
    store
        .update_session(&bob, &session("s"), &SessionUpdate::Summary(Summary { text: "of bob".into(), through: 9 }))
        .await
        .unwrap();
    assert_eq!(store.delete_sessions(&bob, &SessionSelection::Listed(vec![session("s")])).await.unwrap(), 0);
    assert_eq!(store.delete_sessions(&bob, &SessionSelection::All).await.unwrap(), 0);
    let signals = store.checkpoint(asking, None).await.unwrap();
    assert!(!signals.is_cancelled);
}

async fn assert_equal_ids_are_free(fixture: &StoreFixture, quotas: UserQuotas) {
    let (store, bob) = (&fixture.store, fixture.user("bob"));
    for id in ["r1", "r2", "r3"] {
        let run = NewRun { quotas: Some(quotas), ..of(fixture, "bob", &fixture.run("s", id)) };
        let resuming = NewRun { resumes: true, ..run.clone() };
        let unknown = store.admit(&resuming).await.unwrap();
        assert!(matches!(unknown, AdmitOutcome::Unknown), "{unknown:?}");
        let admitted = store.admit(&run).await.unwrap();
        let AdmitOutcome::Started { lease, profile, .. } = admitted else { panic!("{admitted:?}") };
        let lease = lease.take();
        assert_eq!(profile, (id != "r1").then(|| b"of bob".to_vec()));
        let outcome = store.record_tool_result(&lease, "c", b"of bob").await.unwrap();
        assert!(matches!(outcome, ToolResultOutcome::UnknownCall), "{outcome:?}");
        let end = RunEnding { turn: Some(turn(b"of bob")), profile: Some(b"of bob".to_vec()), tokens: 1, ..ending(1) };
        store.finish(&lease, &end).await.unwrap();
    }
    store.rename_session(&bob, &session("s"), "of bob").await.unwrap().unwrap();
    store
        .update_session(&bob, &session("s"), &SessionUpdate::Summary(Summary { text: "of bob".into(), through: 3 }))
        .await
        .unwrap();
    assert!(!all_data(fixture, "bob").await.contains(&format!("{:?}", b"of ann")));
    assert_eq!(store.delete_sessions(&bob, &SessionSelection::All).await.unwrap(), 1);
}

pub async fn users_are_isolated(fixture: &StoreFixture) {
    let store = &fixture.store;
    let quotas = UserQuotas { requests_per_minute: 1_000, concurrent_streams: 3, tokens_per_day: 1_000 };
    let run = NewRun { quotas: Some(quotas), ..fixture.run("s", "r1") };
    let ann = fixture.user("ann");
    let nothing = all_data(fixture, "bob").await;

    let lease = fixture.start(&run).await;
    let end = RunEnding { turn: Some(turn(b"of ann")), tokens: 999, profile: Some(b"of ann".to_vec()), ..ending(1) };
    store.finish(&lease, &end).await.unwrap();
    store
        .update_session(&ann, &session("s"), &SessionUpdate::Summary(Summary { text: "of ann".into(), through: 1 }))
        .await
        .unwrap();
    fixture.talk("s", "r2", b"of ann too").await;
    let asking = fixture.start(&fixture.run("s", "r3")).await;
    store.store_pending_turn(&asking, b"of ann", &["c"]).await.unwrap();
    store.checkpoint(&asking, Some(&chunk(1, 1))).await.unwrap();
    let ann_sees = all_data(fixture, "ann").await;
    assert_eq!(all_data(fixture, "bob").await, nothing);

    assert_foreign_calls_fail(fixture, &asking).await;
    assert_eq!(all_data(fixture, "bob").await, nothing);
    assert_equal_ids_are_free(fixture, quotas).await;

    assert_eq!(all_data(fixture, "ann").await, ann_sees);
    store.finish(&asking, &ending(2)).await.unwrap();
    let with_result = fixture.start(&NewRun { takes_session: false, ..fixture.run("s", "r4") }).await;
    let ToolResultOutcome::Complete(CompletedPendingTurn { state, results, id: pending_turn }) =
        store.record_tool_result(&with_result, "c", b"1").await.unwrap()
    else {
        panic!("not complete")
    };
    assert_eq!((&*state, results), (&b"of ann"[..], vec![("c".to_owned(), b"1".to_vec())]));
    let lease = fixture.start(&of(fixture, "bob", &fixture.run("s", "r5"))).await;
    let _ = store
        .finish(
            &lease,
            &RunEnding { resumed_turn: Some((pending_turn.clone(), PendingTurnDisposition::Done)), ..ending(1) },
        )
        .await;
    let end = RunEnding { resumed_turn: Some((pending_turn, PendingTurnDisposition::Reopened)), ..ending(1) };
    store.finish(&with_result, &end).await.unwrap();
    let again = fixture.start(&NewRun { takes_session: false, ..fixture.run("s", "r6") }).await;
    assert!(matches!(store.record_tool_result(&again, "c", b"1").await.unwrap(), ToolResultOutcome::Complete { .. }));
    let quotas = Some(UserQuotas { concurrent_streams: 1, ..quotas });
    let refused = store.admit(&NewRun { quotas, ..fixture.run("t", "r7") }).await.unwrap();
    assert!(matches!(refused, AdmitOutcome::QuotaExceeded { .. }), "{refused:?}");
}
