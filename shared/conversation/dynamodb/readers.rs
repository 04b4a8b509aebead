use jiff::Timestamp;

use super::{
    DynamoConversations,
    attributes::{LEASE_TOKEN, LOST, PREEMPTED, REQUEST, RUNNING, UNREAD_SINCE, WATCHED_UNTIL},
    item::{Item, ItemExt as _, add, flag, millis, text},
    keys::Key,
    lease::{is_alive, update_run},
    write::{Write, WriteOutcome},
};
use crate::{
    conversation::{
        error::{Result, StoreError},
        run::{Lease, Preemption, ReaderSignals, RunKey, UNWATCH_DELAY},
    },
    identity::{RequestId, UserId},
};

impl DynamoConversations {
    pub(super) async fn set_run_read(&self, lease: &Lease, is_read: bool) -> Result<ReaderSignals> {
        let now = Timestamp::now();
        let update = match is_read {
            true => update_run(lease, "REMOVE unread_since, preempted"),
            false => {
                update_run(lease, "SET unread_since = if_not_exists(unread_since, :now)").bind(":now", millis(now))
            }
        };
        let WriteOutcome::Done(run) = self.table.write(update.returning_new()).await? else {
            return Err(StoreError::LeaseLost);
        };
        Ok(ReaderSignals { is_watched: is_watched(&run, now), is_preempted: run.flag(PREEMPTED) })
    }

    pub(super) async fn unwatch_run(&self, user: &UserId, request: &RequestId) -> Result<()> {
        // Not at once: other readers may follow the run, and renew the mark.
        let unwatch = Write::update(Key::run(user, request.as_str()), "SET watched_until = :soon");
        let unwatch =
            unwatch.condition("watched_until > :soon").bind(":soon", millis(add(Timestamp::now(), UNWATCH_DELAY)));
        self.table.write(unwatch).await?;
        Ok(())
    }

    pub(super) async fn preempt_run(&self, key: &RunKey, takes_over: bool) -> Result<Preemption> {
        let Some(lease) = self.table.get(Key::lease(&key.user, &key.session)).await? else {
            return Ok(Preemption::Free);
        };
        // The lease of a deletion has no request.
        let Ok(request) = lease.text(REQUEST) else { return Ok(Preemption::Deleting) };
        let lease_token = lease.text(LEASE_TOKEN)?;
        let run = self.table.get(Key::run(&key.user, request)).await?;
        let now = Timestamp::now();
        let holds = |run: &Item| run.text(LEASE_TOKEN).is_ok_and(|stored| stored == lease_token) && is_alive(run, now);
        let Some(run) = run.filter(|run| request != key.request.as_str() && holds(run)) else {
            return Ok(Preemption::Free);
        };
        let request = RequestId::parse(REQUEST, request).map_err(|_| StoreError::Malformed(REQUEST))?;
        let is_watched = is_watched(&run, now);
        if !run.contains_key(UNREAD_SINCE) || is_watched {
            return Ok(Preemption::Refused { request, is_watched });
        }
        let run = Key::run(&key.user, request.as_str());
        let preempt = match takes_over {
            true => Write::update(run, "SET phase = :lost").bind(":lost", text(LOST)),
            false => Write::update(run, "SET preempted = :yes").bind(":yes", flag(true)),
        };
        let preempt = preempt
            .condition(
                "holder = :holder AND phase = :running AND attribute_exists(unread_since) \
                 AND (attribute_not_exists(watched_until) OR watched_until <= :now)",
            )
            .bind(":holder", text(lease_token))
            .bind(":now", millis(now))
            .bind(":running", text(RUNNING));
        Ok(match self.table.write(preempt).await? {
            WriteOutcome::Done(_) => Preemption::Requested { request },
            // It has ended, or a reader came back.
            WriteOutcome::ConditionFailed => Preemption::Refused { request, is_watched },
        })
    }
}

fn is_watched(run: &Item, now: Timestamp) -> bool {
    run.millis(WATCHED_UNTIL).is_ok_and(|watched| watched > now)
}
