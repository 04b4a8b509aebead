//! Letting runs in.

use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{LOCK_USER, PostgresConversations, QUEUE_TIMEOUT, StoreError, in_time, session_id};
use crate::{
    conversation::{Admission, LEASE, Lease, Limit, NewRun, REMEMBERED},
    postgres::Argument,
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
    pub(super) async fn admit_run(&self, run: &NewRun) -> Result<Admission, StoreError> {
        let queued = timeout(QUEUE_TIMEOUT, self.queue.clone().acquire_owned()).await;
        let Ok(Ok(_place)) = queued else { return Err(StoreError::Timeout) };
        let (answer, answered) = oneshot::channel();
        let (store, run) = (self.clone(), run.clone());
        let patience = self.admission + AFTERMATH;
        drop(tokio::spawn(async move {
            let admitted = in_time(patience, store.ask(&run)).await;
            if let Err(Ok(Admission::Started { lease, .. })) = answer.send(admitted)
                && let Err(error) = in_time(AFTERMATH, store.abandon_run(&lease)).await
            {
                tracing::warn!(%error, "an admission that came too late holds its conversation until its lease ends");
            }
        }));
        let admitted = match timeout(self.admission, answered).await {
            Ok(Ok(admitted)) => admitted,
            // The runtime stops.
            Ok(Err(_)) | Err(_) => Err(StoreError::Timeout),
        };
        match admitted {
            // A pool waits for a server that refuses connections as it does for one that is slow.
            Err(StoreError::Timeout | StoreError::Database(sqlx::Error::PoolTimedOut))
                if self.database.is_out_of_reach().await =>
            {
                Err(StoreError::Unreachable)
            }
            admitted => admitted,
        }
    }

    /// Asks the database, in one round trip.
    async fn ask(&self, run: &NewRun) -> Result<Admission, StoreError> {
        let holder = Uuid::new_v4();
        let limit = |limit: Option<u64>| Argument::Number(limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)));
        let limits = run.limits.as_ref();
        let arguments = [
            Argument::Text(run.key.user.as_str()),
            Argument::Text(run.key.session.as_str()),
            Argument::Text(run.key.request.as_str()),
            Argument::Bytes(Some(&run.fingerprint)),
            Argument::Bytes(Some(&run.head)),
            Argument::Bytes(Some(holder.as_bytes())),
            Argument::Flag(run.takes_session),
            Argument::Flag(run.resumes),
            Argument::Seconds(LEASE),
            Argument::Seconds(REMEMBERED),
            limit(limits.map(|limits| limits.requests_per_minute.into())),
            limit(limits.map(|limits| limits.concurrent_streams.into())),
            limit(limits.map(|limits| limits.tokens_per_day)),
        ];
        let database = self.database.within(self.admission);
        let row = database.call(&run.key.user, "admit_run", &arguments).await?;
        admission(&row.ok_or(StoreError::Malformed("an admission"))?, run, holder)
    }

    pub(super) async fn abandon_run(&self, lease: &Lease) -> Result<(), StoreError> {
        let user = lease.key.user.as_str();
        let mut transaction = self.database.begin(&lease.key.user).await?;
        transaction.query(LOCK_USER).bind(user).execute(&mut *transaction).await?;
        let abandon =
            transaction.query(ABANDON).bind(user).bind(lease.key.request.as_str()).bind(lease.holder.as_bytes());
        abandon.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// What the database made of a run.
fn admission(row: &PgRow, run: &NewRun, holder: Uuid) -> Result<Admission, StoreError> {
    let retry_after = || {
        let seconds: f64 = row.try_get("retry_after")?;
        Duration::try_from_secs_f64(seconds).map_err(|_| StoreError::Malformed("a time"))
    };
    let over = |limit| Ok(Admission::Over { limit, retry_after: retry_after()? });
    match row.try_get("outcome")? {
        "started" => {
            Ok(Admission::Started { lease: Lease { key: run.key.clone(), holder }, profile: row.try_get("profile")? })
        }
        "known" => Ok(Admission::Known {
            session: session_id(row, "session")?,
            fingerprint: row
                .try_get::<Vec<u8>, _>("fingerprint")?
                .try_into()
                .map_err(|_| StoreError::Malformed("the digest of a request"))?,
        }),
        "unknown" => Ok(Admission::Unknown),
        "busy" => Ok(Admission::Busy { retry_after: retry_after()? }),
        "requests" => over(Limit::RequestsPerMinute),
        "streams" => over(Limit::ConcurrentStreams),
        "tokens" => over(Limit::TokensPerDay),
        _ => Err(StoreError::Malformed("an admission")),
    }
}
