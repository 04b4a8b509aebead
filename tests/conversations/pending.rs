use std::time::Duration;

use agent_service::conversation::{
    AdmitOutcome, CompletedPendingTurn, LEASE_DURATION, Lease, NewRun, PendingTurnDisposition, PendingTurnId,
    RunEnding, StoreError, ToolResultOutcome,
};
use futures_util::future::join_all;

use crate::fixture::{StoreFixture, ending, session, turn};

fn with_result(fixture: &StoreFixture, session: &str, request: &str) -> NewRun {
    NewRun { takes_session: false, ..fixture.run(session, request) }
}

async fn ask(fixture: &StoreFixture, session: &str, request: &str, state: &[u8], calls: &[&str]) {
    let lease = fixture.start(&fixture.run(session, request)).await;
    fixture.store.store_pending_turn(&lease, state, calls).await.unwrap();
    fixture.store.finish(&lease, &ending(1)).await.unwrap();
}

/// The run ends unless it resumes the turn.
async fn give(
    fixture: &StoreFixture,
    session: &str,
    request: &str,
    call: &str,
    result: &[u8],
) -> (Lease, ToolResultOutcome) {
    let lease = fixture.start(&with_result(fixture, session, request)).await;
    let outcome = fixture.store.record_tool_result(&lease, call, result).await.unwrap();
    if !matches!(outcome, ToolResultOutcome::Complete { .. }) {
        fixture.store.finish(&lease, &ending(1)).await.unwrap();
    }
    (lease, outcome)
}

type Results = Vec<(String, Vec<u8>)>;

fn complete(outcome: ToolResultOutcome) -> (Vec<u8>, Results, PendingTurnId) {
    match outcome {
        ToolResultOutcome::Complete(CompletedPendingTurn { state, mut results, id: pending_turn }) => {
            results.sort();
            (state, results, pending_turn)
        }
        other => panic!("not complete: {other:?}"),
    }
}

fn results(all: &[(&str, &[u8])]) -> Results {
    all.iter().map(|(call, result)| ((*call).to_owned(), result.to_vec())).collect()
}

async fn finish_resumed(
    fixture: &StoreFixture,
    lease: &Lease,
    pending_turn: PendingTurnId,
    after: PendingTurnDisposition,
) {
    let end = RunEnding { resumed_turn: Some((pending_turn, after)), ..ending(1) };
    fixture.store.finish(lease, &end).await.unwrap();
}

pub async fn tool_result_retry_of_same_request_is_no_duplicate(fixture: &StoreFixture) {
    ask(fixture, "s", "r1", b"state", &["a", "b"]).await;
    for request in ["r2", "r2", "r3"] {
        let lease = fixture.start(&with_result(fixture, "s", request)).await;
        let outcome = fixture.store.record_tool_result(&lease, "a", b"1").await.unwrap();
        match request {
            "r2" => assert!(matches!(outcome, ToolResultOutcome::Pending), "{outcome:?}"),
            _ => assert!(matches!(outcome, ToolResultOutcome::Duplicate), "{outcome:?}"),
        }
        fixture.store.revoke_admission(&lease).await.unwrap();
    }
    for _ in 0..2 {
        let lease = fixture.start(&with_result(fixture, "s", "r4")).await;
        let outcome = fixture.store.record_tool_result(&lease, "b", b"2").await.unwrap();
        assert_eq!(complete(outcome).1, results(&[("a", b"1"), ("b", b"2")]));
        let late = fixture.start(&with_result(fixture, "s", "r2")).await;
        let outcome = fixture.store.record_tool_result(&late, "a", b"1").await.unwrap();
        assert!(matches!(outcome, ToolResultOutcome::Duplicate), "{outcome:?}");
        fixture.store.revoke_admission(&late).await.unwrap();
        fixture.store.revoke_admission(&lease).await.unwrap();
    }
}

pub async fn last_tool_result_resumes_turn(fixture: &StoreFixture) {
    let (_, outcome) = give(fixture, "s", "r0", "a", b"1").await;
    assert!(matches!(outcome, ToolResultOutcome::UnknownCall), "{outcome:?}");
    let state = [&b"\0\xff state "[..], &[7; 600 << 10]].concat();
    ask(fixture, "s", "r1", &state, &["a", "b", "c"]).await;
    for (request, session, call, expected) in [
        ("r2", "s", "d", "UnknownCall"),
        ("r3", "t", "a", "UnknownCall"),
        ("r4", "s", "b", "Pending"),
        ("r5", "s", "b", "Duplicate"),
        ("r6", "s", "c", "Pending"),
    ] {
        let (_, outcome) = give(fixture, session, request, call, request.as_bytes()).await;
        assert!(format!("{outcome:?}").starts_with(expected), "{request}: {outcome:?}");
    }
    let (lease, outcome) = give(fixture, "s", "r7", "a", b"\0\xff").await;
    let (stored, given, pending_turn) = complete(outcome);
    assert!(stored == state);
    assert_eq!(given, results(&[("a", b"\0\xff"), ("b", b"r4"), ("c", b"r6")]));
    let other = fixture.store.admit(&fixture.run("s", "r8")).await.unwrap();
    assert!(matches!(other, AdmitOutcome::Busy { .. }), "{other:?}");
    let (_, outcome) = give(fixture, "s", "r9", "a", b"2").await;
    assert!(matches!(outcome, ToolResultOutcome::Duplicate), "{outcome:?}");
    finish_resumed(fixture, &lease, pending_turn, PendingTurnDisposition::Done).await;
    fixture.start(&fixture.run("s", "r8")).await;
    let (_, outcome) = give(fixture, "s", "r10", "a", b"2").await;
    assert!(matches!(outcome, ToolResultOutcome::UnknownCall), "{outcome:?}");
}

pub async fn concurrent_tool_results_have_one_last(fixture: &StoreFixture) {
    for round in 0..5 {
        let s = format!("s{round}");
        let calls: Vec<_> = (0..6).map(|call| format!("c{call}")).collect();
        let calls: Vec<_> = calls.iter().map(String::as_str).collect();
        ask(fixture, &s, &format!("ask-{round}"), b"state", &calls).await;
        let leases =
            join_all((0..12).map(async |n| fixture.start(&with_result(fixture, &s, &format!("{round}-{n}"))).await))
                .await;
        let given = leases.iter().zip(calls.iter().chain(&calls));
        let outcome =
            join_all(given.map(|(lease, call)| fixture.store.record_tool_result(lease, call, call.as_bytes()))).await;
        let mut counts = [0; 3];
        for one in outcome {
            match one.unwrap() {
                ToolResultOutcome::Pending => counts[0] += 1,
                ToolResultOutcome::Duplicate => counts[1] += 1,
                ToolResultOutcome::Complete(CompletedPendingTurn { results, .. }) => {
                    counts[2] += 1;
                    assert_eq!(results.len(), 6);
                    assert!(results.iter().all(|(call, result)| call.as_bytes() == result));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(counts, [5, 6, 1]);
    }
}

pub async fn last_tool_result_is_busy_while_session_is_held(fixture: &StoreFixture) {
    ask(fixture, "s", "r1", b"state", &["a", "b"]).await;
    let blocking = fixture.start(&fixture.run("s", "r2")).await;
    let (_, outcome) = give(fixture, "s", "r3", "a", b"1").await;
    assert!(matches!(outcome, ToolResultOutcome::Pending), "{outcome:?}");
    for request in ["r4", "r5"] {
        let lease = fixture.start(&with_result(fixture, "s", request)).await;
        let outcome = fixture.store.record_tool_result(&lease, "b", b"refused").await.unwrap();
        let ToolResultOutcome::Busy { retry_after } = outcome else { panic!("{outcome:?}") };
        assert!(retry_after > Duration::ZERO && retry_after <= LEASE_DURATION, "{retry_after:?}");
    }
    fixture.store.checkpoint(&blocking, None).await.unwrap();
    fixture.store.finish(&blocking, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    let (lease, outcome) = give(fixture, "s", "r6", "b", b"2").await;
    let (_, given, pending_turn) = complete(outcome);
    assert_eq!(given, results(&[("a", b"1"), ("b", b"2")]));

    finish_resumed(fixture, &lease, pending_turn, PendingTurnDisposition::Reopened).await;
    let dead = fixture.start(&fixture.run("s", "r7")).await;
    fixture.let_leases_expire().await;
    let (lease, outcome) = give(fixture, "s", "r8", "b", b"3").await;
    complete(outcome);
    let lost = fixture.store.checkpoint(&dead, None).await;
    assert!(matches!(lost, Err(StoreError::LeaseLost)), "{lost:?}");
    fixture.store.checkpoint(&lease, None).await.unwrap();
}

pub async fn run_holding_the_session_resumes_its_turn(fixture: &StoreFixture) {
    ask(fixture, "s", "r1", b"state", &["a"]).await;
    let lease = fixture.start(&fixture.run("s", "r2")).await;
    let outcome = fixture.store.record_tool_result(&lease, "a", b"1").await.unwrap();
    let (_, _, pending_turn) = complete(outcome);
    fixture.store.checkpoint(&lease, None).await.unwrap();
    finish_resumed(fixture, &lease, pending_turn, PendingTurnDisposition::Done).await;
}

pub async fn reopened_turn_takes_its_last_result_again(fixture: &StoreFixture) {
    ask(fixture, "s", "r1", b"state", &["a", "b"]).await;
    give(fixture, "s", "r2", "a", b"1").await;
    let (mut lease, outcome) = give(fixture, "s", "r3", "b", b"2").await;
    let mut pending_turn = complete(outcome).2;
    for round in 0..3 {
        finish_resumed(fixture, &lease, pending_turn, PendingTurnDisposition::Reopened).await;
        let (_, outcome) = give(fixture, "s", &format!("r4-{round}"), "a", b"never").await;
        assert!(matches!(outcome, ToolResultOutcome::Duplicate), "{outcome:?}");
        let again = give(fixture, "s", &format!("r5-{round}"), "b", b"3").await;
        let (state, given, new) = complete(again.1);
        assert_eq!(state, b"state");
        assert_eq!(given, results(&[("a", b"1"), ("b", b"3")]));
        (lease, pending_turn) = (again.0, new);
    }
    finish_resumed(fixture, &lease, pending_turn, PendingTurnDisposition::Done).await;
    let (_, outcome) = give(fixture, "s", "r6", "b", b"4").await;
    assert!(matches!(outcome, ToolResultOutcome::UnknownCall), "{outcome:?}");
}

pub async fn pending_turn_replaces_that_of_its_session(fixture: &StoreFixture) {
    ask(fixture, "s", "r1", b"one", &["a", "b"]).await;
    give(fixture, "s", "r2", "a", b"1").await;
    ask(fixture, "s", "r3", b"two", &["b", "c"]).await;
    ask(fixture, "t", "r4", b"other", &["a"]).await;
    let (_, outcome) = give(fixture, "s", "r5", "a", b"1").await;
    assert!(matches!(outcome, ToolResultOutcome::UnknownCall), "{outcome:?}");
    let (_, outcome) = give(fixture, "s", "r6", "b", b"2").await;
    assert!(matches!(outcome, ToolResultOutcome::Pending), "{outcome:?}");
    let (lease, outcome) = give(fixture, "s", "r7", "c", b"3").await;
    let (state, given, pending_turn) = complete(outcome);
    assert_eq!((&*state, given), (&b"two"[..], results(&[("b", b"2"), ("c", b"3")])));
    // A resumed turn may wait for other tools. Its old id ends nothing of that.
    fixture.store.store_pending_turn(&lease, b"three", &["d"]).await.unwrap();
    finish_resumed(fixture, &lease, pending_turn.clone(), PendingTurnDisposition::Done).await;
    let (lease, outcome) = give(fixture, "s", "r8", "d", b"4").await;
    let (state, given, _) = complete(outcome);
    assert_eq!((&*state, given), (&b"three"[..], results(&[("d", b"4")])));
    finish_resumed(fixture, &lease, pending_turn, PendingTurnDisposition::Reopened).await;
    let (_, outcome) = give(fixture, "t", "r9", "a", b"5").await;
    assert_eq!(complete(outcome).0, b"other");
}

pub async fn pending_turns_expire_and_are_limited(fixture: &StoreFixture) {
    ask(fixture, "s", "r1", b"state", &["a", "b"]).await;
    fixture.backdoor.let_pass(Duration::from_secs(86_400 - 60)).await;
    let (_, outcome) = give(fixture, "s", "r2", "a", b"1").await;
    assert!(matches!(outcome, ToolResultOutcome::Pending), "{outcome:?}");
    fixture.backdoor.let_pass(Duration::from_secs(120)).await;
    let (_, outcome) = give(fixture, "s", "r3", "b", b"2").await;
    assert!(matches!(outcome, ToolResultOutcome::UnknownCall), "{outcome:?}");

    for number in 0..21 {
        ask(fixture, &format!("s{number}"), &format!("ask-{number}"), b"state", &["a", "b"]).await;
        fixture.backdoor.let_pass(Duration::from_secs(1)).await;
    }
    for number in 0..21 {
        let (_, outcome) = give(fixture, &format!("s{number}"), &format!("give-{number}"), "a", b"1").await;
        let expected = if number == 0 { "UnknownCall" } else { "Pending" };
        assert!(format!("{outcome:?}").starts_with(expected), "{number}: {outcome:?}");
    }
}

pub async fn pending_turn_calls_require_the_lease(fixture: &StoreFixture) {
    ask(fixture, "s", "r1", b"state", &["a"]).await;
    let ended = fixture.start(&fixture.run("s", "r2")).await;
    fixture.store.finish(&ended, &ending(1)).await.unwrap();
    let foreign = Lease { lease_token: uuid::Uuid::new_v4(), ..fixture.start(&fixture.run("s", "r3")).await };
    for lease in [&ended, &foreign] {
        let stored = fixture.store.store_pending_turn(lease, b"never", &["b"]).await;
        assert!(matches!(stored, Err(StoreError::LeaseLost)), "{stored:?}");
        let outcome = fixture.store.record_tool_result(lease, "a", b"never").await;
        assert!(matches!(outcome, Err(StoreError::LeaseLost)), "{outcome:?}");
    }
    fixture.let_leases_expire().await;
    let (_, outcome) = give(fixture, "s", "r4", "a", b"1").await;
    assert_eq!(complete(outcome).1, results(&[("a", b"1")]));
    assert!(fixture.store.get_session(&fixture.user("ann"), &session("s")).await.unwrap().is_none());
}
