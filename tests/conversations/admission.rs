use std::time::Duration;

use agent_service::conversation::{
    AdmitOutcome, FramePage, IDEMPOTENCY_WINDOW, LEASE_DURATION, NewRun, RunEnding, RunOutcome,
};
use futures_util::future::join_all;

use crate::fixture::{StoreFixture, chunk, ending, request, session, started, turn};

pub async fn admit_returns_the_stored_profile(fixture: &StoreFixture) {
    let run = fixture.run("s", "r1");
    let AdmitOutcome::Started { lease, profile, .. } = fixture.store.admit(&run).await.unwrap() else {
        panic!("not started")
    };
    let lease = lease.take();
    assert_eq!((lease.key.clone(), profile), (run.key, None));
    assert_eq!(fixture.store.load_profile(&lease.key.user).await.unwrap(), None);
    let stored = RunEnding { profile: Some(b"\0\xff profile".to_vec()), ..ending(1) };
    fixture.store.finish(&lease, &stored).await.unwrap();
    for (number, expected) in [(2, b"\0\xff profile".to_vec()), (3, b"\0\xff profile".to_vec()), (4, b"other".to_vec())]
    {
        let run = fixture.run("s", &format!("r{number}"));
        let AdmitOutcome::Started { lease, profile, .. } = fixture.store.admit(&run).await.unwrap() else { panic!() };
        let lease = lease.take();
        assert_eq!(profile, Some(expected));
        // A finish without a profile leaves the stored one.
        let changed = (number == 3).then(|| b"other".to_vec());
        fixture.store.finish(&lease, &RunEnding { profile: changed, ..ending(1) }).await.unwrap();
    }
    assert_eq!(fixture.store.load_profile(&lease.key.user).await.unwrap(), Some(b"other".to_vec()));
}

fn known(outcome: AdmitOutcome) -> [u8; 32] {
    match outcome {
        AdmitOutcome::Known { fingerprint } => fingerprint,
        other => panic!("not known: {other:?}"),
    }
}

pub async fn known_request_is_not_started_again(fixture: &StoreFixture) {
    let run = fixture.run("s", "r");
    let lease = fixture.start(&run).await;
    let stored = [7; 32];
    let others = [
        run.clone(),
        NewRun { fingerprint: [8; 32], ..run.clone() },
        NewRun { takes_session: false, ..run.clone() },
        fixture.run("another", "r"),
    ];
    for other in &others {
        assert_eq!(known(fixture.store.admit(other).await.unwrap()), stored, "while it runs");
    }
    fixture.store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    fixture.store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(2) }).await.unwrap();
    for other in &others {
        assert_eq!(known(fixture.store.admit(other).await.unwrap()), stored, "after its end");
    }
    // A run of another request in the session does not hide it.
    fixture.start(&fixture.run("s", "r2")).await;
    assert_eq!(known(fixture.store.admit(&run).await.unwrap()), stored);
    let mut bobs = run;
    bobs.key.user = fixture.user("bob");
    fixture.start(&bobs).await;
}

pub async fn resuming_request_starts_no_run(fixture: &StoreFixture) {
    let run = fixture.run("s", "r");
    let resuming = NewRun { resumes: true, ..run.clone() };
    assert!(matches!(fixture.store.admit(&resuming).await.unwrap(), AdmitOutcome::Unknown));
    assert!(fixture.store.follow(&run.key.user, &run.key.request, &FramePage::after(0)).await.unwrap().is_none());
    let lease = fixture.start(&run).await;
    known(fixture.store.admit(&resuming).await.unwrap());
    let repeatable = RunEnding { outcome: RunOutcome::Repeatable, ..ending(1) };
    fixture.store.finish(&lease, &repeatable).await.unwrap();
    known(fixture.store.admit(&resuming).await.unwrap());
    fixture.start(&run).await;
    fixture.let_leases_expire().await;
    known(fixture.store.admit(&resuming).await.unwrap());
    fixture.start(&fixture.run("s", "r2")).await;
    let unknown = NewRun { resumes: true, ..fixture.run("s", "r3") };
    assert!(matches!(fixture.store.admit(&unknown).await.unwrap(), AdmitOutcome::Unknown));
}

fn busy(admission: AdmitOutcome) -> Duration {
    match admission {
        AdmitOutcome::Busy { retry_after } => retry_after,
        other => panic!("not busy: {other:?}"),
    }
}

pub async fn session_has_one_run_at_a_time(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    let second = fixture.run("s", "r2");
    let remaining = busy(fixture.store.admit(&second).await.unwrap());
    assert!(remaining > Duration::ZERO && remaining <= LEASE_DURATION, "{remaining:?}");
    fixture.backdoor.let_pass(LEASE_DURATION / 2).await;
    let remaining = busy(fixture.store.admit(&second).await.unwrap());
    assert!(remaining <= LEASE_DURATION / 2, "{remaining:?}");
    fixture.store.checkpoint(&lease, None).await.unwrap();
    let remaining = busy(fixture.store.admit(&second).await.unwrap());
    assert!(remaining > LEASE_DURATION / 2 && remaining <= LEASE_DURATION, "{remaining:?}");
    fixture.start(&fixture.run("t", "r3")).await;
    let mut bobs = second.clone();
    bobs.key.user = fixture.user("bob");
    fixture.start(&bobs).await;
    let beside = fixture.start(&NewRun { takes_session: false, ..fixture.run("s", "r4") }).await;
    fixture.store.finish(&beside, &ending(1)).await.unwrap();
    busy(fixture.store.admit(&second).await.unwrap());
    fixture.store.finish(&lease, &ending(1)).await.unwrap();
    fixture.start(&second).await;
}

pub async fn concurrent_equal_requests_start_once(fixture: &StoreFixture) {
    let run = fixture.run("s", "r");
    let admissions = join_all((0..20).map(|_| fixture.store.admit(&run))).await;
    let (started, others): (Vec<_>, Vec<_>) =
        admissions.into_iter().map(Result::unwrap).partition(|one| matches!(one, AdmitOutcome::Started { .. }));
    assert_eq!(started.len(), 1);
    assert!(others.iter().all(|one| matches!(one, AdmitOutcome::Known { .. })), "{others:?}");
}

pub async fn concurrent_requests_of_session_start_once(fixture: &StoreFixture) {
    let runs: Vec<_> = (0..20).map(|number| fixture.run("s", &format!("r{number}"))).collect();
    for _ in 0..2 {
        let admissions = join_all(runs.iter().map(|run| fixture.store.admit(run))).await;
        let (started, others): (Vec<_>, Vec<_>) =
            admissions.into_iter().map(Result::unwrap).partition(|one| matches!(one, AdmitOutcome::Started { .. }));
        assert_eq!(started.len(), 1, "{others:?}");
        assert!(others.iter().all(|one| matches!(one, AdmitOutcome::Busy { .. })), "{others:?}");
        fixture.let_leases_expire().await;
    }
}

pub async fn revoked_admission_leaves_nothing(fixture: &StoreFixture) {
    let run = fixture.run("s", "r");
    let lease = fixture.start(&run).await;
    fixture.store.revoke_admission(&lease).await.unwrap();
    assert!(fixture.store.follow(&run.key.user, &run.key.request, &FramePage::after(0)).await.unwrap().is_none());
    let other = fixture.start(&fixture.run("s", "r2")).await;
    fixture.store.finish(&other, &ending(1)).await.unwrap();
    let again = fixture.start(&run).await;
    assert_ne!(again.lease_token, lease.lease_token);
    fixture.store.revoke_admission(&lease).await.unwrap();
    fixture.store.checkpoint(&again, None).await.unwrap();
    fixture.store.finish(&again, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    fixture.store.revoke_admission(&again).await.unwrap();
    known(fixture.store.admit(&run).await.unwrap());
    assert_eq!(fixture.store.get_session(&run.key.user, &session("s")).await.unwrap().unwrap().turns, 1);
}

pub async fn request_expires_after_idempotency_window(fixture: &StoreFixture) {
    let run = fixture.run("s", "r");
    fixture.talk("s", "r", b"x").await;
    fixture.backdoor.let_pass(IDEMPOTENCY_WINDOW - Duration::from_secs(60)).await;
    known(fixture.store.admit(&run).await.unwrap());
    fixture.backdoor.let_pass(Duration::from_secs(120)).await;
    let resuming = NewRun { resumes: true, ..run.clone() };
    assert!(matches!(fixture.store.admit(&resuming).await.unwrap(), AdmitOutcome::Unknown));
    assert!(fixture.store.follow(&run.key.user, &request("r"), &FramePage::after(0)).await.unwrap().is_none());
    let again = started(fixture.store.admit(&run).await.unwrap());
    // No frames of the expired run come back.
    let followed = fixture.store.follow(&run.key.user, &request("r"), &FramePage::after(0)).await.unwrap().unwrap();
    assert!(followed.chunks.is_empty());
    fixture.store.finish(&again, &RunEnding { turn: Some(turn(b"y")), ..ending(1) }).await.unwrap();
    assert_eq!(fixture.store.get_session(&run.key.user, &session("s")).await.unwrap().unwrap().turns, 2);
}
