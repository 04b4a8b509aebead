//! Who is let in.

use std::time::Duration;

use agent_service::conversation::{AdmitOutcome, IDEMPOTENCY_WINDOW, LEASE_DURATION, NewRun, RunEnding, RunOutcome};
use futures_util::future::join_all;

use crate::place::{Place, chunk, ending, request, session, started, turn};

pub async fn a_request_starts_and_is_told_the_profile(place: &Place) {
    let run = place.run("s", "r1");
    let AdmitOutcome::Started { lease, profile } = place.store.admit(&run).await.unwrap() else {
        panic!("not started")
    };
    assert_eq!((lease.key.clone(), profile), (run.key, None));
    let kept = RunEnding { profile: Some(b"\0\xff profile".to_vec()), ..ending(1) };
    place.store.finish(&lease, &kept).await.unwrap();
    for (number, expected) in [(2, b"\0\xff profile".to_vec()), (3, b"\0\xff profile".to_vec()), (4, b"other".to_vec())]
    {
        let run = place.run("s", &format!("r{number}"));
        let AdmitOutcome::Started { lease, profile } = place.store.admit(&run).await.unwrap() else { panic!() };
        assert_eq!(profile, Some(expected));
        // What is not given is not changed.
        let changed = (number == 3).then(|| b"other".to_vec());
        place.store.finish(&lease, &RunEnding { profile: changed, ..ending(1) }).await.unwrap();
    }
}

/// In which conversation a request is known, and its fingerprint.
fn known(admission: AdmitOutcome) -> (String, [u8; 32]) {
    match admission {
        AdmitOutcome::Known { session, fingerprint } => (session.to_string(), fingerprint),
        other => panic!("not known but {other:?}"),
    }
}

pub async fn a_known_request_is_not_started_again(place: &Place) {
    let run = place.run("s", "r");
    let lease = place.start(&run).await;
    let stored = ("s".to_owned(), [7; 32]);
    let others = [
        run.clone(),
        NewRun { fingerprint: [8; 32], ..run.clone() },
        NewRun { takes_session: false, ..run.clone() },
        place.run("another", "r"),
    ];
    for other in &others {
        assert_eq!(known(place.store.admit(other).await.unwrap()), stored, "while it runs");
    }
    // Nothing of it has changed: whoever has the lease still has it.
    place.store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    place.store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(2) }).await.unwrap();
    for other in &others {
        assert_eq!(known(place.store.admit(other).await.unwrap()), stored, "after its end");
    }
    // A conversation that another one has does not hide it.
    place.start(&place.run("s", "r2")).await;
    assert_eq!(known(place.store.admit(&run).await.unwrap()), stored);
    // The same id of another user is another request.
    let mut bobs = run;
    bobs.key.user = place.user("bob");
    place.start(&bobs).await;
}

pub async fn a_request_that_goes_on_starts_nothing(place: &Place) {
    let run = place.run("s", "r");
    let resuming = NewRun { resumes: true, ..run.clone() };
    assert!(matches!(place.store.admit(&resuming).await.unwrap(), AdmitOutcome::Unknown));
    assert!(place.store.follow(&run.key.user, &run.key.request, 0).await.unwrap().is_none());
    let lease = place.start(&run).await;
    known(place.store.admit(&resuming).await.unwrap());
    let repeatable = RunEnding { outcome: RunOutcome::Repeatable, ..ending(1) };
    place.store.finish(&lease, &repeatable).await.unwrap();
    known(place.store.admit(&resuming).await.unwrap());
    // Nor one whose process died.
    place.start(&run).await;
    place.let_leases_expire().await;
    known(place.store.admit(&resuming).await.unwrap());
    // Where another one has the conversation, it is still unknown what is unknown.
    place.start(&place.run("s", "r2")).await;
    let unknown = NewRun { resumes: true, ..place.run("s", "r3") };
    assert!(matches!(place.store.admit(&unknown).await.unwrap(), AdmitOutcome::Unknown));
}

fn busy(admission: AdmitOutcome) -> Duration {
    match admission {
        AdmitOutcome::Busy { retry_after } => retry_after,
        other => panic!("not busy but {other:?}"),
    }
}

pub async fn a_conversation_has_one_run_at_a_time(place: &Place) {
    let lease = place.start(&place.run("s", "r1")).await;
    let second = place.run("s", "r2");
    let remaining = busy(place.store.admit(&second).await.unwrap());
    assert!(remaining > Duration::ZERO && remaining <= LEASE_DURATION, "{remaining:?}");
    place.backdoor.let_pass(Duration::from_secs(20)).await;
    let remaining = busy(place.store.admit(&second).await.unwrap());
    assert!(remaining <= Duration::from_secs(10), "{remaining:?}");
    place.store.checkpoint(&lease, None).await.unwrap();
    let remaining = busy(place.store.admit(&second).await.unwrap());
    assert!(remaining > Duration::from_secs(10) && remaining <= LEASE_DURATION, "{remaining:?}");
    // Elsewhere, for another user, or without the conversation there is no reason to wait.
    place.start(&place.run("t", "r3")).await;
    let mut bobs = second.clone();
    bobs.key.user = place.user("bob");
    place.start(&bobs).await;
    let beside = place.start(&NewRun { takes_session: false, ..place.run("s", "r4") }).await;
    place.store.finish(&beside, &ending(1)).await.unwrap();
    busy(place.store.admit(&second).await.unwrap());
    place.store.finish(&lease, &ending(1)).await.unwrap();
    // What was refused is not known.
    place.start(&second).await;
}

pub async fn of_many_equal_requests_one_is_started(place: &Place) {
    let run = place.run("s", "r");
    let admissions = join_all((0..20).map(|_| place.store.admit(&run))).await;
    let (started, others): (Vec<_>, Vec<_>) =
        admissions.into_iter().map(Result::unwrap).partition(|one| matches!(one, AdmitOutcome::Started { .. }));
    assert_eq!(started.len(), 1);
    assert!(others.iter().all(|one| matches!(one, AdmitOutcome::Known { .. })), "{others:?}");
}

pub async fn of_many_requests_in_a_conversation_one_is_started(place: &Place) {
    let runs: Vec<_> = (0..20).map(|number| place.run("s", &format!("r{number}"))).collect();
    // And once more after the one who had it died.
    for _ in 0..2 {
        let admissions = join_all(runs.iter().map(|run| place.store.admit(run))).await;
        let (started, others): (Vec<_>, Vec<_>) =
            admissions.into_iter().map(Result::unwrap).partition(|one| matches!(one, AdmitOutcome::Started { .. }));
        assert_eq!(started.len(), 1, "{others:?}");
        assert!(others.iter().all(|one| matches!(one, AdmitOutcome::Busy { .. })), "{others:?}");
        place.let_leases_expire().await;
    }
}

pub async fn an_admission_that_is_taken_back_leaves_nothing(place: &Place) {
    let run = place.run("s", "r");
    let lease = place.start(&run).await;
    place.store.revoke_admission(&lease).await.unwrap();
    assert!(place.store.follow(&run.key.user, &run.key.request, 0).await.unwrap().is_none());
    // Not only the request may come again: the conversation is free.
    let other = place.start(&place.run("s", "r2")).await;
    place.store.finish(&other, &ending(1)).await.unwrap();
    let again = place.start(&run).await;
    assert_ne!(again.lease_token, lease.lease_token);
    // Whose lease is lost, or who has ended, takes nothing back.
    place.store.revoke_admission(&lease).await.unwrap();
    place.store.checkpoint(&again, None).await.unwrap();
    place.store.finish(&again, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    place.store.revoke_admission(&again).await.unwrap();
    known(place.store.admit(&run).await.unwrap());
    assert_eq!(place.store.get_session(&run.key.user, &session("s")).await.unwrap().unwrap().turns, 1);
}

pub async fn a_request_is_forgotten_after_a_week(place: &Place) {
    let run = place.run("s", "r");
    place.talk("s", "r", b"x").await;
    place.backdoor.let_pass(IDEMPOTENCY_WINDOW - Duration::from_secs(60)).await;
    known(place.store.admit(&run).await.unwrap());
    place.backdoor.let_pass(Duration::from_secs(120)).await;
    let resuming = NewRun { resumes: true, ..run.clone() };
    assert!(matches!(place.store.admit(&resuming).await.unwrap(), AdmitOutcome::Unknown));
    assert!(place.store.follow(&run.key.user, &request("r"), 0).await.unwrap().is_none());
    let again = started(place.store.admit(&run).await.unwrap());
    // And nothing of before comes back with it.
    let followed = place.store.follow(&run.key.user, &request("r"), 0).await.unwrap().unwrap();
    assert!(followed.chunks.is_empty());
    place.store.finish(&again, &RunEnding { turn: Some(turn(b"y")), ..ending(1) }).await.unwrap();
    assert_eq!(place.store.get_session(&run.key.user, &session("s")).await.unwrap().unwrap().turns, 2);
}
