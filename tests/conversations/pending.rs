//! Turns that wait for the results of tools that the client runs.

use std::time::Duration;

use agent_service::conversation::{
    AdmitOutcome, CompletedPendingTurn, LEASE_DURATION, Lease, NewRun, PendingTurnDisposition, PendingTurnId,
    RunEnding, StoreError, ToolResultOutcome,
};
use futures_util::future::join_all;

use crate::place::{Place, ending, session, turn};

/// A call that brings a result takes no conversation yet.
fn giving(place: &Place, session: &str, request: &str) -> NewRun {
    NewRun { takes_session: false, ..place.run(session, request) }
}

/// Starts a turn that waits for the results of calls.
async fn ask(place: &Place, session: &str, request: &str, state: &[u8], calls: &[&str]) {
    let lease = place.start(&place.run(session, request)).await;
    place.store.store_pending_turn(&lease, state, calls).await.unwrap();
    place.store.finish(&lease, &ending(1)).await.unwrap();
}

/// Gives a result in a run of its own, which ends unless it goes on with the turn.
async fn give(place: &Place, session: &str, request: &str, call: &str, result: &[u8]) -> (Lease, ToolResultOutcome) {
    let lease = place.start(&giving(place, session, request)).await;
    let accepted = place.store.record_tool_result(&lease, call, result).await.unwrap();
    if !matches!(accepted, ToolResultOutcome::Complete { .. }) {
        place.store.finish(&lease, &ending(1)).await.unwrap();
    }
    (lease, accepted)
}

type Results = Vec<(String, Vec<u8>)>;

fn complete(accepted: ToolResultOutcome) -> (Vec<u8>, Results, PendingTurnId) {
    match accepted {
        ToolResultOutcome::Complete(CompletedPendingTurn { state, mut results, id: ticket }) => {
            results.sort();
            (state, results, ticket)
        }
        other => panic!("not complete but {other:?}"),
    }
}

fn results(all: &[(&str, &[u8])]) -> Results {
    all.iter().map(|(call, result)| ((*call).to_owned(), result.to_vec())).collect()
}

async fn hand_back(place: &Place, lease: &Lease, ticket: PendingTurnId, after: PendingTurnDisposition) {
    let end = RunEnding { resumed_turn: Some((ticket, after)), ..ending(1) };
    place.store.finish(lease, &end).await.unwrap();
}

pub async fn a_result_whose_answer_was_lost_may_come_again(place: &Place) {
    ask(place, "s", "r1", b"state", &["a", "b"]).await;
    for request in ["r2", "r2", "r3"] {
        let lease = place.start(&giving(place, "s", request)).await;
        let accepted = place.store.record_tool_result(&lease, "a", b"1").await.unwrap();
        match request {
            "r2" => assert!(matches!(accepted, ToolResultOutcome::Pending), "{accepted:?}"),
            _ => assert!(matches!(accepted, ToolResultOutcome::Duplicate), "{accepted:?}"),
        }
        place.store.revoke_admission(&lease).await.unwrap();
    }
    for _ in 0..2 {
        let lease = place.start(&giving(place, "s", "r4")).await;
        let accepted = place.store.record_tool_result(&lease, "b", b"2").await.unwrap();
        assert_eq!(complete(accepted).1, results(&[("a", b"1"), ("b", b"2")]));
        // By then the turn goes on, and no result of it is awaited.
        let late = place.start(&giving(place, "s", "r2")).await;
        let accepted = place.store.record_tool_result(&late, "a", b"1").await.unwrap();
        assert!(matches!(accepted, ToolResultOutcome::Duplicate), "{accepted:?}");
        place.store.revoke_admission(&late).await.unwrap();
        place.store.revoke_admission(&lease).await.unwrap();
    }
}

pub async fn results_are_taken_until_the_last_one_goes_on_with_the_turn(place: &Place) {
    let (_, accepted) = give(place, "s", "r0", "a", b"1").await;
    assert!(matches!(accepted, ToolResultOutcome::UnknownCall), "{accepted:?}");
    let state = [&b"\0\xff state "[..], &[7; 600 << 10]].concat();
    ask(place, "s", "r1", &state, &["a", "b", "c"]).await;
    for (request, session, call, expected) in [
        ("r2", "s", "d", "Unknown"),
        ("r3", "t", "a", "Unknown"),
        ("r4", "s", "b", "Waiting"),
        ("r5", "s", "b", "Duplicate"),
        ("r6", "s", "c", "Waiting"),
    ] {
        let (_, accepted) = give(place, session, request, call, request.as_bytes()).await;
        assert!(format!("{accepted:?}").starts_with(expected), "{request}: {accepted:?}");
    }
    let (lease, accepted) = give(place, "s", "r7", "a", b"\0\xff").await;
    let (kept, given, ticket) = complete(accepted);
    assert!(kept == state);
    assert_eq!(given, results(&[("a", b"\0\xff"), ("b", b"r4"), ("c", b"r6")]));
    // It has the conversation now.
    let other = place.store.admit(&place.run("s", "r8")).await.unwrap();
    assert!(matches!(other, AdmitOutcome::Busy { .. }), "{other:?}");
    let (_, accepted) = give(place, "s", "r9", "a", b"2").await;
    assert!(matches!(accepted, ToolResultOutcome::Duplicate), "{accepted:?}");
    hand_back(place, &lease, ticket, PendingTurnDisposition::Done).await;
    place.start(&place.run("s", "r8")).await;
    let (_, accepted) = give(place, "s", "r10", "a", b"2").await;
    assert!(matches!(accepted, ToolResultOutcome::UnknownCall), "{accepted:?}");
}

pub async fn of_results_that_come_at_once_one_is_the_last(place: &Place) {
    for round in 0..5 {
        let s = format!("s{round}");
        let calls: Vec<_> = (0..6).map(|call| format!("c{call}")).collect();
        let calls: Vec<_> = calls.iter().map(String::as_str).collect();
        ask(place, &s, &format!("ask-{round}"), b"state", &calls).await;
        // Each of them twice.
        let leases =
            join_all((0..12).map(async |n| place.start(&giving(place, &s, &format!("{round}-{n}"))).await)).await;
        let given = leases.iter().zip(calls.iter().chain(&calls));
        let accepted =
            join_all(given.map(|(lease, call)| place.store.record_tool_result(lease, call, call.as_bytes()))).await;
        let mut counts = [0; 3];
        for one in accepted {
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

pub async fn the_last_result_waits_for_the_conversation(place: &Place) {
    ask(place, "s", "r1", b"state", &["a", "b"]).await;
    let holder = place.start(&place.run("s", "r2")).await;
    // What is not the last disturbs nobody.
    let (_, accepted) = give(place, "s", "r3", "a", b"1").await;
    assert!(matches!(accepted, ToolResultOutcome::Pending), "{accepted:?}");
    for request in ["r4", "r5"] {
        // Whoever was refused may be there still.
        let lease = place.start(&giving(place, "s", request)).await;
        let accepted = place.store.record_tool_result(&lease, "b", b"refused").await.unwrap();
        let ToolResultOutcome::Busy { retry_after } = accepted else { panic!("{accepted:?}") };
        assert!(retry_after > Duration::ZERO && retry_after <= LEASE_DURATION, "{retry_after:?}");
    }
    place.store.checkpoint(&holder, None).await.unwrap();
    place.store.finish(&holder, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    let (lease, accepted) = give(place, "s", "r6", "b", b"2").await;
    let (_, given, ticket) = complete(accepted);
    assert_eq!(given, results(&[("a", b"1"), ("b", b"2")]));

    // One that died is no reason to wait either, and has lost it.
    hand_back(place, &lease, ticket, PendingTurnDisposition::Reopened).await;
    let dead = place.start(&place.run("s", "r7")).await;
    place.let_leases_expire().await;
    let (lease, accepted) = give(place, "s", "r8", "b", b"3").await;
    complete(accepted);
    let lost = place.store.checkpoint(&dead, None).await;
    assert!(matches!(lost, Err(StoreError::LeaseLost)), "{lost:?}");
    place.store.checkpoint(&lease, None).await.unwrap();
}

/// A run may have the conversation already when it brings the last result.
pub async fn a_run_that_has_the_conversation_goes_on_with_its_turn(place: &Place) {
    ask(place, "s", "r1", b"state", &["a"]).await;
    let lease = place.start(&place.run("s", "r2")).await;
    let accepted = place.store.record_tool_result(&lease, "a", b"1").await.unwrap();
    let (_, _, ticket) = complete(accepted);
    place.store.checkpoint(&lease, None).await.unwrap();
    hand_back(place, &lease, ticket, PendingTurnDisposition::Done).await;
}

pub async fn a_turn_that_failed_can_be_gone_on_with_again(place: &Place) {
    ask(place, "s", "r1", b"state", &["a", "b"]).await;
    give(place, "s", "r2", "a", b"1").await;
    let (mut lease, accepted) = give(place, "s", "r3", "b", b"2").await;
    let mut ticket = complete(accepted).2;
    for round in 0..3 {
        hand_back(place, &lease, ticket, PendingTurnDisposition::Reopened).await;
        // Only the last one is asked for again.
        let (_, accepted) = give(place, "s", &format!("r4-{round}"), "a", b"never").await;
        assert!(matches!(accepted, ToolResultOutcome::Duplicate), "{accepted:?}");
        let again = give(place, "s", &format!("r5-{round}"), "b", b"3").await;
        let (state, given, new) = complete(again.1);
        assert_eq!(state, b"state");
        assert_eq!(given, results(&[("a", b"1"), ("b", b"3")]));
        (lease, ticket) = (again.0, new);
    }
    hand_back(place, &lease, ticket, PendingTurnDisposition::Done).await;
    let (_, accepted) = give(place, "s", "r6", "b", b"4").await;
    assert!(matches!(accepted, ToolResultOutcome::UnknownCall), "{accepted:?}");
}

pub async fn a_turn_takes_the_place_of_another_one_that_waits(place: &Place) {
    ask(place, "s", "r1", b"one", &["a", "b"]).await;
    give(place, "s", "r2", "a", b"1").await;
    ask(place, "s", "r3", b"two", &["b", "c"]).await;
    ask(place, "t", "r4", b"other", &["a"]).await;
    let (_, accepted) = give(place, "s", "r5", "a", b"1").await;
    assert!(matches!(accepted, ToolResultOutcome::UnknownCall), "{accepted:?}");
    let (_, accepted) = give(place, "s", "r6", "b", b"2").await;
    assert!(matches!(accepted, ToolResultOutcome::Pending), "{accepted:?}");
    let (lease, accepted) = give(place, "s", "r7", "c", b"3").await;
    let (state, given, ticket) = complete(accepted);
    assert_eq!((&*state, given), (&b"two"[..], results(&[("b", b"2"), ("c", b"3")])));
    // One that goes on may come to wait for other tools. Its old ticket ends nothing of that.
    place.store.store_pending_turn(&lease, b"three", &["d"]).await.unwrap();
    hand_back(place, &lease, ticket.clone(), PendingTurnDisposition::Done).await;
    let (lease, accepted) = give(place, "s", "r8", "d", b"4").await;
    let (state, given, _) = complete(accepted);
    assert_eq!((&*state, given), (&b"three"[..], results(&[("d", b"4")])));
    hand_back(place, &lease, ticket, PendingTurnDisposition::Reopened).await;
    let (_, accepted) = give(place, "t", "r9", "a", b"5").await;
    assert_eq!(complete(accepted).0, b"other");
}

pub async fn a_turn_waits_for_a_day_and_twenty_wait_at_most(place: &Place) {
    ask(place, "s", "r1", b"state", &["a", "b"]).await;
    place.backdoor.let_pass(Duration::from_secs(86_400 - 60)).await;
    let (_, accepted) = give(place, "s", "r2", "a", b"1").await;
    assert!(matches!(accepted, ToolResultOutcome::Pending), "{accepted:?}");
    place.backdoor.let_pass(Duration::from_secs(120)).await;
    let (_, accepted) = give(place, "s", "r3", "b", b"2").await;
    assert!(matches!(accepted, ToolResultOutcome::UnknownCall), "{accepted:?}");

    for number in 0..21 {
        ask(place, &format!("s{number}"), &format!("ask-{number}"), b"state", &["a", "b"]).await;
        place.backdoor.let_pass(Duration::from_secs(1)).await;
    }
    for number in 0..21 {
        let (_, accepted) = give(place, &format!("s{number}"), &format!("give-{number}"), "a", b"1").await;
        let expected = if number == 0 { "Unknown" } else { "Waiting" };
        assert!(format!("{accepted:?}").starts_with(expected), "{number}: {accepted:?}");
    }
}

pub async fn what_waits_is_kept_by_whoever_has_the_lease_alone(place: &Place) {
    ask(place, "s", "r1", b"state", &["a"]).await;
    let ended = place.start(&place.run("s", "r2")).await;
    place.store.finish(&ended, &ending(1)).await.unwrap();
    let foreign = Lease { lease_token: uuid::Uuid::new_v4(), ..place.start(&place.run("s", "r3")).await };
    for lease in [&ended, &foreign] {
        let kept = place.store.store_pending_turn(lease, b"never", &["b"]).await;
        assert!(matches!(kept, Err(StoreError::LeaseLost)), "{kept:?}");
        let accepted = place.store.record_tool_result(lease, "a", b"never").await;
        assert!(matches!(accepted, Err(StoreError::LeaseLost)), "{accepted:?}");
    }
    place.let_leases_expire().await;
    let (_, accepted) = give(place, "s", "r4", "a", b"1").await;
    assert_eq!(complete(accepted).1, results(&[("a", b"1")]));
    assert!(place.store.get_session(&place.user("ann"), &session("s")).await.unwrap().is_none());
}
