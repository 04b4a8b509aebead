//! Letting runs in.

use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{LOCK_USER, PostgresConversations, QUEUE_TIMEOUT, StoreError, in_time, session_id};
use crate::{
    conversation::{AdmitOutcome, IDEMPOTENCY_WINDOW, LEASE_DURATION, Lease, NewRun, QuotaKind},
    postgres::SqlArgument,
};

/// How much longer than its caller an admission waits for the database, to take back what became of it.
const AFTERMATH: Duration = Duration::from_secs(30);

/// Takes back what the admission had counted, if that is still counted.
const ABANDON: &str = "
    with abandoned as (
        delete from runs where user_id = $1 and request_id = $2 and holder = $3 and ended_at is null
        returning started_at
    )
    update user_usage set requests = requests - 1 from abandoned
    where user_id = $1 and requests > 0 and minute = date_trunc('minute', started_at, 'UTC')";

impl PostgresConversations {
    /// Lets a run in. Whoever asked may leave, or lose patience, while the database lets the run in: nobody would run it, and
    /// its conversation would be taken until the lease ends. So the question is asked by a task, which takes such an
    /// admission back.
    pub(super) async fn admit_run(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        let queued = timeout(QUEUE_TIMEOUT, self.admit_permits.clone().acquire_owned()).await;
        let Ok(Ok(_place)) = queued else { return Err(StoreError::Timeout) };
        let (answer, answered) = oneshot::channel();
        let (store, run) = (self.clone(), run.clone());
        let patience = self.admit_timeout + AFTERMATH;
        drop(tokio::spawn(async move {
            let admitted = in_time(patience, store.ask(&run)).await;
            if let Err(Ok(AdmitOutcome::Started { lease, .. })) = answer.send(admitted)
                && let Err(error) = in_time(AFTERMATH, store.abandon_run(&lease)).await
            {
                tracing::warn!(%error, "an admission that came too late holds its conversation until its lease ends");
            }
        }));
        let admitted = match timeout(self.admit_timeout, answered).await {
            Ok(Ok(admitted)) => admitted,
            // The runtime stops.
            Ok(Err(_)) | Err(_) => Err(StoreError::Timeout),
        };
        match admitted {
            // A pool waits for a server that refuses connections as it does for one that is slow.
            Err(StoreError::Timeout | StoreError::Database(sqlx::Error::PoolTimedOut))
                if self.database.is_unreachable().await =>
            {
                Err(StoreError::Unreachable)
            }
            admitted => admitted,
        }
    }

    /// Asks the database, in one round trip.
    async fn ask(&self, run: &NewRun) -> Result<AdmitOutcome, StoreError> {
        let holder = Uuid::new_v4();
        let limit =
            |limit: Option<u64>| SqlArgument::Number(limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)));
        let limits = run.quotas.as_ref();
        let arguments = [
            SqlArgument::Text(run.key.user.as_str()),
            SqlArgument::Text(run.key.session.as_str()),
            SqlArgument::Text(run.key.request.as_str()),
            SqlArgument::Bytes(Some(&run.fingerprint)),
            SqlArgument::Bytes(Some(&run.head)),
            SqlArgument::Bytes(Some(holder.as_bytes())),
            SqlArgument::Bool(run.takes_session),
            SqlArgument::Bool(run.resumes),
            SqlArgument::Seconds(LEASE_DURATION),
            SqlArgument::Seconds(IDEMPOTENCY_WINDOW),
            limit(limits.map(|limits| limits.requests_per_minute.into())),
            limit(limits.map(|limits| limits.concurrent_streams.into())),
            limit(limits.map(|limits| limits.tokens_per_day)),
        ];
        let database = self.database.with_statement_timeout(self.admit_timeout);
        let row = database.call_function(&run.key.user, "admit_run", &arguments).await?;
        admission(&row.ok_or(StoreError::Malformed("an admission"))?, run, holder)
    }

    pub(super) async fn abandon_run(&self, lease: &Lease) -> Result<(), StoreError> {
        let user = lease.key.user.as_str();
        let mut transaction = self.database.begin(&lease.key.user).await?;
        transaction.query(LOCK_USER).bind(user).execute(&mut *transaction).await?;
        let abandon =
            transaction.query(ABANDON).bind(user).bind(lease.key.request.as_str()).bind(lease.lease_token.as_bytes());
        abandon.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// What the database made of a run.
fn admission(row: &PgRow, run: &NewRun, holder: Uuid) -> Result<AdmitOutcome, StoreError> {
    let retry_after = || {
        let seconds: f64 = row.try_get("retry_after")?;
        Duration::try_from_secs_f64(seconds).map_err(|_| StoreError::Malformed("a time"))
    };
    let over = |limit| Ok(AdmitOutcome::QuotaExceeded { quota: limit, retry_after: retry_after()? });
    match row.try_get("outcome")? {
        "started" => Ok(AdmitOutcome::Started {
            lease: Lease { key: run.key.clone(), lease_token: holder },
            profile: row.try_get("profile")?,
        }),
        "known" => Ok(AdmitOutcome::Known {
            session: session_id(row, "session")?,
            fingerprint: row
                .try_get::<Vec<u8>, _>("fingerprint")?
                .try_into()
                .map_err(|_| StoreError::Malformed("the digest of a request"))?,
        }),
        "unknown" => Ok(AdmitOutcome::Unknown),
        "busy" => Ok(AdmitOutcome::Busy { retry_after: retry_after()? }),
        "requests" => over(QuotaKind::RequestsPerMinute),
        "streams" => over(QuotaKind::ConcurrentStreams),
        "tokens" => over(QuotaKind::TokensPerDay),
        _ => Err(StoreError::Malformed("an admission")),
    }
}
