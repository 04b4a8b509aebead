//! Admission: one transaction, whose failed conditions say why a run is refused.

use futures_util::join;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DynamoConversations,
    attributes::{FINGERPRINT, TOKENS},
    item::{Item, ItemExt as _},
    keys::{Key, stream_member},
    lease::{ExpiredLease, LeaseState, has_lease_token, start_run, take_lease},
    parts::{PROFILE, ValueOwner},
    usage::{StreamSweep, add_stream_below, count_request, current_minute, until_next},
    write::{FailedConditions, TransactOutcome, Write},
};
use crate::{
    config::UserQuotas,
    conversation::{
        error::{Result, StoreError},
        quotas::QuotaKind,
        run::{AdmitOutcome, AdmittedLease, Lease, NewRun},
    },
    identity::UserId,
};

/// Lost streams of a user without quota are swept from this number on.
const SWEPT_STREAMS: u32 = 64;
const ATTEMPTS: u32 = 8;

/// Positions in the transaction. The lease, and the lost run that held it, come last.
const RUN: usize = 0;
const USAGE: usize = 1;
const STREAM: usize = 2;
const LEASE: usize = 3;
const LOST_RUN: usize = 4;

struct Attempts<'a> {
    run: &'a NewRun,
    lease: Lease,
    expired: Option<ExpiredLease>,
    /// False for a user without quota who has more active streams than are swept.
    limits_streams: bool,
}

impl DynamoConversations {
    pub(super) async fn admit_run(&self, run: &NewRun) -> Result<AdmitOutcome> {
        if run.resumes {
            let known = self.table.get(Key::run(&run.key.user, run.key.request.as_str())).await?;
            return known.as_ref().map_or(Ok(AdmitOutcome::Unknown), known_run);
        }
        let lease = Lease { key: run.key.clone(), lease_token: Uuid::now_v7() };
        let attempts = Attempts { run, lease: lease.clone(), expired: None, limits_streams: true };
        let (outcome, profile) = join!(self.attempt_admission(attempts), self.read_profile(&run.key.user));
        match (outcome, profile) {
            (Ok(AdmitOutcome::Started { lease, .. }), Ok(profile)) => {
                Ok(AdmitOutcome::Started { lease, profile, history: None })
            }
            // An answer that was lost may have been that of an admission.
            (Ok(AdmitOutcome::Started { .. }), Err(error)) | (Err(error), _) => {
                // If this fails too, the run ends when its lease expires.
                let _revoked = self.revoke_run(&lease).await;
                Err(error)
            }
            (Ok(refused), _) => Ok(refused),
        }
    }

    async fn attempt_admission(&self, mut attempts: Attempts<'_>) -> Result<AdmitOutcome> {
        let run = attempts.run;
        for _ in 0..ATTEMPTS {
            let now = Timestamp::now();
            let TransactOutcome::ConditionsFailed(failed) = self.table.transact(attempts.writes(now)).await? else {
                return Ok(attempts.started());
            };
            if let Some(known) = failed.get(RUN) {
                // An earlier attempt may have been committed, and its answer lost.
                let is_this = has_lease_token(known, attempts.lease.lease_token);
                return if is_this { Ok(attempts.started()) } else { known_run(known) };
            }
            if failed.get(LOST_RUN).is_some() {
                // Its lease was renewed or taken over.
                attempts.expired = None;
                continue;
            }
            if let Some(lease) = failed.get(LEASE) {
                match self.table.lease_state(&run.key.user, run.key.request.as_str(), lease).await? {
                    LeaseState::Active(retry_after) => return Ok(AdmitOutcome::Busy { retry_after }),
                    LeaseState::Expired(expired) => attempts.expired = Some(expired),
                }
                continue;
            }
            if let Some(exceeded) = self.exceeded_quota(&mut attempts, &failed, now).await? {
                return Ok(exceeded);
            }
        }
        Err(StoreError::Timeout)
    }

    /// `None`: the next attempt may be admitted.
    async fn exceeded_quota(
        &self,
        attempts: &mut Attempts<'_>,
        failed: &FailedConditions,
        now: Timestamp,
    ) -> Result<Option<AdmitOutcome>> {
        let run = attempts.run;
        let used = |name: &str| failed.get(USAGE)?.get(name)?.as_n().ok()?.parse::<u64>().ok();
        let quotas = run.quotas.filter(|_| failed.get(USAGE).is_some());
        let is_used_up = |quota: fn(&UserQuotas) -> u64, name: &str| {
            quotas.is_some_and(|quotas| used(name).unwrap_or_default() >= quota(&quotas))
        };
        let exceeded = |quota, retry_after| Ok(Some(AdmitOutcome::QuotaExceeded { quota, retry_after }));
        if is_used_up(|quotas| quotas.requests_per_minute.into(), &current_minute(now)) {
            return exceeded(QuotaKind::RequestsPerMinute, until_next(now, 60));
        }
        if let Some(streams) = failed.get(STREAM) {
            match self.table.sweep_streams(&run.key.user, streams).await? {
                StreamSweep::Removed => {}
                StreamSweep::AllActive(_) if run.quotas.is_none() => attempts.limits_streams = false,
                StreamSweep::AllActive(retry_after) => return exceeded(QuotaKind::ConcurrentStreams, retry_after),
            }
        }
        if is_used_up(|quotas| quotas.tokens_per_day, TOKENS) {
            return exceeded(QuotaKind::TokensPerDay, until_next(now, 24 * 60 * 60));
        }
        Ok(None)
    }

    pub(super) async fn read_profile(&self, user: &UserId) -> Result<Option<Vec<u8>>> {
        let Some(item) = self.table.get(Key::profile(user)).await? else { return Ok(None) };
        self.table.read_value(&ValueOwner::new(user, PROFILE), &item).await.map(Some)
    }
}

impl Attempts<'_> {
    fn writes(&self, now: Timestamp) -> Vec<Write> {
        let (key, quotas) = (&self.run.key, self.run.quotas);
        let max_streams = match quotas {
            Some(quotas) => Some(quotas.concurrent_streams),
            None => self.limits_streams.then_some(SWEPT_STREAMS),
        };
        let stream = stream_member(self.lease.lease_token, &key.request);
        let mut writes = vec![
            start_run(self.run, self.lease.lease_token, now),
            count_request(&key.user, quotas, now),
            add_stream_below(&key.user, &stream, max_streams, now),
        ];
        if self.run.takes_session {
            writes.extend(take_lease(&self.lease, self.expired.as_ref(), now));
        }
        writes
    }

    fn started(&self) -> AdmitOutcome {
        AdmitOutcome::Started { lease: AdmittedLease::unguarded(self.lease.clone()), profile: None, history: None }
    }
}

fn known_run(run: &Item) -> Result<AdmitOutcome> {
    let fingerprint = run.bytes(FINGERPRINT)?.try_into().map_err(|_| StoreError::Malformed(FINGERPRINT))?;
    Ok(AdmitOutcome::Known { fingerprint })
}
