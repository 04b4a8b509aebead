//! The end of a run: long values are staged first, and one transaction makes them count with everything else.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    DynamoConversations, EXPIRY_MARGIN,
    attributes::{
        CREATED_AT, ENDED, HOLDS_SESSION, IS_COMPLETE, MAY_BE_LEARNED, PHASE, REQUEST, RUNNING, TOKENS, TURNS,
    },
    item::{Item, ItemExt as _, expiry, flag, iso_time, number, set, text},
    keys::{Key, latest_sort_key, session_owner, stream_member},
    lease::{has_lease_token, release_lease, run_expiry, update_run},
    parts::{PROFILE, StagedValue, ValueOwner, ValueParts},
    pending::dispose,
    run::{last_frame, put_chunk},
    usage::{count_tokens, remove_streams},
    write::{FailedConditions, TransactOutcome, Write},
};
use crate::conversation::{
    error::{Result, StoreError},
    run::{Lease, NewTurn, RunEnding, RunOutcome},
};

const ATTEMPTS: u32 = 4;

/// Positions in the transaction; the lease is in it only if the run holds its session.
const RUN: usize = 0;
const LEASE: usize = 1;

struct FinishRequest<'a> {
    lease: &'a Lease,
    ending: &'a RunEnding,
    now: Timestamp,
}

struct RunContext {
    items: HashMap<String, Item>,
    seq: u32,
    holds_session: bool,
}

struct StagedValues {
    chunk: Option<StagedValue>,
    record: Option<StagedValue>,
    profile: Option<StagedValue>,
}

impl StagedValues {
    fn lasting_parts(&self) -> impl Iterator<Item = &ValueParts> {
        [&self.record, &self.profile].into_iter().filter_map(|value| value.as_ref()?.parts.as_ref())
    }

    fn parts(&self) -> impl Iterator<Item = &ValueParts> {
        self.lasting_parts().chain(self.chunk.as_ref().and_then(|chunk| chunk.parts.as_ref()))
    }
}

enum FinishOutcome {
    Committed,
    LeaseLost,
    Retry,
}

impl DynamoConversations {
    pub(super) async fn finish_run(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        let finished = self.try_finish(lease, ending).await;
        // The tokens of a lost run count.
        if let Err(StoreError::LeaseLost) = finished
            && let Some(used) = count_tokens(&lease.key.user, ending.tokens, Timestamp::now())
        {
            self.table.write(used).await?;
        }
        finished
    }

    async fn try_finish(&self, lease: &Lease, ending: &RunEnding) -> Result<()> {
        let Some(mut context) = self.context_of_end(lease, ending).await? else {
            // A retry of a committed end whose answer was lost.
            return Ok(());
        };
        let request = FinishRequest { lease, ending, now: Timestamp::now() };
        let values = self.stage(&request).await?;
        for _ in 0..ATTEMPTS {
            match self.attempt_end(&request, &context, &values).await? {
                FinishOutcome::Committed => {
                    self.delete_old_profile(lease, &context, &values).await;
                    return Ok(());
                }
                FinishOutcome::Retry => {}
                FinishOutcome::LeaseLost => break,
            }
            context = match self.context_of_end(lease, ending).await {
                Ok(Some(context)) => context,
                Ok(None) => return Ok(()),
                Err(StoreError::LeaseLost) => break,
                Err(error) => return Err(error),
            };
        }
        for parts in values.parts() {
            self.table.delete_parts(parts).await;
        }
        Err(StoreError::LeaseLost)
    }

    /// `None`: the run has ended already.
    async fn context_of_end(&self, lease: &Lease, ending: &RunEnding) -> Result<Option<RunContext>> {
        let key = &lease.key;
        let run = Key::run(&key.user, key.request.as_str());
        let session = Key::session(&key.user, &key.session);
        let mut keys = vec![run.clone(), session.clone()];
        keys.extend(ending.resumed_turn.as_ref().map(|_| Key::pending(&key.user, &key.session)));
        keys.extend(ending.profile.as_ref().map(|_| Key::profile(&key.user)));
        let items = self.table.batch_get(keys).await?;
        let run = items.get(&run.item).filter(|run| has_lease_token(run, lease.lease_token));
        let run = run.ok_or(StoreError::LeaseLost)?;
        match run.text(PHASE)? {
            RUNNING => {}
            ENDED => return Ok(None),
            _ => return Err(StoreError::LeaseLost),
        }
        let holds_session = run.flag(HOLDS_SESSION);
        let turns: u32 = items.get(&session.item).map_or(Ok(0), |session| session.number(TURNS))?;
        Ok(Some(RunContext { items, seq: turns + 1, holds_session }))
    }

    async fn stage(&self, request: &FinishRequest<'_>) -> Result<StagedValues> {
        let FinishRequest { lease, ending, now } = request;
        let (user, lease_token) = (&lease.key.user, lease.lease_token);
        let expires = expiry(*now, EXPIRY_MARGIN);
        let chunk = match ending.chunk.count {
            0 => None,
            _ => Some(self.stage_chunk(lease, &ending.chunk, *now).await?),
        };
        // Under the lease token, so that a retry of the same end writes the same parts.
        let record = match &ending.turn {
            Some(turn) => {
                let owner = ValueOwner::new(user, session_owner(&lease.key.session));
                Some(self.table.stage_value(&owner, lease_token, &turn.record, &expires).await?)
            }
            None => None,
        };
        let profile = match &ending.profile {
            Some(profile) => {
                let owner = ValueOwner::new(user, PROFILE);
                Some(self.table.stage_value(&owner, lease_token, profile, &expires).await?)
            }
            None => None,
        };
        let values = StagedValues { chunk, record, profile };
        for parts in values.lasting_parts() {
            self.table.clear_expiry(parts).await?;
        }
        Ok(values)
    }

    async fn attempt_end(
        &self,
        request: &FinishRequest<'_>,
        context: &RunContext,
        values: &StagedValues,
    ) -> Result<FinishOutcome> {
        Ok(match self.table.transact(request.writes(context, values)).await? {
            TransactOutcome::Committed => FinishOutcome::Committed,
            TransactOutcome::ConditionsFailed(failed) => judge(&failed, request.lease, context),
        })
    }

    async fn delete_old_profile(&self, lease: &Lease, context: &RunContext, values: &StagedValues) {
        let user = &lease.key.user;
        let old = context.items.get(&Key::profile(user).item);
        let old = old.and_then(|old| ValueOwner::new(user, PROFILE).parts_of(old));
        let new = values.profile.as_ref().map(|profile| &profile.parts);
        if let (Some(old), Some(new)) = (&old, new)
            && new.as_ref() != Some(old)
        {
            self.table.delete_parts(old).await;
        }
    }
}

fn judge(failed: &FailedConditions, lease: &Lease, context: &RunContext) -> FinishOutcome {
    let lost_session = context.holds_session && failed.get(LEASE).is_some();
    match failed.get(RUN) {
        // An earlier attempt may be committed.
        Some(run) if has_lease_token(run, lease.lease_token) => FinishOutcome::Retry,
        None if !lost_session => FinishOutcome::Retry,
        _ => FinishOutcome::LeaseLost,
    }
}

impl FinishRequest<'_> {
    fn writes(&self, context: &RunContext, values: &StagedValues) -> Vec<Write> {
        let Self { lease, ending, now } = *self;
        let key = &lease.key;
        let mut writes = vec![self.end_run()];
        if context.holds_session {
            writes.push(release_lease(lease));
        }
        writes.push(remove_streams(&key.user, set([stream_member(lease.lease_token, &key.request)]), now));
        writes.extend(values.chunk.as_ref().map(|staged| put_chunk(lease, &ending.chunk, staged, now)));
        if let (Some(turn), Some(record)) = (&ending.turn, &values.record) {
            writes.extend(self.put_turn(turn, record, context.seq));
        }
        if let Some(profile) = &values.profile {
            writes.push(Write::put(Key::profile(&key.user), profile.attributes.clone()));
        }
        writes.extend(count_tokens(&key.user, ending.tokens, now));
        if let Some((resumed, disposition)) = &ending.resumed_turn
            && let Some(pending) = context.items.get(&Key::pending(&key.user, &key.session).item)
        {
            writes.extend(dispose(lease, pending, resumed, *disposition));
        }
        writes
    }

    fn end_run(&self) -> Write {
        let frames = if self.ending.chunk.count > 0 { ", frames = :frames" } else { "" };
        let expression = format!("SET phase = :ended, repeatable = :repeatable, expires_at = :expires{frames}");
        let run = update_run(self.lease, &expression)
            .bind(":ended", text(ENDED))
            .bind(":repeatable", flag(self.ending.outcome == RunOutcome::Repeatable))
            .bind(":expires", run_expiry(self.now));
        match self.ending.chunk.count {
            0 => run,
            _ => run.bind(":frames", number(last_frame(&self.ending.chunk))),
        }
    }

    fn put_turn(&self, turn: &NewTurn, record: &StagedValue, seq: u32) -> [Write; 2] {
        let key = &self.lease.key;
        let now = iso_time(self.now);
        let mut attributes = record.attributes.clone();
        attributes.extend([
            (REQUEST, text(key.request.as_str())),
            (TOKENS, number(turn.tokens)),
            (IS_COMPLETE, flag(turn.is_complete)),
            (MAY_BE_LEARNED, flag(turn.may_be_learned)),
            (CREATED_AT, text(&now)),
        ]);
        let put = Write::put(Key::turn(&key.user, &key.session, seq), attributes);
        let put = put.condition("attribute_not_exists(user_id)");
        let expression = "SET turns = :turns, updated = :updated, title = if_not_exists(title, :title), \
                          created_at = if_not_exists(created_at, :now)";
        let session = Write::update(Key::session(&key.user, &key.session), expression)
            .bind(":turns", number(seq))
            .bind(":updated", text(latest_sort_key(&now, key.session.as_str())))
            .bind(":title", text(&turn.provisional_title))
            .bind(":now", text(&now));
        let session = match seq {
            1 => session.condition("attribute_not_exists(turns)"),
            _ => session.condition("turns = :before").bind(":before", number(seq - 1)),
        };
        [put, session]
    }
}
