use agent_service::{
    conversation::{
        AdmitOutcome, FramePage, History, NewRun, NewTurn, QuotaKind, RunEnding, RunOutcome, Session, SessionCursor,
        SessionSelection, SessionUpdate, StoreError, Summary, ToolResultOutcome, UserQuotas,
    },
    identity::UserId,
};
use futures_util::FutureExt as _;

use crate::fixture::{StoreFixture, chunk, ending, request, session, turn, within_one_minute};

pub async fn session_exists_from_its_first_turn(fixture: &StoreFixture) {
    let (user, s) = (fixture.user("ann"), session("s"));
    let seen = async || fixture.store.get_session(&user, &s).await.unwrap();
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    assert_eq!(seen().await, None);
    fixture.store.finish(&lease, &RunEnding { outcome: RunOutcome::Repeatable, ..ending(1) }).await.unwrap();
    assert_eq!(seen().await, None);
    assert!(fixture.store.list_sessions(&user, 10, None).await.unwrap().is_empty());
    assert!(fixture.store.list_turns(&user, &s, None, 10).await.unwrap().is_empty());
    assert_eq!(fixture.store.load_history(&user, &s, 1_000).await.unwrap(), History::default());

    let before = fixture.backdoor.now();
    let lease = fixture.start(&fixture.run("s", "r2")).await;
    let said =
        NewTurn { tokens: 4_000_000_000, is_complete: false, provisional_title: "Ein Anfang ✓".into(), ..turn(b"1") };
    fixture.store.finish(&lease, &RunEnding { turn: Some(said), ..ending(1) }).await.unwrap();
    let first = seen().await.unwrap();
    assert_eq!((first.id.as_str(), first.title.as_str(), first.turns, &first.running), ("s", "Ein Anfang ✓", 1, &None));
    assert_eq!(first.created_at, first.updated_at);
    // Clocks of two machines may differ.
    assert!((first.created_at.as_second() - before.as_second()).abs() < 60);
    let lease = fixture.start(&fixture.run("s", "r3")).await;
    assert_eq!(seen().await, Some(Session { running: Some(request("r3")), ..first.clone() }));
    let again = NewTurn { provisional_title: "Something else".into(), ..turn(b"2") };
    fixture.store.finish(&lease, &RunEnding { turn: Some(again), ..ending(1) }).await.unwrap();
    let second = seen().await.unwrap();
    assert!(second.updated_at > first.updated_at);
    assert_eq!(second, Session { turns: 2, updated_at: second.updated_at, ..first.clone() });
    assert_eq!(fixture.store.list_sessions(&user, 10, None).await.unwrap(), std::slice::from_ref(&second));

    let turns = fixture.store.list_turns(&user, &s, None, 10).await.unwrap();
    let told: Vec<_> = turns
        .iter()
        .map(|turn| (turn.seq, turn.request.as_str(), &*turn.record, turn.tokens, turn.is_complete))
        .collect();
    assert_eq!(told, [(2, "r3", &b"2"[..], 10, true), (1, "r2", &b"1"[..], 4_000_000_000, false)]);
    assert_eq!((turns[1].created_at, turns[0].created_at), (first.updated_at, second.updated_at));
    // Without a turn nothing changes; a run without the session, or with an expired lease, is not running.
    let beside = fixture.start(&NewRun { takes_session: false, ..fixture.run("s", "r4") }).await;
    assert_eq!(seen().await, Some(second.clone()));
    fixture.store.finish(&beside, &ending(1)).await.unwrap();
    fixture.start(&fixture.run("s", "r5")).await;
    fixture.let_leases_expire().await;
    let listed = fixture.store.list_sessions(&user, 10, None).await.unwrap();
    assert_eq!(listed.iter().map(|one| (&one.running, one.turns)).collect::<Vec<_>>(), [(&None, 2)]);
    assert_eq!(seen().await.unwrap().running, None);
}

async fn pages(fixture: &StoreFixture, user: &UserId, size: usize) -> Vec<Session> {
    let (mut all, mut after): (Vec<Session>, _) = (Vec::new(), None);
    loop {
        let page = fixture.store.list_sessions(user, size, after.as_ref()).await.unwrap();
        assert!(page.len() <= size);
        let Some(last) = page.last() else { return all };
        after = Some(SessionCursor { updated_at: last.updated_at, id: last.id.clone() });
        all.extend(page);
    }
}

fn ids(sessions: &[Session]) -> Vec<&str> {
    sessions.iter().map(|session| session.id.as_str()).collect()
}

pub async fn session_pages_are_complete_and_latest_first(fixture: &StoreFixture) {
    let user = fixture.user("ann");
    for id in ["b", "a", "d", "c"] {
        fixture.talk(id, &format!("r-{id}"), b"x").await;
    }
    // Ids sort by bytes in every store.
    let equal = ["Z", "a1", "a10", "a2", "Ä", "z", "ß", "中", "-", "_"];
    let talks = async {
        for id in equal {
            fixture.talk(id, &format!("r-{id}"), b"x").await;
        }
    };
    fixture.backdoor.at_one_moment(&user, talks.boxed()).await;
    fixture.talk("d", "r-d2", b"x").await;
    let mut expected = equal.to_vec();
    expected.sort_unstable();
    expected.reverse();
    let expected: Vec<_> = [&["d"], &*expected, &["c", "a", "b"]].concat();
    for size in [1, 2, 3, 5, 50] {
        assert_eq!(ids(&pages(fixture, &user, size).await), expected, "pages of {size}");
    }
    let moments: Vec<_> = pages(fixture, &user, 50).await.iter().map(|one| one.updated_at).collect();
    assert!(moments[1..11].iter().all(|moment| *moment == moments[1]), "{moments:?}");
    let latest = fixture.store.list_sessions(&user, 3, None).await.unwrap().pop().unwrap();
    let after = SessionCursor { updated_at: latest.updated_at, id: latest.id.clone() };
    fixture.store.delete_sessions(&user, &SessionSelection::Listed(vec![latest.id])).await.unwrap();
    let next = fixture.store.list_sessions(&user, 50, Some(&after)).await.unwrap();
    assert_eq!(ids(&next), expected[3..]);
}

pub async fn turn_pages_are_latest_first(fixture: &StoreFixture) {
    let (user, s) = (fixture.user("ann"), session("s"));
    for number in 1..=12 {
        fixture.talk("s", &format!("r{number}"), format!("turn {number}").as_bytes()).await;
    }
    fixture.talk("s2", "other", b"other").await;
    let numbers = async |before, limit| {
        let turns = fixture.store.list_turns(&user, &s, before, limit).await.unwrap();
        assert!(turns.iter().all(|turn| turn.record == format!("turn {}", turn.seq).as_bytes()));
        turns.iter().map(|turn| turn.seq).collect::<Vec<_>>()
    };
    assert_eq!(numbers(None, 5).await, [12, 11, 10, 9, 8]);
    assert_eq!(numbers(Some(8), 5).await, [7, 6, 5, 4, 3]);
    assert_eq!(numbers(Some(3), 5).await, [2, 1]);
    assert_eq!(numbers(Some(1), 5).await, [0_u32; 0]);
    assert_eq!(numbers(Some(100), 1).await, [12]);
    assert_eq!(numbers(None, 100).await, (1..=12).rev().collect::<Vec<_>>());
}

pub async fn history_fits_the_token_budget(fixture: &StoreFixture) {
    let (user, s) = (fixture.user("ann"), session("s"));
    let told = async |max_tokens| {
        let past = fixture.store.load_history(&user, &s, max_tokens).await.unwrap();
        (past.turns.iter().map(|turn| turn.seq).collect::<Vec<_>>(), past.summary.map(|summary| summary.text))
    };
    for (number, tokens) in [(1, 50), (2, 10), (3, 0), (4, 20), (5, 30)] {
        let lease = fixture.start(&fixture.run("s", &format!("r{number}"))).await;
        let said = NewTurn { tokens, ..turn(format!("turn {number}").as_bytes()) };
        fixture.store.finish(&lease, &RunEnding { turn: Some(said), ..ending(1) }).await.unwrap();
    }
    for (budget, expected) in [
        (0, vec![5]),
        (29, vec![5]),
        (30, vec![5]),
        (49, vec![5]),
        (50, vec![4, 5]),
        // A turn without tokens may count as one.
        (61, vec![2, 3, 4, 5]),
        // The walk stops at the first turn that does not fit, even if earlier ones would.
        (110, vec![2, 3, 4, 5]),
        (111, vec![1, 2, 3, 4, 5]),
        (u32::MAX, vec![1, 2, 3, 4, 5]),
    ] {
        assert_eq!(told(budget).await, (expected, None), "{budget}");
    }
    let past = fixture.store.load_history(&user, &s, 50).await.unwrap();
    let mut listed = fixture.store.list_turns(&user, &s, None, 2).await.unwrap();
    listed.reverse();
    assert_eq!(past.turns, listed);

    let note = async |through, text: &str| {
        let summary = SessionUpdate::Summary(Summary { text: text.to_owned(), through });
        fixture.store.update_session(&user, &s, &summary).await.unwrap();
    };
    note(2, "two").await;
    let summary = |text: &str| Some(text.to_owned());
    assert_eq!(told(1_000).await, (vec![3, 4, 5], summary("two")));
    assert_eq!(told(50).await, (vec![4, 5], summary("two")));
    for through in [1, 2] {
        note(through, "late").await;
        assert_eq!(told(1_000).await, (vec![3, 4, 5], summary("two")));
    }
    note(4, "four").await;
    assert_eq!(fixture.store.load_history(&user, &s, 0).await.unwrap().summary.unwrap().through, 4);
    assert_eq!(told(0).await, (vec![5], summary("four")));
    // A summary that covers more turns than there are is of a deleted session.
    note(6, "of another").await;
    assert_eq!(told(0).await, (vec![5], summary("four")));
    note(5, "all").await;
    assert_eq!(told(1_000).await, (vec![], summary("all")));
    fixture.talk("s", "r6", b"turn 6").await;
    assert_eq!(told(0).await, (vec![6], summary("all")));
}

pub async fn generated_title_replaces_only_provisional_title(fixture: &StoreFixture) {
    let (user, s) = (fixture.user("ann"), session("s"));
    let title = async || fixture.store.get_session(&user, &s).await.unwrap().unwrap().title;
    let note = async |title: &str| {
        fixture.store.update_session(&user, &s, &SessionUpdate::Title(title.to_owned())).await.unwrap()
    };
    fixture.talk("s", "r1", b"x").await;
    let before = fixture.store.get_session(&user, &s).await.unwrap().unwrap();
    note("Of the model ✓").await;
    assert_eq!(title().await, "Of the model ✓");
    note("Of the model again").await;
    assert_eq!(title().await, "Of the model ✓");
    let renamed = fixture.store.rename_session(&user, &s, "Of the user").await.unwrap();
    assert_eq!(renamed, Some(Session { title: "Of the user".to_owned(), ..before }));
    assert_eq!(renamed, fixture.store.get_session(&user, &s).await.unwrap());
    note("Too late").await;
    assert_eq!(title().await, "Of the user");
    fixture.store.rename_session(&user, &s, "Of the user again").await.unwrap().unwrap();
    assert_eq!(title().await, "Of the user again");
    fixture.talk("s", "r2", b"y").await;
    assert_eq!(title().await, "Of the user again");

    fixture.talk("t", "r3", b"x").await;
    let running = fixture.start(&fixture.run("t", "r4")).await;
    let renamed = fixture.store.rename_session(&user, &session("t"), "First").await.unwrap().unwrap();
    assert_eq!(renamed.running, Some(running.key.request));
    fixture.store.update_session(&user, &session("t"), &SessionUpdate::Title("Second".into())).await.unwrap();
    assert_eq!(fixture.store.get_session(&user, &session("t")).await.unwrap().unwrap().title, "First");
}

pub async fn update_of_absent_session_is_ignored(fixture: &StoreFixture) {
    let (user, s) = (fixture.user("ann"), session("s"));
    let findings = [
        SessionUpdate::Title("Title".to_owned()),
        SessionUpdate::Summary(Summary { text: "Summary".to_owned(), through: 1 }),
    ];
    for finding in &findings {
        fixture.store.update_session(&user, &s, finding).await.unwrap();
    }
    assert_eq!(fixture.store.rename_session(&user, &s, "Title").await.unwrap(), None);
    assert_eq!(fixture.store.get_session(&user, &s).await.unwrap(), None);
    assert!(fixture.store.list_sessions(&user, 10, None).await.unwrap().is_empty());
    fixture.talk("s", "r", b"x").await;
    assert_eq!(fixture.store.get_session(&user, &s).await.unwrap().unwrap().title, "Provisional");
    assert_eq!(fixture.store.load_history(&user, &s, 100).await.unwrap().summary, None);
}

async fn is_gone(fixture: &StoreFixture, id: &str, requests: &[&str]) {
    let (user, s) = (fixture.user("ann"), session(id));
    assert_eq!(fixture.store.get_session(&user, &s).await.unwrap(), None);
    assert!(fixture.store.list_turns(&user, &s, None, 10).await.unwrap().is_empty());
    assert_eq!(fixture.store.load_history(&user, &s, 1_000).await.unwrap(), History::default());
    for one in requests {
        assert!(fixture.store.follow(&user, &request(one), &FramePage::after(0)).await.unwrap().is_none(), "{one}");
    }
}

pub async fn delete_removes_everything_of_sessions(fixture: &StoreFixture) {
    let (user, store) = (fixture.user("ann"), &fixture.store);
    for id in ["s", "t", "u"] {
        fixture.talk(id, &format!("{id}1"), id.as_bytes()).await;
        let note = SessionUpdate::Summary(Summary { text: "Summary".to_owned(), through: 1 });
        store.update_session(&user, &session(id), &note).await.unwrap();
        let asking = fixture.start(&fixture.run(id, &format!("{id}2"))).await;
        store.store_pending_turn(&asking, b"state", &["c", "d"]).await.unwrap();
        let end = RunEnding { profile: Some(b"profile".to_vec()), ..ending(1) };
        store.finish(&asking, &end).await.unwrap();
    }
    let running = fixture.start(&fixture.run("s", "s3")).await;
    store.checkpoint(&running, Some(&chunk(1, 1))).await.unwrap();
    let beside = fixture.start(&NewRun { takes_session: false, ..fixture.run("s", "s4") }).await;
    let which = SessionSelection::Listed(vec![session("s"), session("none"), session("u")]);
    assert_eq!(store.delete_sessions(&user, &which).await.unwrap(), 2);
    is_gone(fixture, "s", &["s1", "s2", "s3", "s4"]).await;
    is_gone(fixture, "u", &["u1", "u2"]).await;
    assert_eq!(ids(&store.list_sessions(&user, 10, None).await.unwrap()), ["t"]);
    assert_eq!(store.delete_sessions(&user, &which).await.unwrap(), 0);
    assert_eq!(store.delete_sessions(&user, &SessionSelection::Listed(Vec::new())).await.unwrap(), 0);

    for lease in [&running, &beside] {
        let end = || RunEnding { turn: Some(turn(b"back")), profile: Some(b"back".to_vec()), tokens: 7, ..ending(2) };
        match store.checkpoint(lease, Some(&chunk(2, 1))).await {
            Ok(signals) => assert!(signals.is_cancelled),
            Err(StoreError::LeaseLost) => {}
            other => panic!("{other:?}"),
        }
        let ended = store.finish(lease, &end()).await;
        assert!(matches!(ended, Err(StoreError::LeaseLost)), "{ended:?}");
        let stored = store.store_pending_turn(lease, b"back", &["c"]).await;
        assert!(matches!(stored, Err(StoreError::LeaseLost)), "{stored:?}");
    }
    is_gone(fixture, "s", &["s1", "s2", "s3", "s4"]).await;
    let with_result = |id: &str, request: &str| NewRun { takes_session: false, ..fixture.run(id, request) };
    let lease = fixture.start(&with_result("s", "s5")).await;
    assert!(matches!(store.record_tool_result(&lease, "c", b"1").await.unwrap(), ToolResultOutcome::UnknownCall));
    let lease = fixture.start(&with_result("t", "t5")).await;
    assert!(matches!(store.record_tool_result(&lease, "c", b"1").await.unwrap(), ToolResultOutcome::Pending));
    let past = store.load_history(&user, &session("t"), 10).await.unwrap();
    assert_eq!(past.summary.unwrap().text, "Summary");
    assert!(matches!(store.admit(&fixture.run("t", "t1")).await.unwrap(), AdmitOutcome::Known { .. }));
    let AdmitOutcome::Started { lease, profile, .. } = store.admit(&fixture.run("s", "s1")).await.unwrap() else {
        panic!()
    };
    assert_eq!(profile.unwrap(), b"profile");
    store.finish(&lease.take(), &RunEnding { turn: Some(turn(b"new")), ..ending(1) }).await.unwrap();
    let new = store.load_history(&user, &session("s"), 10).await.unwrap();
    assert_eq!((new.turns.len(), new.turns[0].seq, new.summary), (1, 1, None));
}

pub async fn delete_all_removes_everything_of_user(fixture: &StoreFixture) {
    let (user, store) = (fixture.user("ann"), &fixture.store);
    for id in ["s", "t"] {
        fixture.talk(id, &format!("{id}1"), id.as_bytes()).await;
    }
    let lease = fixture.start(&fixture.run("s", "s2")).await;
    let end = RunEnding { profile: Some(b"profile".to_vec()), tokens: 100, ..ending(1) };
    store.finish(&lease, &end).await.unwrap();
    let asking = fixture.start(&fixture.run("v", "v1")).await;
    store.store_pending_turn(&asking, b"state", &["c"]).await.unwrap();
    assert_eq!(store.delete_sessions(&user, &SessionSelection::All).await.unwrap(), 2);
    is_gone(fixture, "s", &["s1", "s2"]).await;
    is_gone(fixture, "t", &["t1"]).await;
    is_gone(fixture, "v", &["v1"]).await;
    assert!(store.list_sessions(&user, 10, None).await.unwrap().is_empty());
    let ended = store.finish(&asking, &RunEnding { turn: Some(turn(b"back")), ..ending(1) }).await;
    assert!(matches!(ended, Err(StoreError::LeaseLost)), "{ended:?}");
    let AdmitOutcome::Started { lease, profile, .. } = store.admit(&fixture.run("u", "u1")).await.unwrap() else {
        panic!("not started")
    };
    assert_eq!(profile, None);
    store.finish(&lease.take(), &ending(1)).await.unwrap();
    let with_result = fixture.start(&NewRun { takes_session: false, ..fixture.run("v", "v2") }).await;
    assert!(matches!(store.record_tool_result(&with_result, "c", b"1").await.unwrap(), ToolResultOutcome::UnknownCall));
    assert_eq!(store.delete_sessions(&user, &SessionSelection::All).await.unwrap(), 0);
}

pub async fn used_quotas_survive_deletion(fixture: &StoreFixture) {
    within_one_minute(fixture, async |attempt| {
        let mut run = fixture.run("s", "r1");
        run.key.user = fixture.user(&format!("ann{attempt}"));
        run.quotas = Some(UserQuotas { requests_per_minute: 1, concurrent_streams: 1, tokens_per_day: 100 });
        let lease = fixture.start(&run).await;
        assert_eq!(fixture.store.delete_sessions(&run.key.user, &SessionSelection::All).await.unwrap(), 0);
        run.key.request = request("r2");
        let by = |admission| match admission {
            AdmitOutcome::QuotaExceeded { quota: limit, .. } => limit,
            other => panic!("admitted: {other:?}"),
        };
        assert_eq!(by(fixture.store.admit(&run).await.unwrap()), QuotaKind::RequestsPerMinute);
        let ended = fixture.store.finish(&lease, &RunEnding { tokens: 100, ..ending(1) }).await;
        assert!(matches!(ended, Err(StoreError::LeaseLost)), "{ended:?}");
        fixture.store.delete_sessions(&run.key.user, &SessionSelection::All).await.unwrap();
        run.quotas = Some(UserQuotas { requests_per_minute: 9, concurrent_streams: 1, tokens_per_day: 100 });
        assert_eq!(by(fixture.store.admit(&run).await.unwrap()), QuotaKind::TokensPerDay);
        run.quotas = Some(UserQuotas { requests_per_minute: 9, concurrent_streams: 1, tokens_per_day: 101 });
        fixture.start(&run).await;
    })
    .await;
}

pub async fn delete_beside_finish_is_atomic(fixture: &StoreFixture) {
    let user = fixture.user("ann");
    for round in 0..10 {
        let (id, name) = (format!("s{round}"), format!("r{round}"));
        fixture.talk(&id, &format!("{name}-before"), b"x").await;
        let lease = fixture.start(&fixture.run(&id, &name)).await;
        let end = RunEnding { turn: Some(turn(b"y")), ..ending(1) };
        let which = if round % 2 == 0 { SessionSelection::Listed(vec![session(&id)]) } else { SessionSelection::All };
        let (ended, deleted) =
            tokio::join!(fixture.store.finish(&lease, &end), fixture.store.delete_sessions(&user, &which));
        assert_eq!(deleted.unwrap(), 1);
        assert!(matches!(ended, Ok(()) | Err(StoreError::LeaseLost)), "{ended:?}");
        is_gone(fixture, &id, &[&name]).await;
    }
}

pub async fn delete_beside_run_without_session_is_atomic(fixture: &StoreFixture) {
    let user = fixture.user("ann");
    for round in 0..16 {
        let id = format!("s{round}");
        let which = SessionSelection::Listed(vec![session(&id)]);
        let talk = async {
            // So that the finish meets the deletion at each of its steps.
            for _ in 0..round {
                fixture.store.get_session(&user, &session(&id)).await.unwrap();
            }
            let run = NewRun { takes_session: false, ..fixture.run(&id, &format!("r{round}")) };
            let lease = fixture.start(&run).await;
            fixture.store.finish(&lease, &RunEnding { turn: Some(turn(b"y")), ..ending(1) }).await
        };
        let (deleted, ended) = tokio::join!(fixture.store.delete_sessions(&user, &which), talk);
        let there = fixture.store.get_session(&user, &session(&id)).await.unwrap().map_or(0, |session| session.turns);
        let turns = fixture.store.list_turns(&user, &session(&id), None, 10).await.unwrap();
        assert_eq!(turns.len(), there as usize, "{deleted:?}, {ended:?}");
        assert!(matches!(ended, Ok(()) | Err(StoreError::LeaseLost)), "{ended:?}");
    }
}
