use std::time::Duration;

use agent_service::conversation::{
    AdmitOutcome, LEASE_DURATION, Lease, NewRun, QuotaKind, RunEnding, RunOutcome, UserQuotas,
};
use futures_util::future::join_all;

use crate::fixture::{StoreFixture, ending, started, within, within_one_minute};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const PLENTY: UserQuotas =
    UserQuotas { requests_per_minute: 1_000, concurrent_streams: 1_000, tokens_per_day: 1 << 60 };

fn run_of(fixture: &StoreFixture, user: &str, number: usize, quotas: UserQuotas) -> NewRun {
    let mut run = fixture.run(&format!("s{number}"), &format!("r{number}"));
    run.key.user = fixture.user(user);
    NewRun { quotas: Some(quotas), ..run }
}

fn exceeded(admission: AdmitOutcome) -> (QuotaKind, Duration) {
    match admission {
        AdmitOutcome::QuotaExceeded { quota, retry_after } => (quota, retry_after),
        other => panic!("not refused: {other:?}"),
    }
}

async fn assert_exceeded_until_next(fixture: &StoreFixture, run: &NewRun, quota: QuotaKind, period: Duration) {
    let rest = || {
        let period = i64::try_from(period.as_millis()).unwrap();
        Duration::from_millis(u64::try_from(period - fixture.backdoor.now().as_millisecond() % period).unwrap())
    };
    let before = rest();
    let (reached, retry_after) = exceeded(fixture.store.admit(run).await.unwrap());
    assert_eq!(reached, quota);
    let slack = Duration::from_secs(1);
    assert!(retry_after <= before + slack && retry_after + slack >= rest(), "{retry_after:?} of {before:?}");
}

async fn end(fixture: &StoreFixture, lease: &Lease, tokens: u32) {
    fixture.store.finish(lease, &RunEnding { tokens, ..ending(1) }).await.unwrap();
}

pub async fn requests_count_per_minute(fixture: &StoreFixture) {
    let quotas = UserQuotas { requests_per_minute: 3, ..PLENTY };
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        for number in 0..3 {
            let run = run_of(fixture, &user, number, quotas);
            let lease = fixture.start(&run).await;
            assert!(matches!(fixture.store.admit(&run).await.unwrap(), AdmitOutcome::Known { .. }));
            let mut busy = run_of(fixture, &user, 100 + number, quotas);
            busy.key.session = run.key.session.clone();
            assert!(matches!(fixture.store.admit(&busy).await.unwrap(), AdmitOutcome::Busy { .. }));
            end(fixture, &lease, 0).await;
        }
        for _ in 0..2 {
            let run = run_of(fixture, &user, 3, quotas);
            assert_exceeded_until_next(fixture, &run, QuotaKind::RequestsPerMinute, MINUTE).await;
        }
        fixture.start(&run_of(fixture, &format!("{user}-other"), 0, quotas)).await;
        let known = fixture.store.admit(&run_of(fixture, &user, 0, quotas)).await.unwrap();
        assert!(matches!(known, AdmitOutcome::Known { .. }));
        fixture.start(&NewRun { quotas: None, ..run_of(fixture, &user, 4, quotas) }).await;
        let wider = UserQuotas { requests_per_minute: 5, ..PLENTY };
        fixture.start(&run_of(fixture, &user, 5, wider)).await;
        exceeded(fixture.store.admit(&run_of(fixture, &user, 6, wider)).await.unwrap());
    })
    .await;
    fixture.backdoor.let_pass(MINUTE).await;
    fixture.start(&run_of(fixture, "ann0", 10, quotas)).await;
    fixture.start(&run_of(fixture, "ann1", 10, quotas)).await;
}

pub async fn revoked_admission_does_not_count(fixture: &StoreFixture) {
    let quotas = UserQuotas { requests_per_minute: 2, concurrent_streams: 1, ..PLENTY };
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        for _ in 0..3 {
            let lease = fixture.start(&run_of(fixture, &user, 0, quotas)).await;
            fixture.store.revoke_admission(&lease).await.unwrap();
            fixture.store.revoke_admission(&lease).await.unwrap();
        }
        for number in 0..2 {
            end(fixture, &fixture.start(&run_of(fixture, &user, number, quotas)).await, 0).await;
        }
        exceeded(fixture.store.admit(&run_of(fixture, &user, 2, quotas)).await.unwrap());
    })
    .await;
}

pub async fn streams_count_while_their_lease_lasts(fixture: &StoreFixture) {
    let quotas = UserQuotas { concurrent_streams: 2, ..PLENTY };
    // The lease of the second run ends this much later than the first.
    let slack = Duration::from_secs(3);
    within(slack, async |attempt| {
        let user = format!("ann{attempt}");
        let ask = |number| run_of(fixture, &user, number, quotas);
        let first = fixture.start(&ask(1)).await;
        fixture.backdoor.let_pass(slack + Duration::from_secs(1)).await;
        let second = fixture.start(&NewRun { takes_session: false, ..ask(2) }).await;
        let (quota, retry_after) = exceeded(fixture.store.admit(&ask(3)).await.unwrap());
        assert_eq!(quota, QuotaKind::ConcurrentStreams);
        assert!(retry_after > Duration::ZERO && retry_after < LEASE_DURATION - slack, "{retry_after:?}");
        fixture.start(&run_of(fixture, &format!("bob{attempt}"), 3, quotas)).await;
        assert!(matches!(fixture.store.admit(&ask(1)).await.unwrap(), AdmitOutcome::Known { .. }));
        end(fixture, &second, 0).await;
        let third = fixture.start(&ask(3)).await;
        exceeded(fixture.store.admit(&ask(4)).await.unwrap());
        fixture.store.checkpoint(&third, None).await.unwrap();
        fixture.backdoor.let_pass(LEASE_DURATION - slack).await;
        let fourth = fixture.start(&ask(4)).await;
        exceeded(fixture.store.admit(&ask(5)).await.unwrap());
        fixture.store.revoke_admission(&fourth).await.unwrap();
        fixture.start(&ask(5)).await;
        fixture.store.checkpoint(&first, None).await.unwrap();
        exceeded(fixture.store.admit(&ask(6)).await.unwrap());
        fixture.let_leases_expire().await;
        fixture.start(&ask(1)).await;
        fixture.start(&ask(3)).await;
        exceeded(fixture.store.admit(&ask(5)).await.unwrap());
    })
    .await;
}

pub async fn tokens_count_per_day(fixture: &StoreFixture) {
    let quotas = UserQuotas { tokens_per_day: 100, ..PLENTY };
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        let ask = |number| run_of(fixture, &user, number, quotas);
        end(fixture, &fixture.start(&ask(0)).await, 99).await;
        // The run that crosses the quota is answered, and so are those beside it.
        let (crossing, beside) = (fixture.start(&ask(1)).await, fixture.start(&ask(2)).await);
        end(fixture, &crossing, 4_000_000_000).await;
        assert_exceeded_until_next(fixture, &ask(3), QuotaKind::TokensPerDay, DAY).await;
        end(fixture, &beside, 4_000_000_000).await;
        let wide = UserQuotas { tokens_per_day: 8_000_000_100, ..PLENTY };
        let failed = fixture.start(&run_of(fixture, &user, 4, wide)).await;
        let nothing = RunEnding { outcome: RunOutcome::Repeatable, tokens: 1, ..ending(1) };
        fixture.store.finish(&failed, &nothing).await.unwrap();
        exceeded(fixture.store.admit(&run_of(fixture, &user, 4, wide)).await.unwrap());
        let wider = UserQuotas { tokens_per_day: 8_000_000_102, ..PLENTY };
        let last = fixture.start(&run_of(fixture, &user, 5, wider)).await;
        end(fixture, &last, 1).await;
        end(fixture, &last, 1).await;
        fixture.start(&run_of(fixture, &user, 6, wider)).await;
        fixture.start(&run_of(fixture, "bob", attempt, quotas)).await;
    })
    .await;
    fixture.backdoor.let_pass(DAY).await;
    within_one_minute(fixture, async |attempt| {
        end(fixture, &fixture.start(&run_of(fixture, "ann0", 10 + attempt, PLENTY)).await, 9).await;
    })
    .await;
    fixture.start(&run_of(fixture, "ann0", 9, quotas)).await;
}

pub async fn quota_holds_under_concurrent_requests(fixture: &StoreFixture) {
    for (user, quotas) in [
        ("ann", UserQuotas { concurrent_streams: 5, ..PLENTY }),
        ("bob", UserQuotas { requests_per_minute: 5, ..PLENTY }),
    ] {
        within_one_minute(fixture, async |attempt| {
            let runs: Vec<_> =
                (0..20).map(|number| run_of(fixture, &format!("{user}{attempt}"), number, quotas)).collect();
            let admissions = join_all(runs.iter().map(|run| fixture.store.admit(run))).await;
            let admissions = admissions.into_iter().map(Result::unwrap);
            let (started, refused): (Vec<_>, Vec<_>) =
                admissions.partition(|one| matches!(one, AdmitOutcome::Started { .. }));
            assert_eq!(started.len(), 5, "{refused:?}");
            for one in refused {
                exceeded(one);
            }
        })
        .await;
    }
}

pub async fn quotas_are_checked_last_and_in_order(fixture: &StoreFixture) {
    within_one_minute(fixture, async |attempt| {
        let user = format!("ann{attempt}");
        let nothing = UserQuotas { requests_per_minute: 0, concurrent_streams: 0, tokens_per_day: 0 };
        let lease = fixture.start(&run_of(fixture, &user, 0, PLENTY)).await;
        let known = fixture.store.admit(&run_of(fixture, &user, 0, nothing)).await.unwrap();
        assert!(matches!(known, AdmitOutcome::Known { .. }), "{known:?}");
        let resuming = NewRun { resumes: true, ..run_of(fixture, &user, 1, nothing) };
        assert!(matches!(fixture.store.admit(&resuming).await.unwrap(), AdmitOutcome::Unknown));
        let mut busy = run_of(fixture, &user, 1, nothing);
        busy.key.session = lease.key.session.clone();
        assert!(matches!(fixture.store.admit(&busy).await.unwrap(), AdmitOutcome::Busy { .. }));
        for (quotas, expected) in [
            (nothing, QuotaKind::RequestsPerMinute),
            (UserQuotas { requests_per_minute: 9, ..nothing }, QuotaKind::ConcurrentStreams),
            (UserQuotas { requests_per_minute: 9, concurrent_streams: 9, ..nothing }, QuotaKind::TokensPerDay),
        ] {
            let (quota, retry_after) = exceeded(fixture.store.admit(&run_of(fixture, &user, 1, quotas)).await.unwrap());
            assert_eq!(quota, expected);
            assert!(retry_after > Duration::ZERO);
        }
        let (quota, _) =
            exceeded(fixture.store.admit(&run_of(fixture, &format!("{user}-new"), 1, nothing)).await.unwrap());
        assert_eq!(quota, QuotaKind::RequestsPerMinute);
        drop(started(fixture.store.admit(&run_of(fixture, &user, 1, PLENTY)).await.unwrap()));
    })
    .await;
}
