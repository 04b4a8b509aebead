//! The end of a run: what is long is written first, and one transaction makes it count together with all the rest.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    DAY, DynamoConversations,
    admit::{TOKENS, USAGE_RETENTION, remove_streams},
    item::{Item, ItemExt as _, expiry, flag, iso_time, number, set, text},
    keys::{Key, session_owner, stream_member},
    lease::{ENDED, HOLDS_SESSION, PHASE, REQUEST, RUNNING, has_lease_token, run_expiry, update_run},
    parts::{PROFILE, StagedValue, ValueParts},
    run::{last_frame, put_chunk},
    session::{CREATED, TURNS, latest_sort_key},
    turns::{IS_COMPLETE, MAY_BE_LEARNED},
    write::{FailedConditions, TransactOutcome, Write},
};
use crate::{
    conversation::{Lease, NewTurn, PendingTurnDisposition, PendingTurnId, RunEnding, RunOutcome, StoreError},
    identity::UserId,
};

/// How often an end begins anew, because something changed under it.
const TRIES: u32 = 4;

/// What is known before the end is written.
struct RunContext {
    items: HashMap<String, Item>,
    /// The number that the turn gets.
    seq: u32,
    /// Whether the run has its conversation, which it gives up.
    holds_session: bool,
}

/// What is long, as good as kept.
struct StagedValues {
    chunk: Option<StagedValue>,
    record: Option<StagedValue>,
    profile: Option<StagedValue>,
}

impl StagedValues {
    /// Parts of what is kept for good.
    fn lasting(&self) -> impl Iterator<Item = &ValueParts> {
        [&self.record, &self.profile].into_iter().filter_map(|value| value.as_ref()?.parts.as_ref())
    }

    fn divided(&self) -> impl Iterator<Item = &ValueParts> {
        self.lasting().chain(self.chunk.as_ref().and_then(|chunk| chunk.parts.as_ref()))
    }
}

/// How an attempt to write the end went.
enum Attempt {
    Done,
    Lost,
    Again,
}

impl DynamoConversations {
    pub(super) async fn finish_run(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError> {
        let ended = self.try_to_end(lease, ending).await;
        if let Err(StoreError::LeaseLost) = ended {
            // What was spent counts, though nothing of it is kept.
            if let Some(spent) = spend(&lease.key.user, ending.tokens, Timestamp::now()) {
                self.table.write(spent).await?;
            }
        }
        ended
    }

    async fn try_to_end(&self, lease: &Lease, ending: &RunEnding) -> Result<(), StoreError> {
        let mut before = match self.before(lease, ending).await? {
            Some(before) => before,
            // It is kept already, and the answer was lost.
            None => return Ok(()),
        };
        let now = Timestamp::now();
        let values = self.prepare(lease, ending, now).await?;
        for _ in 0..TRIES {
            match self.attempt(lease, ending, &before, &values, now).await? {
                Attempt::Done => {
                    self.discard_old_profile(lease, &before, &values).await;
                    return Ok(());
                }
                Attempt::Again => {}
                Attempt::Lost => break,
            }
            before = match self.before(lease, ending).await {
                Ok(Some(before)) => before,
                Ok(None) => return Ok(()),
                Err(StoreError::LeaseLost) => break,
                Err(error) => return Err(error),
            };
        }
        for divided in values.divided() {
            self.table.delete_parts(divided).await;
        }
        Err(StoreError::LeaseLost)
    }

    /// What stands before the end; `None` = the end is there already.
    async fn before(&self, lease: &Lease, ending: &RunEnding) -> Result<Option<RunContext>, StoreError> {
        let Lease { key, lease_token: holder } = lease;
        let run = Key::run(&key.user, key.request.as_str());
        let session = Key::session(&key.user, &key.session);
        let mut keys = vec![run.clone(), session.clone()];
        keys.extend(ending.resumed_turn.as_ref().map(|_| Key::pending(&key.user, &key.session)));
        keys.extend(ending.profile.as_ref().map(|_| Key::profile(&key.user)));
        let items = self.table.batch_get(keys).await?;
        let holder = holder.to_string();
        let run = items.get(&run.item).filter(|run| has_lease_token(run, &holder)).ok_or(StoreError::LeaseLost)?;
        match run.text(PHASE)? {
            RUNNING => {}
            ENDED => return Ok(None),
            _ => return Err(StoreError::LeaseLost),
        }
        let holds_session = run.flag(HOLDS_SESSION);
        let turns = match items.get(&session.item) {
            Some(session) => session.number(TURNS)?,
            None => 0_u32,
        };
        Ok(Some(RunContext { items, seq: turns + 1, holds_session }))
    }

    async fn prepare(&self, lease: &Lease, ending: &RunEnding, now: Timestamp) -> Result<StagedValues, StoreError> {
        let Lease { key, lease_token: holder } = lease;
        let soon = expiry(now, DAY);
        let chunk = match ending.chunk.count {
            0 => None,
            _ => Some(self.stage_chunk(lease, &ending.chunk, now).await?),
        };
        // Under the holder's name, so that the same end tried again writes the same parts.
        let record = match &ending.turn {
            Some(turn) => {
                let owner = session_owner(&key.session);
                Some(self.table.stage_value(&key.user, &owner, *holder, &turn.record, &soon).await?)
            }
            None => None,
        };
        let profile = match &ending.profile {
            Some(profile) => Some(self.table.stage_value(&key.user, PROFILE, *holder, profile, &soon).await?),
            None => None,
        };
        let values = StagedValues { chunk, record, profile };
        for divided in values.lasting() {
            self.table.clear_expiry(divided).await?;
        }
        Ok(values)
    }

    async fn attempt(
        &self,
        lease: &Lease,
        ending: &RunEnding,
        before: &RunContext,
        values: &StagedValues,
        now: Timestamp,
    ) -> Result<Attempt, StoreError> {
        let writes = end(lease, ending, before, values, now);
        Ok(match self.table.transact(writes).await? {
            TransactOutcome::Done => Attempt::Done,
            TransactOutcome::Refused(refusals) => judge(&refusals, lease, before),
        })
    }

    /// Deletes the parts of the profile whose place was taken.
    async fn discard_old_profile(&self, lease: &Lease, before: &RunContext, values: &StagedValues) {
        let user = &lease.key.user;
        let old = before.items.get(&Key::profile(user).item).and_then(|old| ValueParts::of(user, PROFILE, old));
        let new = values.profile.as_ref().map(|profile| &profile.parts);
        if let (Some(old), Some(new)) = (&old, new)
            && new.as_ref() != Some(old)
        {
            self.table.delete_parts(old).await;
        }
    }
}

/// Where the writes of an end are in its transaction.
const RUN: usize = 0;
const GIVEN_UP: usize = 1;

fn judge(refusals: &FailedConditions, lease: &Lease, before: &RunContext) -> Attempt {
    let is_mine = |item: &Item| has_lease_token(item, &lease.lease_token.to_string());
    let is_taken = before.holds_session && refusals.get(GIVEN_UP).is_some();
    match refusals.get(RUN) {
        // It may have ended by an earlier try.
        Some(run) if is_mine(run) => Attempt::Again,
        None if !is_taken => Attempt::Again,
        _ => Attempt::Lost,
    }
}

/// All writes of an end.
fn end(lease: &Lease, ending: &RunEnding, before: &RunContext, values: &StagedValues, now: Timestamp) -> Vec<Write> {
    let Lease { key, lease_token: holder } = lease;
    let frames = if ending.chunk.count > 0 { ", frames = :frames" } else { "" };
    let expression = format!("SET phase = :ended, repeatable = :repeatable, expires_at = :expires{frames}");
    let mut run = update_run(key, *holder, &expression)
        .bind(":ended", text(ENDED))
        .bind(":repeatable", flag(ending.outcome == RunOutcome::Repeatable))
        .bind(":expires", run_expiry(now));
    if ending.chunk.count > 0 {
        run = run.bind(":frames", number(last_frame(&ending.chunk)));
    }
    let mut writes = vec![run];
    if before.holds_session {
        let lease = Write::delete(Key::lease(&key.user, &key.session));
        writes.push(lease.condition("holder = :holder").bind(":holder", text(*holder)));
    }
    writes.push(remove_streams(&key.user, set([stream_member(*holder, &key.request)]), now));
    writes.extend(values.chunk.as_ref().map(|prepared| put_chunk(lease, &ending.chunk, prepared, now)));
    if let (Some(turn), Some(record)) = (&ending.turn, &values.record) {
        writes.extend(keep_turn(lease, turn, record, before.seq, now));
    }
    if let Some(profile) = &values.profile {
        writes.push(Write::put(Key::profile(&key.user), profile.attributes.clone()));
    }
    writes.extend(spend(&key.user, ending.tokens, now));
    if let Some((ticket, after)) = &ending.resumed_turn {
        writes.extend(hand_back(lease, ticket, *after, before));
    }
    writes
}

/// Counts tokens, if there are any.
fn spend(user: &UserId, tokens: u32, now: Timestamp) -> Option<Write> {
    let used = Write::update(Key::usage(user, now), format!("ADD {TOKENS} :used SET expires_at = :expires"));
    let used = used.bind(":used", number(tokens)).bind(":expires", expiry(now, USAGE_RETENTION));
    (tokens > 0).then_some(used)
}

/// The turn, and the conversation that it is the last of.
fn keep_turn(lease: &Lease, turn: &NewTurn, record: &StagedValue, seq: u32, now: Timestamp) -> [Write; 2] {
    let key = &lease.key;
    let now = iso_time(now);
    let mut attributes = record.attributes.clone();
    attributes.extend([
        (REQUEST, text(key.request.as_str())),
        (TOKENS, number(turn.tokens)),
        (IS_COMPLETE, flag(turn.is_complete)),
        (MAY_BE_LEARNED, flag(turn.may_be_learned)),
        (CREATED, text(&now)),
    ]);
    let kept =
        Write::put(Key::turn(&key.user, &key.session, seq), attributes).condition("attribute_not_exists(user_id)");
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
    [kept, session]
}

/// What becomes of a turn that waited and went on, unless another one took its place. A ticket of another conversation is good
/// for nothing.
fn hand_back(
    lease: &Lease,
    ticket: &PendingTurnId,
    after: PendingTurnDisposition,
    before: &RunContext,
) -> Option<Write> {
    let (user, session) = (&lease.key.user, &lease.key.session);
    let key = Key::pending(user, session);
    let pending = before.items.get(&key.item).filter(|_| ticket.user == *user && ticket.session == *session)?;
    super::pending::hand_back(key, pending, ticket, after)
}
