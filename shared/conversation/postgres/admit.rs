use sqlx::{Row as _, ValueRef as _, postgres::PgRow};
use uuid::Uuid;

use super::{PostgresConversations, Result, StoreError, read_seconds, session};
use crate::{
    conversation::{
        quotas::QuotaKind,
        run::{AdmitOutcome, AdmittedLease, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, NewRun},
        session::History,
    },
    postgres::SqlArgument,
};

const REVOKE: &str = "
    with revoked as (
        delete from runs where user_id = $1 and request_id = $2 and holder = $3 and ended_at is null
        returning started_at
    )
    update user_usage set requests = requests - 1 from revoked
    where user_id = $1 and requests > 0 and minute = date_trunc('minute', started_at, 'UTC')";

impl PostgresConversations {
    pub(super) async fn admit_run(&self, run: &NewRun) -> Result<AdmitOutcome> {
        let lease = Lease { key: run.key.clone(), lease_token: Uuid::new_v4() };
        let quota =
            |quota: Option<u64>| SqlArgument::Number(quota.map(|quota| i64::try_from(quota).unwrap_or(i64::MAX)));
        let quotas = run.quotas.as_ref();
        let arguments = [
            SqlArgument::Text(run.key.user.as_str()),
            SqlArgument::Text(run.key.session.as_str()),
            SqlArgument::Text(run.key.request.as_str()),
            SqlArgument::Bytes(Some(&run.fingerprint)),
            SqlArgument::Bytes(Some(&run.head)),
            SqlArgument::Bytes(Some(lease.lease_token.as_bytes())),
            SqlArgument::Bool(run.takes_session),
            SqlArgument::Bool(run.resumes),
            SqlArgument::Seconds(LEASE_DURATION),
            SqlArgument::Seconds(IDEMPOTENCY_WINDOW),
            quota(quotas.map(|quotas| quotas.requests_per_minute.into())),
            quota(quotas.map(|quotas| quotas.concurrent_streams.into())),
            quota(quotas.map(|quotas| quotas.tokens_per_day)),
            SqlArgument::Number(run.history_budget.map(Into::into)),
        ];
        let database = self.database.with_statement_timeout(self.timeouts.admit);
        let rows = match database.call_function(&run.key.user, "admit_turn", &arguments).await {
            Ok(rows) => rows,
            Err(error) => {
                // The answer was lost, but the admission may have been committed.
                if !run.resumes && matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) {
                    // If this fails too, the run ends when its lease expires.
                    let _revoked = self.revoke_run(&lease).await;
                }
                return Err(error.into());
            }
        };
        let (outcome, turns) = rows.split_first().ok_or(StoreError::Malformed("an admission"))?;
        if outcome.try_get::<Option<bool>, _>("has_old_runs")?.unwrap_or_default() {
            self.sweeper.sweep_later(&run.key.user);
        }
        match outcome.try_get("outcome")? {
            "started" => Ok(AdmitOutcome::Started {
                lease: AdmittedLease::unguarded(lease),
                profile: outcome.try_get("profile")?,
                history: run.history_budget.map(|_| read_history(outcome, turns)).transpose()?.flatten(),
            }),
            refused => read_refusal(refused, outcome),
        }
    }

    pub(super) async fn revoke_run(&self, lease: &Lease) -> Result<()> {
        let mut transaction = self.begin_locked(&lease.key.user, self.timeouts.short).await?;
        let revoke = transaction.query(REVOKE).bind(lease.key.user.as_str()).bind(lease.key.request.as_str());
        revoke.bind(lease.lease_token.as_bytes()).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// `None`: it is too long for an admission.
fn read_history(outcome: &PgRow, turns: &[PgRow]) -> Result<Option<History>> {
    if outcome.try_get::<Option<i64>, _>("summary_through")?.is_none() {
        return Ok(Some(History::default()));
    }
    if let Some(last) = turns.last()
        && last.try_get_raw("record")?.is_null()
    {
        return Ok(None);
    }
    session::read_history(outcome, turns).map(Some)
}

fn read_refusal(outcome: &str, row: &PgRow) -> Result<AdmitOutcome> {
    let retry_after = || read_seconds(row, "retry_after");
    let exceeded = |quota| Ok(AdmitOutcome::QuotaExceeded { quota, retry_after: retry_after()? });
    match outcome {
        "known" => {
            let fingerprint = row.try_get::<Vec<u8>, _>("fingerprint")?.try_into();
            Ok(AdmitOutcome::Known { fingerprint: fingerprint.map_err(|_| StoreError::Malformed("a fingerprint"))? })
        }
        "unknown" => Ok(AdmitOutcome::Unknown),
        "busy" => Ok(AdmitOutcome::Busy { retry_after: retry_after()? }),
        "requests" => exceeded(QuotaKind::RequestsPerMinute),
        "streams" => exceeded(QuotaKind::ConcurrentStreams),
        "tokens" => exceeded(QuotaKind::TokensPerDay),
        _ => Err(StoreError::Malformed("an admission")),
    }
}
