//! What users may use.

use std::time::Duration;

use agent_service::conversation::{AdmitOutcome, Lease, NewRun, QuotaKind, RunEnding, RunOutcome, UserQuotas};
use futures_util::future::join_all;

use crate::fixture::{StoreFixture, ending, started, within, within_one_minute};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const PLENTY: UserQuotas =
    UserQuotas { requests_per_minute: 1_000, concurrent_streams: 1_000, tokens_per_day: 1 << 60 };

/// A request of a user, in a conversation of its own.
fn asked(fixture: &StoreFixture, user: &str, number: usize, limits: UserQuotas) -> NewRun {
    let mut run = fixture.run(&format!("s{number}"), &format!("r{number}"));
    run.key.user = fixture.user(user);
    NewRun { quotas: Some(limits), ..run }
}

fn over(admission: AdmitOutcome) -> (QuotaKind, Duration) {
    match admission {
        AdmitOutcome::QuotaExceeded { quota: limit, retry_after } => (limit, retry_after),
        other => panic!("not refused but {other:?}"),
    }
}

/// Checks that a request is refused, and that it is told to wait for the next minute or day, whose length is given.
async fn is_over_until_the_next(fixture: &StoreFixture, run: &NewRun, limit: QuotaKind, period: Duration) {
    let rest = || {
        let period = i64::try_from(period.as_millis()).unwrap();
        Duration::from_millis(u64::try_from(period - fixture.backdoor.now().as_millisecond() % period).unwrap())
    };
    let before = rest();
    let (reached, retry_after) = over(fixture.store.admit(run).await.unwrap());
    assert_eq!(reached, limit);
    // To the second.
    let slack = Duration::from_secs(1);
    assert!(retry_after <= before + slack && retry_after + slack >= rest(), "{retry_after:?} of {before:?}");
}

async fn end(fixture: &StoreFixture, lease: &Lease, tokens: u32) {
    fixture.store.finish(lease, &RunEnding { tokens, ..ending(1) }).await.unwrap();
}

pub async fn requests_count_per_minute(fixture: &StoreFixture) {
    let limits = UserQuotas { requests_per_minute: 3, ..PLENTY };
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        for number in 0..3 {
            let run = asked(fixture, &user, number, limits);
            let lease = fixture.start(&run).await;
            // Neither a repetition counts nor one that the conversation has no room for.
            assert!(matches!(fixture.store.admit(&run).await.unwrap(), AdmitOutcome::Known { .. }));
            let mut busy = asked(fixture, &user, 100 + number, limits);
            busy.key.session = run.key.session.clone();
            assert!(matches!(fixture.store.admit(&busy).await.unwrap(), AdmitOutcome::Busy { .. }));
            end(fixture, &lease, 0).await;
        }
        for _ in 0..2 {
            let run = asked(fixture, &user, 3, limits);
            is_over_until_the_next(fixture, &run, QuotaKind::RequestsPerMinute, MINUTE).await;
        }
        // Others have minutes of their own, and this is about new requests only.
        fixture.start(&asked(fixture, &format!("{user}-other"), 0, limits)).await;
        let known = fixture.store.admit(&asked(fixture, &user, 0, limits)).await.unwrap();
        assert!(matches!(known, AdmitOutcome::Known { .. }));
        // Whoever has no limits, or wider ones, goes on, and still counts.
        fixture.start(&NewRun { quotas: None, ..asked(fixture, &user, 4, limits) }).await;
        let wider = UserQuotas { requests_per_minute: 5, ..PLENTY };
        fixture.start(&asked(fixture, &user, 5, wider)).await;
        over(fixture.store.admit(&asked(fixture, &user, 6, wider)).await.unwrap());
    })
    .await;
    fixture.backdoor.let_pass(MINUTE).await;
    fixture.start(&asked(fixture, "ann0", 10, limits)).await;
    fixture.start(&asked(fixture, "ann1", 10, limits)).await;
}

pub async fn revoked_admission_does_not_count(fixture: &StoreFixture) {
    let limits = UserQuotas { requests_per_minute: 2, concurrent_streams: 1, ..PLENTY };
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        for _ in 0..3 {
            let lease = fixture.start(&asked(fixture, &user, 0, limits)).await;
            fixture.store.revoke_admission(&lease).await.unwrap();
            // Once.
            fixture.store.revoke_admission(&lease).await.unwrap();
        }
        for number in 0..2 {
            end(fixture, &fixture.start(&asked(fixture, &user, number, limits)).await, 0).await;
        }
        over(fixture.store.admit(&asked(fixture, &user, 2, limits)).await.unwrap());
    })
    .await;
}

pub async fn streams_count_while_their_lease_lasts(fixture: &StoreFixture) {
    let limits = UserQuotas { concurrent_streams: 2, ..PLENTY };
    within(Duration::from_secs(5), async |attempt| {
        let user = format!("ann{attempt}");
        let ask = |number| asked(fixture, &user, number, limits);
        let first = fixture.start(&ask(1)).await;
        fixture.backdoor.let_pass(Duration::from_secs(10)).await;
        // One that takes no conversation is one as well.
        let second = fixture.start(&NewRun { takes_session: false, ..ask(2) }).await;
        let (limit, retry_after) = over(fixture.store.admit(&ask(3)).await.unwrap());
        assert_eq!(limit, QuotaKind::ConcurrentStreams);
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(20), "{retry_after:?}");
        fixture.start(&asked(fixture, &format!("bob{attempt}"), 3, limits)).await;
        assert!(matches!(fixture.store.admit(&ask(1)).await.unwrap(), AdmitOutcome::Known { .. }));
        end(fixture, &second, 0).await;
        let third = fixture.start(&ask(3)).await;
        over(fixture.store.admit(&ask(4)).await.unwrap());
        // The dead do not count.
        fixture.store.checkpoint(&third, None).await.unwrap();
        fixture.backdoor.let_pass(Duration::from_secs(25)).await;
        let fourth = fixture.start(&ask(4)).await;
        over(fixture.store.admit(&ask(5)).await.unwrap());
        fixture.store.revoke_admission(&fourth).await.unwrap();
        fixture.start(&ask(5)).await;
        // Unless they come back.
        fixture.store.checkpoint(&first, None).await.unwrap();
        over(fixture.store.admit(&ask(6)).await.unwrap());
        // One that is started anew does not stand in its own way.
        fixture.let_leases_expire().await;
        fixture.start(&ask(1)).await;
        fixture.start(&ask(3)).await;
        over(fixture.store.admit(&ask(5)).await.unwrap());
    })
    .await;
}

pub async fn tokens_count_per_day(fixture: &StoreFixture) {
    let limits = UserQuotas { tokens_per_day: 100, ..PLENTY };
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        let ask = |number| asked(fixture, &user, number, limits);
        end(fixture, &fixture.start(&ask(0)).await, 99).await;
        // The one that crosses the limit is answered, and so is what runs beside it.
        let (crossing, beside) = (fixture.start(&ask(1)).await, fixture.start(&ask(2)).await);
        end(fixture, &crossing, 4_000_000_000).await;
        is_over_until_the_next(fixture, &ask(3), QuotaKind::TokensPerDay, DAY).await;
        end(fixture, &beside, 4_000_000_000).await;
        // Both were counted, and so is what was spent for nothing.
        let wide = UserQuotas { tokens_per_day: 8_000_000_100, ..PLENTY };
        let failed = fixture.start(&asked(fixture, &user, 4, wide)).await;
        let nothing = RunEnding { outcome: RunOutcome::Repeatable, tokens: 1, ..ending(1) };
        fixture.store.finish(&failed, &nothing).await.unwrap();
        over(fixture.store.admit(&asked(fixture, &user, 4, wide)).await.unwrap());
        // Again and again, as long as nobody has heard that it is kept: it counts once.
        let wider = UserQuotas { tokens_per_day: 8_000_000_102, ..PLENTY };
        let last = fixture.start(&asked(fixture, &user, 5, wider)).await;
        end(fixture, &last, 1).await;
        end(fixture, &last, 1).await;
        fixture.start(&asked(fixture, &user, 6, wider)).await;
        fixture.start(&asked(fixture, "bob", attempt, limits)).await;
    })
    .await;
    fixture.backdoor.let_pass(DAY).await;
    within_one_minute(fixture, async |attempt| {
        end(fixture, &fixture.start(&asked(fixture, "ann0", 10 + attempt, PLENTY)).await, 9).await;
    })
    .await;
    // Some of it was spent today, and what was spent yesterday does not count.
    fixture.start(&asked(fixture, "ann0", 9, limits)).await;
}

pub async fn quota_holds_under_concurrent_requests(fixture: &StoreFixture) {
    for (user, limits) in [
        ("ann", UserQuotas { concurrent_streams: 5, ..PLENTY }),
        ("bob", UserQuotas { requests_per_minute: 5, ..PLENTY }),
    ] {
        within_one_minute(fixture, async |attempt| {
            let runs: Vec<_> =
                (0..20).map(|number| asked(fixture, &format!("{user}{attempt}"), number, limits)).collect();
            let admissions = join_all(runs.iter().map(|run| fixture.store.admit(run))).await;
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
pub async fn quotas_are_checked_last_and_in_order(fixture: &StoreFixture) {
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        let nothing = UserQuotas { requests_per_minute: 0, concurrent_streams: 0, tokens_per_day: 0 };
        let lease = fixture.start(&asked(fixture, &user, 0, PLENTY)).await;
        let known = fixture.store.admit(&asked(fixture, &user, 0, nothing)).await.unwrap();
        assert!(matches!(known, AdmitOutcome::Known { .. }), "{known:?}");
        let resuming = NewRun { resumes: true, ..asked(fixture, &user, 1, nothing) };
        assert!(matches!(fixture.store.admit(&resuming).await.unwrap(), AdmitOutcome::Unknown));
        let mut busy = asked(fixture, &user, 1, nothing);
        busy.key.session = lease.key.session.clone();
        assert!(matches!(fixture.store.admit(&busy).await.unwrap(), AdmitOutcome::Busy { .. }));
        for (limits, expected) in [
            (nothing, QuotaKind::RequestsPerMinute),
            (UserQuotas { requests_per_minute: 9, ..nothing }, QuotaKind::ConcurrentStreams),
            (UserQuotas { requests_per_minute: 9, concurrent_streams: 9, ..nothing }, QuotaKind::TokensPerDay),
        ] {
            let (limit, retry_after) = over(fixture.store.admit(&asked(fixture, &user, 1, limits)).await.unwrap());
            assert_eq!(limit, expected);
            assert!(retry_after > Duration::ZERO);
        }
        // Nor does anybody else's request meet them who has done nothing yet.
        let (limit, _) = over(fixture.store.admit(&asked(fixture, &format!("{user}-new"), 1, nothing)).await.unwrap());
        assert_eq!(limit, QuotaKind::RequestsPerMinute);
        drop(started(fixture.store.admit(&asked(fixture, &user, 1, PLENTY)).await.unwrap()));
    })
    .await;
}
