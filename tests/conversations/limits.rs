//! What users may use.

use std::time::Duration;

use agent_service::conversation::{AdmitOutcome, Lease, NewRun, QuotaKind, RunEnding, RunOutcome, UserQuotas};
use futures_util::future::join_all;

use crate::place::{Place, ending, started, within, within_one_minute};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const PLENTY: UserQuotas =
    UserQuotas { requests_per_minute: 1_000, concurrent_streams: 1_000, tokens_per_day: 1 << 60 };

/// A request of a user, in a conversation of its own.
fn asked(place: &Place, user: &str, number: usize, limits: UserQuotas) -> NewRun {
    let mut run = place.run(&format!("s{number}"), &format!("r{number}"));
    run.key.user = place.user(user);
    NewRun { quotas: Some(limits), ..run }
}

fn over(admission: AdmitOutcome) -> (QuotaKind, Duration) {
    match admission {
        AdmitOutcome::QuotaExceeded { quota: limit, retry_after } => (limit, retry_after),
        other => panic!("not refused but {other:?}"),
    }
}

/// Checks that a request is refused, and that it is told to wait for the next minute or day, whose length is given.
async fn is_over_until_the_next(place: &Place, run: &NewRun, limit: QuotaKind, period: Duration) {
    let rest = || {
        let period = i64::try_from(period.as_millis()).unwrap();
        Duration::from_millis(u64::try_from(period - place.backdoor.now().as_millisecond() % period).unwrap())
    };
    let before = rest();
    let (reached, retry_after) = over(place.store.admit(run).await.unwrap());
    assert_eq!(reached, limit);
    // To the second.
    let slack = Duration::from_secs(1);
    assert!(retry_after <= before + slack && retry_after + slack >= rest(), "{retry_after:?} of {before:?}");
}

async fn end(place: &Place, lease: &Lease, tokens: u32) {
    place.store.finish(lease, &RunEnding { tokens, ..ending(1) }).await.unwrap();
}

pub async fn requests_are_counted_by_the_minute(place: &Place) {
    let limits = UserQuotas { requests_per_minute: 3, ..PLENTY };
    within_one_minute(place, async |attempt| {
        let user = format!("ann{attempt}");
        for number in 0..3 {
            let run = asked(place, &user, number, limits);
            let lease = place.start(&run).await;
            // Neither a repetition counts nor one that the conversation has no room for.
            assert!(matches!(place.store.admit(&run).await.unwrap(), AdmitOutcome::Known { .. }));
            let mut busy = asked(place, &user, 100 + number, limits);
            busy.key.session = run.key.session.clone();
            assert!(matches!(place.store.admit(&busy).await.unwrap(), AdmitOutcome::Busy { .. }));
            end(place, &lease, 0).await;
        }
        for _ in 0..2 {
            let run = asked(place, &user, 3, limits);
            is_over_until_the_next(place, &run, QuotaKind::RequestsPerMinute, MINUTE).await;
        }
        // Others have minutes of their own, and this is about new requests only.
        place.start(&asked(place, &format!("{user}-other"), 0, limits)).await;
        let known = place.store.admit(&asked(place, &user, 0, limits)).await.unwrap();
        assert!(matches!(known, AdmitOutcome::Known { .. }));
        // Whoever has no limits, or wider ones, goes on, and still counts.
        place.start(&NewRun { quotas: None, ..asked(place, &user, 4, limits) }).await;
        let wider = UserQuotas { requests_per_minute: 5, ..PLENTY };
        place.start(&asked(place, &user, 5, wider)).await;
        over(place.store.admit(&asked(place, &user, 6, wider)).await.unwrap());
    })
    .await;
    place.backdoor.let_pass(MINUTE).await;
    place.start(&asked(place, "ann0", 10, limits)).await;
    place.start(&asked(place, "ann1", 10, limits)).await;
}

pub async fn an_admission_that_is_taken_back_does_not_count(place: &Place) {
    let limits = UserQuotas { requests_per_minute: 2, concurrent_streams: 1, ..PLENTY };
    within_one_minute(place, async |attempt| {
        let user = format!("ann{attempt}");
        for _ in 0..3 {
            let lease = place.start(&asked(place, &user, 0, limits)).await;
            place.store.revoke_admission(&lease).await.unwrap();
            // Once.
            place.store.revoke_admission(&lease).await.unwrap();
        }
        for number in 0..2 {
            end(place, &place.start(&asked(place, &user, number, limits)).await, 0).await;
        }
        over(place.store.admit(&asked(place, &user, 2, limits)).await.unwrap());
    })
    .await;
}

pub async fn streams_are_counted_while_they_live(place: &Place) {
    let limits = UserQuotas { concurrent_streams: 2, ..PLENTY };
    within(Duration::from_secs(5), async |attempt| {
        let user = format!("ann{attempt}");
        let ask = |number| asked(place, &user, number, limits);
        let first = place.start(&ask(1)).await;
        place.backdoor.let_pass(Duration::from_secs(10)).await;
        // One that takes no conversation is one as well.
        let second = place.start(&NewRun { takes_session: false, ..ask(2) }).await;
        let (limit, retry_after) = over(place.store.admit(&ask(3)).await.unwrap());
        assert_eq!(limit, QuotaKind::ConcurrentStreams);
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(20), "{retry_after:?}");
        place.start(&asked(place, &format!("bob{attempt}"), 3, limits)).await;
        assert!(matches!(place.store.admit(&ask(1)).await.unwrap(), AdmitOutcome::Known { .. }));
        end(place, &second, 0).await;
        let third = place.start(&ask(3)).await;
        over(place.store.admit(&ask(4)).await.unwrap());
        // The dead do not count.
        place.store.checkpoint(&third, None).await.unwrap();
        place.backdoor.let_pass(Duration::from_secs(25)).await;
        let fourth = place.start(&ask(4)).await;
        over(place.store.admit(&ask(5)).await.unwrap());
        place.store.revoke_admission(&fourth).await.unwrap();
        place.start(&ask(5)).await;
        // Unless they come back.
        place.store.checkpoint(&first, None).await.unwrap();
        over(place.store.admit(&ask(6)).await.unwrap());
        // One that is started anew does not stand in its own way.
        place.let_leases_expire().await;
        place.start(&ask(1)).await;
        place.start(&ask(3)).await;
        over(place.store.admit(&ask(5)).await.unwrap());
    })
    .await;
}

pub async fn tokens_are_counted_by_the_day(place: &Place) {
    let limits = UserQuotas { tokens_per_day: 100, ..PLENTY };
    within_one_minute(place, async |attempt| {
        let user = format!("ann{attempt}");
        let ask = |number| asked(place, &user, number, limits);
        end(place, &place.start(&ask(0)).await, 99).await;
        // The one that crosses the limit is answered, and so is what runs beside it.
        let (crossing, beside) = (place.start(&ask(1)).await, place.start(&ask(2)).await);
        end(place, &crossing, 4_000_000_000).await;
        is_over_until_the_next(place, &ask(3), QuotaKind::TokensPerDay, DAY).await;
        end(place, &beside, 4_000_000_000).await;
        // Both were counted, and so is what was spent for nothing.
        let wide = UserQuotas { tokens_per_day: 8_000_000_100, ..PLENTY };
        let failed = place.start(&asked(place, &user, 4, wide)).await;
        let nothing = RunEnding { outcome: RunOutcome::Repeatable, tokens: 1, ..ending(1) };
        place.store.finish(&failed, &nothing).await.unwrap();
        over(place.store.admit(&asked(place, &user, 4, wide)).await.unwrap());
        // Again and again, as long as nobody has heard that it is kept: it counts once.
        let wider = UserQuotas { tokens_per_day: 8_000_000_102, ..PLENTY };
        let last = place.start(&asked(place, &user, 5, wider)).await;
        end(place, &last, 1).await;
        end(place, &last, 1).await;
        place.start(&asked(place, &user, 6, wider)).await;
        place.start(&asked(place, "bob", attempt, limits)).await;
    })
    .await;
    place.backdoor.let_pass(DAY).await;
    within_one_minute(place, async |attempt| {
        end(place, &place.start(&asked(place, "ann0", 10 + attempt, PLENTY)).await, 9).await;
    })
    .await;
    // Some of it was spent today, and what was spent yesterday does not count.
    place.start(&asked(place, "ann0", 9, limits)).await;
}

pub async fn a_limit_is_kept_however_many_ask_at_once(place: &Place) {
    for (user, limits) in [
        ("ann", UserQuotas { concurrent_streams: 5, ..PLENTY }),
        ("bob", UserQuotas { requests_per_minute: 5, ..PLENTY }),
    ] {
        within_one_minute(place, async |attempt| {
            let runs: Vec<_> =
                (0..20).map(|number| asked(place, &format!("{user}{attempt}"), number, limits)).collect();
            let admissions = join_all(runs.iter().map(|run| place.store.admit(run))).await;
            let admissions = admissions.into_iter().map(Result::unwrap);
            let (started, refused): (Vec<_>, Vec<_>) =
                admissions.partition(|one| matches!(one, AdmitOutcome::Started { .. }));
            assert_eq!(started.len(), 5, "{refused:?}");
            for one in refused {
                over(one);
            }
        })
        .await;
    }
}

/// One request after the other meets each limit, in the order of the contract.
pub async fn limits_come_after_everything_else_and_in_their_order(place: &Place) {
    within_one_minute(place, async |attempt| {
        let user = format!("ann{attempt}");
        let nothing = UserQuotas { requests_per_minute: 0, concurrent_streams: 0, tokens_per_day: 0 };
        let lease = place.start(&asked(place, &user, 0, PLENTY)).await;
        let known = place.store.admit(&asked(place, &user, 0, nothing)).await.unwrap();
        assert!(matches!(known, AdmitOutcome::Known { .. }), "{known:?}");
        let resuming = NewRun { resumes: true, ..asked(place, &user, 1, nothing) };
        assert!(matches!(place.store.admit(&resuming).await.unwrap(), AdmitOutcome::Unknown));
        let mut busy = asked(place, &user, 1, nothing);
        busy.key.session = lease.key.session.clone();
        assert!(matches!(place.store.admit(&busy).await.unwrap(), AdmitOutcome::Busy { .. }));
        for (limits, expected) in [
            (nothing, QuotaKind::RequestsPerMinute),
            (UserQuotas { requests_per_minute: 9, ..nothing }, QuotaKind::ConcurrentStreams),
            (UserQuotas { requests_per_minute: 9, concurrent_streams: 9, ..nothing }, QuotaKind::TokensPerDay),
        ] {
            let (limit, retry_after) = over(place.store.admit(&asked(place, &user, 1, limits)).await.unwrap());
            assert_eq!(limit, expected);
            assert!(retry_after > Duration::ZERO);
        }
        // Nor does anybody else's request meet them who has done nothing yet.
        let (limit, _) = over(place.store.admit(&asked(place, &format!("{user}-new"), 1, nothing)).await.unwrap());
        assert_eq!(limit, QuotaKind::RequestsPerMinute);
        drop(started(place.store.admit(&asked(place, &user, 1, PLENTY)).await.unwrap()));
    })
    .await;
}
