use sqlx::Row as _;

use super::{PostgresConversations, Result, StoreError, lock_user, read_request_id};
use crate::{
    conversation::run::{Lease, Preemption, ReaderSignals, RunKey, UNWATCH_DELAY},
    identity::{RequestId, UserId},
};

/// Writes only where a mark changes. A reader that came back was not asked to give way.
const SET_READ: &str = "
    with changed as (
        update runs
        set unread_since = case when not $4 then clock_timestamp() end, is_preempted = is_preempted and not $4
        where user_id = $1 and request_id = $2 and holder = $3 and ended_at is null
              and ((unread_since is null) <> $4 or is_preempted and $4)
    )
    select coalesce(watched_until > clock_timestamp(), false) as is_watched, is_preempted from runs
    where user_id = $1 and request_id = $2 and holder = $3 and ended_at is null";
/// Not at once: other readers may follow the run, and renew the mark.
const UNWATCH: &str = "
    update runs set watched_until = clock_timestamp() + make_interval(secs => $3)
    where user_id = $1 and request_id = $2 and watched_until > clock_timestamp() + make_interval(secs => $3)";

/// With `$4` the run has lost the session, and its lease with it. The conditions stand on the updated row: a reader may come
/// back while the update waits for it.
const PREEMPT: &str = "
    with held as (
        select request_id, unread_since is not null as is_unread, is_preempted,
               coalesce(watched_until > clock_timestamp(), false) as is_watched
        from runs
        where user_id = $1 and session_id = $2 and request_id <> $3 and holds_session and lease_until > clock_timestamp()
    ), preempted as (
        update runs r
        set is_preempted = true, holds_session = not $4, holder = case when not $4 then r.holder end,
            lease_until = case when $4 then clock_timestamp() else r.lease_until end
        from held h
        where r.user_id = $1 and r.request_id = h.request_id and ($4 or not h.is_preempted)
              and r.ended_at is null and r.holds_session and r.unread_since is not null
              and coalesce(r.watched_until <= clock_timestamp(), true)
        returning r.request_id
    )
    select h.request_id, h.is_watched,
           p.request_id is not null or h.is_preempted and h.is_unread and not h.is_watched and not $4 as is_requested
    from held h left join preempted p using (request_id)";

impl PostgresConversations {
    pub(super) async fn set_run_read(&self, lease: &Lease, is_read: bool) -> Result<ReaderSignals> {
        let mut transaction = self.database.begin(&lease.key.user).await?;
        let set = transaction.query(SET_READ).bind(lease.key.user.as_str()).bind(lease.key.request.as_str());
        let set = set.bind(lease.lease_token.as_bytes()).bind(is_read).fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        let run = set.ok_or(StoreError::LeaseLost)?;
        Ok(ReaderSignals { is_watched: run.try_get("is_watched")?, is_preempted: run.try_get("is_preempted")? })
    }

    pub(super) async fn unwatch_run(&self, user: &UserId, request: &RequestId) -> Result<()> {
        let mut transaction = self.database.begin(user).await?;
        let unwatch = transaction.query(UNWATCH).bind(user.as_str()).bind(request.as_str());
        let unwatch = unwatch.bind(UNWATCH_DELAY.as_secs_f64());
        unwatch.execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    pub(super) async fn preempt_run(&self, key: &RunKey, takes_over: bool) -> Result<Preemption> {
        let user = key.user.as_str();
        let mut transaction = self.database.begin(&key.user).await?;
        if takes_over {
            lock_user(&mut transaction, &key.user).await?;
        }
        let preempt = transaction.query(PREEMPT).bind(user).bind(key.session.as_str());
        let preempt = preempt.bind(key.request.as_str()).bind(takes_over);
        let held = preempt.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        let Some(held) = held else { return Ok(Preemption::Free) };
        let request = read_request_id(&held, "request_id")?;
        let is_watched: bool = held.try_get("is_watched")?;
        Ok(match held.try_get("is_requested")? {
            true => Preemption::Requested { request },
            false => Preemption::Refused { request, is_watched },
        })
    }
}
