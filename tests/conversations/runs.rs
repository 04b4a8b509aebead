use agent_service::conversation::{
    AdmitOutcome, FRAME_PAGE_BYTES, FrameChunk, FramePage, NewRun, NewTurn, RunEnding, RunOutcome, RunSnapshot,
    RunState, SessionSelection, StoreError,
};

use crate::fixture::{StoreFixture, chunk, ending, request, session, turn};

/// All frames after a number, however many bytes they have.
fn whole_after(after: u32) -> FramePage {
    FramePage { limit: usize::MAX, ..FramePage::after(after) }
}

async fn follow(fixture: &StoreFixture, id: &str, after: u32) -> RunSnapshot {
    fixture.store.follow(&fixture.user("ann"), &request(id), &whole_after(after)).await.unwrap().unwrap()
}

pub async fn frames_are_read_after_any_number(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r")).await;
    let nothing = follow(fixture, "r", 0).await;
    assert_eq!((nothing.state, &*nothing.head, nothing.chunks.len()), (RunState::Running, &b"head"[..], 0));
    let chunks = [chunk(1, 1), chunk(2, 3), chunk(5, 10), chunk(15, 1), chunk(16, 2)];
    for (stored, one) in chunks.iter().enumerate().take(4) {
        fixture.store.checkpoint(&lease, Some(one)).await.unwrap();
        let seen = follow(fixture, "r", 0).await;
        assert_eq!((seen.state, seen.chunks), (RunState::Running, chunks[..=stored].to_vec()));
    }
    let last = RunEnding { chunk: chunks[4].clone(), ..ending(0) };
    fixture.store.finish(&lease, &last).await.unwrap();
    for after in 0..=20 {
        let seen = follow(fixture, "r", after).await;
        let expected: Vec<_> = chunks.iter().filter(|one| one.first + one.count - 1 > after).cloned().collect();
        assert_eq!((seen.state, &*seen.head), (RunState::Ended, &b"head"[..]));
        assert_eq!(seen.chunks, expected, "after {after}");
    }
    assert!(fixture.store.follow(&lease.key.user, &request("none"), &FramePage::after(0)).await.unwrap().is_none());
}

pub async fn retried_chunk_replaces_itself(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r")).await;
    fixture.store.checkpoint(&lease, Some(&chunk(1, 2))).await.unwrap();
    for count in [2, 3, 5] {
        fixture.store.checkpoint(&lease, Some(&chunk(3, count))).await.unwrap();
    }
    assert_eq!(follow(fixture, "r", 0).await.chunks, [chunk(1, 2), chunk(3, 5)]);
    let last = RunEnding { chunk: chunk(3, 7), ..ending(0) };
    fixture.store.finish(&lease, &last).await.unwrap();
    assert_eq!(follow(fixture, "r", 0).await.chunks, [chunk(1, 2), chunk(3, 7)]);
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub async fn megabytes_are_stored_byte_for_byte(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r")).await;
    let frames = [noise(3 << 20, 1), noise(400 << 10, 2), noise(1 << 20, 3)];
    let chunks: Vec<_> =
        (1..).zip(&frames).map(|(first, frames)| FrameChunk { first, count: 1, frames: frames.clone() }).collect();
    for one in &chunks[..2] {
        fixture.store.checkpoint(&lease, Some(one)).await.unwrap();
    }
    let record = noise(2 << 20, 4);
    let profile = noise(8 << 10, 5);
    let end =
        RunEnding { chunk: chunks[2].clone(), turn: Some(turn(&record)), profile: Some(profile.clone()), ..ending(0) };
    fixture.store.finish(&lease, &end).await.unwrap();
    let user = fixture.user("ann");
    for after in 0..=3 {
        // No assert_eq: a diff of megabytes helps little.
        assert!(follow(fixture, "r", after).await.chunks == chunks[after as usize..], "after {after}");
    }
    let turns = fixture.store.list_turns(&user, &session("s"), None, 10).await.unwrap();
    assert!(turns.len() == 1 && turns[0].record == record);
    let past = fixture.store.load_history(&user, &session("s"), 1_000).await.unwrap();
    assert!(past.turns == turns);
    let AdmitOutcome::Started { profile: stored, .. } = fixture.store.admit(&fixture.run("s", "r2")).await.unwrap()
    else {
        panic!("not started")
    };
    assert!(stored == Some(profile));
    assert_eq!(fixture.store.delete_sessions(&user, &SessionSelection::Listed(vec![session("s")])).await.unwrap(), 1);
    assert!(fixture.store.follow(&user, &request("r"), &FramePage::after(0)).await.unwrap().is_none());
}

pub async fn frames_are_read_in_pages_of_any_size(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r")).await;
    let sizes = [(1, 2, 900 << 10), (3, 1, 10), (4, 3, 200 << 10), (7, 1, 450 << 10)];
    let chunks = sizes.map(|(first, count, size)| FrameChunk { first, count, frames: noise(size, first.into()) });
    for one in &chunks[..3] {
        fixture.store.checkpoint(&lease, Some(one)).await.unwrap();
    }
    fixture.store.finish(&lease, &RunEnding { chunk: chunks[3].clone(), ..ending(0) }).await.unwrap();
    for limit in [60_000, FRAME_PAGE_BYTES, 400 << 10, 1 << 20] {
        let mut page = FramePage { limit, ..FramePage::after(0) };
        for whole in &chunks {
            let mut read = Vec::new();
            while read.len() < whole.frames.len() {
                (page.chunk, page.offset) = (whole.first, read.len());
                let snapshot = fixture.store.follow(&lease.key.user, &request("r"), &page).await.unwrap().unwrap();
                assert_eq!((snapshot.state, snapshot.stored), (RunState::Ended, 7));
                let held: usize = snapshot.chunks.iter().map(|chunk| chunk.frames.len()).sum();
                assert!((1..=limit).contains(&held), "{held} bytes of {limit}");
                let first = &snapshot.chunks[0];
                assert_eq!((first.first, first.count), (whole.first, whole.count));
                read.extend_from_slice(&first.frames);
            }
            assert!(read == whole.frames, "{limit}, {}", whole.first);
            page.after = whole.first + whole.count - 1;
        }
    }
}

pub async fn sizes_near_bounds_are_stored_whole(fixture: &StoreFixture) {
    for (number, size) in
        [0, 1, 255 << 10, 256 << 10, 350_000, 390_000, 400 << 10, 409_601, 800 << 10].into_iter().enumerate()
    {
        let name = format!("r{number}");
        let lease = fixture.start(&fixture.run(&name, &name)).await;
        let bytes = noise(size, 9);
        let whole = FrameChunk { first: 1, count: 1, frames: bytes.clone() };
        fixture.store.checkpoint(&lease, Some(&whole)).await.unwrap();
        let last = FrameChunk { first: 2, count: 1, frames: bytes.clone() };
        let end = RunEnding { chunk: last.clone(), turn: Some(turn(&bytes)), ..ending(0) };
        fixture.store.finish(&lease, &end).await.unwrap();
        assert!(follow(fixture, &name, 0).await.chunks == [whole, last], "{size}");
        let turns = fixture.store.list_turns(&fixture.user("ann"), &session(&name), None, 10).await.unwrap();
        assert!(turns.len() == 1 && turns[0].record == bytes, "{size}");
    }
}

pub async fn finish_is_idempotent(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r")).await;
    let end = || RunEnding { turn: Some(turn(b"x")), profile: Some(b"one".to_vec()), ..ending(1) };
    fixture.store.finish(&lease, &end()).await.unwrap();
    let other = fixture.start(&fixture.run("s", "r2")).await;
    fixture.store.finish(&lease, &RunEnding { profile: Some(b"two".to_vec()), ..end() }).await.unwrap();
    fixture.store.checkpoint(&other, None).await.unwrap();
    let stored = fixture.store.get_session(&lease.key.user, &session("s")).await.unwrap().unwrap();
    assert_eq!((stored.turns, stored.running), (1, Some(request("r2"))));
    fixture.store.finish(&other, &ending(1)).await.unwrap();
    let AdmitOutcome::Started { profile, .. } = fixture.store.admit(&fixture.run("s", "r3")).await.unwrap() else {
        panic!()
    };
    assert_eq!(profile.unwrap(), b"one");
    let late = fixture.store.checkpoint(&lease, Some(&chunk(2, 1))).await;
    assert!(matches!(late, Err(StoreError::LeaseLost)), "{late:?}");
    let late = fixture.store.store_pending_turn(&lease, b"state", &["c"]).await;
    assert!(matches!(late, Err(StoreError::LeaseLost)), "{late:?}");
    assert_eq!(follow(fixture, "r", 0).await.chunks, [chunk(1, 1)]);
}

pub async fn concurrent_finishes_store_one_turn(fixture: &StoreFixture) {
    let lease = fixture.start(&fixture.run("s", "r")).await;
    let end = RunEnding { turn: Some(turn(b"x")), ..ending(1) };
    let ends = futures_util::future::join_all((0..8).map(|_| fixture.store.finish(&lease, &end))).await;
    assert!(ends.iter().any(Result::is_ok), "{ends:?}");
    fixture.store.finish(&lease, &end).await.unwrap();
    let turns = fixture.store.list_turns(&lease.key.user, &session("s"), None, 10).await.unwrap();
    assert_eq!(turns.iter().map(|turn| turn.seq).collect::<Vec<_>>(), [1]);
}

pub async fn repeatable_run_starts_again(fixture: &StoreFixture) {
    let run = fixture.run("s", "r");
    let nothing = || RunEnding { outcome: RunOutcome::Repeatable, ..ending(1) };
    let lease = fixture.start(&run).await;
    fixture.store.checkpoint(&lease, Some(&chunk(1, 4))).await.unwrap();
    fixture.store.finish(&lease, &RunEnding { chunk: chunk(5, 1), ..nothing() }).await.unwrap();
    assert_eq!(follow(fixture, "r", 2).await.chunks, [chunk(1, 4), chunk(5, 1)]);
    assert!(fixture.store.get_session(&lease.key.user, &session("s")).await.unwrap().is_none());
    let again = fixture.start(&run).await;
    assert_ne!(again.lease_token, lease.lease_token);
    let restarted = follow(fixture, "r", 0).await;
    assert_eq!((restarted.state, restarted.chunks.len()), (RunState::Running, 0));
    let late = fixture.store.finish(&lease, &nothing()).await;
    assert!(matches!(late, Err(StoreError::LeaseLost)), "{late:?}");
    fixture.store.finish(&again, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    assert!(matches!(fixture.store.admit(&run).await.unwrap(), AdmitOutcome::Known { .. }));
    assert_eq!(follow(fixture, "r", 0).await.chunks, [chunk(1, 1)]);
}

pub async fn cancel_by_request_or_session_stops_run(fixture: &StoreFixture) {
    let (user, s) = (fixture.user("ann"), session("s"));
    let cancel = async |session: &str, id: Option<&str>| {
        let id = id.map(request);
        let cancelled = fixture.store.cancel(&user, &self::session(session), id.as_ref()).await.unwrap();
        cancelled.map(|request| request.to_string())
    };
    assert_eq!(cancel("s", None).await, None);
    let lease = fixture.start(&fixture.run("s", "r1")).await;
    let beside = fixture.run("s", "r2");
    let beside = fixture.start(&NewRun { takes_session: false, ..beside }).await;
    for (session, id) in [("t", None), ("t", Some("r1")), ("s", Some("r3"))] {
        assert_eq!(cancel(session, id).await, None);
    }
    assert!(!fixture.store.checkpoint(&lease, None).await.unwrap().is_cancelled);
    assert_eq!(cancel("s", None).await.as_deref(), Some("r1"));
    assert!(!fixture.store.checkpoint(&beside, None).await.unwrap().is_cancelled);
    for chunk in [None, Some(&chunk(1, 1))] {
        assert!(fixture.store.checkpoint(&lease, chunk).await.unwrap().is_cancelled);
    }
    assert_eq!(cancel("s", Some("r2")).await.as_deref(), Some("r2"));
    assert!(fixture.store.checkpoint(&beside, None).await.unwrap().is_cancelled);
    let cut = NewTurn { is_complete: false, ..turn(b"cut") };
    fixture.store.finish(&lease, &RunEnding { turn: Some(cut), ..ending(2) }).await.unwrap();
    assert!(!fixture.store.list_turns(&user, &s, None, 1).await.unwrap()[0].is_complete);
    assert_eq!(cancel("s", None).await, None);
    assert_eq!(cancel("s", Some("r1")).await, None);
    let next = fixture.start(&fixture.run("s", "r4")).await;
    assert!(!fixture.store.checkpoint(&next, None).await.unwrap().is_cancelled);
    fixture.let_leases_expire().await;
    assert_eq!(cancel("s", None).await, None);
    assert_eq!(cancel("s", Some("r4")).await, None);
}

pub async fn concurrent_calls_neither_fail_nor_deadlock(fixture: &StoreFixture) {
    let user = fixture.user("ann");
    let fine = |result: Result<(), StoreError>| match result {
        // No timeout: that would be a deadlock.
        Ok(()) | Err(StoreError::LeaseLost) => {}
        Err(other) => panic!("{other:?}"),
    };
    let clients = (0..8_u64).map(async |client| {
        let store = &fixture.store;
        let mut dice = noise(200, client).into_iter();
        let mut roll = |sides: u8| dice.next().map(|number| number % sides);
        let mut number = 0;
        while let Some(side) = roll(12) {
            let s = session(if side % 2 == 0 { "s" } else { "t" });
            number += 1;
            let mut run = fixture.run(s.as_str(), &format!("r{}", number % 5));
            run.takes_session = side < 9;
            let AdmitOutcome::Started { lease, .. } = store.admit(&run).await.unwrap() else { continue };
            let lease = lease.take();
            for step in 1..4 {
                match roll(9) {
                    Some(0) => fine(store.store_pending_turn(&lease, b"state", &["c"]).await),
                    Some(1) => fine(store.record_tool_result(&lease, "c", b"1").await.map(drop)),
                    Some(2) => fine(store.cancel(&user, &s, None).await.map(drop)),
                    Some(3) => fine(store.follow(&user, &lease.key.request, &FramePage::after(0)).await.map(drop)),
                    Some(4) => fixture.let_leases_expire().await,
                    Some(5) if client == 0 => {
                        fine(store.delete_sessions(&user, &SessionSelection::Listed(vec![s.clone()])).await.map(drop))
                    }
                    _ => fine(store.checkpoint(&lease, Some(&chunk(step, 1))).await.map(drop)),
                }
            }
            let outcome = if side % 3 == 0 { RunOutcome::Repeatable } else { RunOutcome::Final };
            fine(store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), outcome, ..ending(4) }).await);
        }
    });
    futures_util::future::join_all(clients).await;
    for id in ["s", "t"] {
        let turns = fixture.store.list_turns(&user, &session(id), None, 1_000).await.unwrap();
        let stored = fixture.store.get_session(&user, &session(id)).await.unwrap().map_or(0, |session| session.turns);
        assert_eq!(turns.iter().map(|turn| turn.seq).collect::<Vec<_>>(), (1..=stored).rev().collect::<Vec<_>>());
    }
}
