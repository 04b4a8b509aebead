//! The end of a run: what is long is written first, and one transaction makes it count together with all the rest.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    DAY, DynamoConversations,
    admit::{TOKENS, USAGE_KEPT, leave},
    item::{Item, Read as _, expiry, flag, number, set, text, time},
    keys::{Key, session_owner, stream},
    parts::{Divided, PROFILE, Prepared},
    run::{last_of, put_chunk},
    runs::{ENDED, HOLDS_SESSION, PHASE, REQUEST, RUNNING, change, forgotten, is_held_by},
    session::{CREATED, TURNS, place},
    turns::{IS_COMPLETE, MAY_BE_LEARNED},
    write::{Refusals, Transacted, Write},
};
use crate::{
    conversation::{AfterResumption, Ending, Lease, NewTurn, Outcome, StoreError, Ticket},
    identity::UserId,
};

/// How often an end begins anew, because something changed under it.
const TRIES: u32 = 4;

/// What is known before the end is written.
struct Before {
    items: HashMap<String, Item>,
    /// The number that the turn gets.
    seq: u32,
    /// Whether the run has its conversation, which it gives up.
    holds_session: bool,
}

/// What is long, as good as kept.
struct Values {
    chunk: Option<Prepared>,
    record: Option<Prepared>,
    profile: Option<Prepared>,
}

impl Values {
    /// Parts of what is kept for good.
    fn lasting(&self) -> impl Iterator<Item = &Divided> {
        [&self.record, &self.profile].into_iter().filter_map(|value| value.as_ref()?.divided.as_ref())
    }

    fn divided(&self) -> impl Iterator<Item = &Divided> {
        self.lasting().chain(self.chunk.as_ref().and_then(|chunk| chunk.divided.as_ref()))
    }
}

/// How an attempt to write the end went.
enum Attempt {
    Done,
    Lost,
    Again,
}

impl DynamoConversations {
    pub(super) async fn end_run(&self, lease: &Lease, ending: &Ending) -> Result<(), StoreError> {
        let ended = self.try_to_end(lease, ending).await;
        if let Err(StoreError::LeaseLost) = ended {
            // What was spent counts, though nothing of it is kept.
            if let Some(spent) = spend(&lease.key.user, ending.tokens, Timestamp::now()) {
                self.table.apply(spent).await?;
            }
        }
        ended
    }

    async fn try_to_end(&self, lease: &Lease, ending: &Ending) -> Result<(), StoreError> {
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
            self.table.discard(divided).await;
        }
        Err(StoreError::LeaseLost)
    }

    /// What stands before the end; `None` = the end is there already.
    async fn before(&self, lease: &Lease, ending: &Ending) -> Result<Option<Before>, StoreError> {
        let Lease { key, holder } = lease;
        let run = Key::run(&key.user, key.request.as_str());
        let session = Key::session(&key.user, &key.session);
        let mut keys = vec![run.clone(), session.clone()];
        keys.extend(ending.resumed.as_ref().map(|_| Key::pending(&key.user, &key.session)));
        keys.extend(ending.profile.as_ref().map(|_| Key::profile(&key.user)));
        let items = self.table.get_many(keys).await?;
        let holder = holder.to_string();
        let run = items.get(&run.item).filter(|run| is_held_by(run, &holder)).ok_or(StoreError::LeaseLost)?;
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
        Ok(Some(Before { items, seq: turns + 1, holds_session }))
    }

    async fn prepare(&self, lease: &Lease, ending: &Ending, now: Timestamp) -> Result<Values, StoreError> {
        let Lease { key, holder } = lease;
        let soon = expiry(now, DAY);
        let chunk = match ending.chunk.count {
            0 => None,
            _ => Some(self.prepare_chunk(lease, &ending.chunk, now).await?),
        };
        // Under the holder's name, so that the same end tried again writes the same parts.
        let record = match &ending.turn {
            Some(turn) => {
                let owner = session_owner(&key.session);
                Some(self.table.prepare(&key.user, &owner, *holder, &turn.record, &soon).await?)
            }
            None => None,
        };
        let profile = match &ending.profile {
            Some(profile) => Some(self.table.prepare(&key.user, PROFILE, *holder, profile, &soon).await?),
            None => None,
        };
        let values = Values { chunk, record, profile };
        for divided in values.lasting() {
            self.table.make_lasting(divided).await?;
        }
        Ok(values)
    }

    async fn attempt(
        &self,
        lease: &Lease,
        ending: &Ending,
        before: &Before,
        values: &Values,
        now: Timestamp,
    ) -> Result<Attempt, StoreError> {
        let writes = end(lease, ending, before, values, now);
        Ok(match self.table.transact(writes).await? {
            Transacted::Done => Attempt::Done,
            Transacted::Refused(refusals) => judge(&refusals, lease, before),
        })
    }

    /// Deletes the parts of the profile whose place was taken.
    async fn discard_old_profile(&self, lease: &Lease, before: &Before, values: &Values) {
        let user = &lease.key.user;
        let old = before.items.get(&Key::profile(user).item).and_then(|old| Divided::of(user, PROFILE, old));
        let new = values.profile.as_ref().map(|profile| &profile.divided);
        if let (Some(old), Some(new)) = (&old, new)
            && new.as_ref() != Some(old)
        {
            self.table.discard(old).await;
        }
    }
}

/// Where the writes of an end are in its transaction.
const RUN: usize = 0;
const GIVEN_UP: usize = 1;

fn judge(refusals: &Refusals, lease: &Lease, before: &Before) -> Attempt {
    let is_mine = |item: &Item| is_held_by(item, &lease.holder.to_string());
    let is_taken = before.holds_session && refusals.of(GIVEN_UP).is_some();
    match refusals.of(RUN) {
        // It may have ended by an earlier try.
        Some(run) if is_mine(run) => Attempt::Again,
        None if !is_taken => Attempt::Again,
        _ => Attempt::Lost,
    }
}

/// All writes of an end.
fn end(lease: &Lease, ending: &Ending, before: &Before, values: &Values, now: Timestamp) -> Vec<Write> {
    let Lease { key, holder } = lease;
    let frames = if ending.chunk.count > 0 { ", frames = :frames" } else { "" };
    let expression = format!("SET phase = :ended, repeatable = :repeatable, expires_at = :expires{frames}");
    let mut run = change(key, *holder, &expression)
        .value(":ended", text(ENDED))
        .value(":repeatable", flag(ending.outcome == Outcome::Repeatable))
        .value(":expires", forgotten(now));
    if ending.chunk.count > 0 {
        run = run.value(":frames", number(last_of(&ending.chunk)));
    }
    let mut writes = vec![run];
    if before.holds_session {
        let lease = Write::delete(Key::lease(&key.user, &key.session));
        writes.push(lease.when("holder = :holder").value(":holder", text(*holder)));
    }
    writes.push(leave(&key.user, set([stream(*holder, &key.request)]), now));
    writes.extend(values.chunk.as_ref().map(|prepared| put_chunk(lease, &ending.chunk, prepared, now)));
    if let (Some(turn), Some(record)) = (&ending.turn, &values.record) {
        writes.extend(keep_turn(lease, turn, record, before.seq, now));
    }
    if let Some(profile) = &values.profile {
        writes.push(Write::put(Key::profile(&key.user), profile.attributes.clone()));
    }
    writes.extend(spend(&key.user, ending.tokens, now));
    if let Some((ticket, after)) = &ending.resumed {
        writes.extend(hand_back(lease, ticket, *after, before));
    }
    writes
}

/// Counts tokens, if there are any.
fn spend(user: &UserId, tokens: u32, now: Timestamp) -> Option<Write> {
    let used = Write::update(Key::usage(user, now), format!("ADD {TOKENS} :used SET expires_at = :expires"));
    let used = used.value(":used", number(tokens)).value(":expires", expiry(now, USAGE_KEPT));
    (tokens > 0).then_some(used)
}

/// The turn, and the conversation that it is the last of.
fn keep_turn(lease: &Lease, turn: &NewTurn, record: &Prepared, seq: u32, now: Timestamp) -> [Write; 2] {
    let key = &lease.key;
    let now = time(now);
    let mut attributes = record.attributes.clone();
    attributes.extend([
        (REQUEST, text(key.request.as_str())),
        (TOKENS, number(turn.tokens)),
        (IS_COMPLETE, flag(turn.is_complete)),
        (MAY_BE_LEARNED, flag(turn.may_be_learned)),
        (CREATED, text(&now)),
    ]);
    let kept = Write::put(Key::turn(&key.user, &key.session, seq), attributes).when("attribute_not_exists(user_id)");
    let expression = "SET turns = :turns, updated = :updated, title = if_not_exists(title, :title), \
                      created_at = if_not_exists(created_at, :now)";
    let session = Write::update(Key::session(&key.user, &key.session), expression)
        .value(":turns", number(seq))
        .value(":updated", text(place(&now, key.session.as_str())))
        .value(":title", text(&turn.provisional_title))
        .value(":now", text(&now));
    let session = match seq {
        1 => session.when("attribute_not_exists(turns)"),
        _ => session.when("turns = :before").value(":before", number(seq - 1)),
    };
    [kept, session]
}

/// What becomes of a turn that waited and went on, unless another one took its place. A ticket of another conversation is good
/// for nothing.
fn hand_back(lease: &Lease, ticket: &Ticket, after: AfterResumption, before: &Before) -> Option<Write> {
    let (user, session) = (&lease.key.user, &lease.key.session);
    let key = Key::pending(user, session);
    let pending = before.items.get(&key.item).filter(|_| ticket.user == *user && ticket.session == *session)?;
    super::pending::hand_back(key, pending, ticket, after)
}
