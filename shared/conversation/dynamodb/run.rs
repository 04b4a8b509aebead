//! What happens to a run between its admission and its end.

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{future::try_join, join, try_join};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DynamoConversations,
    admit::{count, leave},
    item::{Item, Read as _, flag, later, moment, number, set, text},
    keys::{EXPIRES, Key, chunks_of, request_owner, stream},
    parts::Prepared,
    runs::{CANCELLED, ENDED, FRAMES, HEAD, HOLDER, PHASE, REQUEST, RUNNING, WATCHED_UNTIL, is_alive, renew},
    table::Query,
    write::{Applied, Write},
};
use crate::{
    conversation::{Chunk, Followed, Lease, REMEMBERED, RunState, Signals, StoreError, WATCHED},
    identity::{RequestId, SessionId, UserId},
};

/// What is kept of a chunk beside its frames.
const FIRST_FRAME: &str = "first_frame";
const FRAME_COUNT: &str = "frame_count";

impl DynamoConversations {
    pub(super) async fn abandon_run(&self, lease: &Lease) -> Result<(), StoreError> {
        let Lease { key, holder } = lease;
        let mine = |write: Write| write.when("holder = :holder").value(":holder", text(*holder));
        let lease = self.table.apply(mine(Write::delete(Key::lease(&key.user, &key.session))));
        let run = self.table.apply(mine(Write::delete(Key::run(&key.user, key.request.as_str()))));
        let streams = self.table.apply(leave(&key.user, set([stream(*holder, &key.request)]), Timestamp::now()));
        // Those that are somebody else's stay.
        try_join!(lease, run, streams)?;
        Ok(())
    }

    pub(super) async fn keep_alive(&self, lease: &Lease, chunk: Option<&Chunk>) -> Result<Signals, StoreError> {
        let Lease { key, holder } = lease;
        let now = Timestamp::now();
        let chunk = match chunk.filter(|chunk| chunk.count > 0) {
            Some(chunk) => Some((chunk, self.prepare_chunk(lease, chunk, now).await?)),
            None => None,
        };
        let mut sign = renew(key, *holder, now);
        if let Some((chunk, _)) = &chunk {
            let set = "SET alive_until = :until, expires_at = :expires, frames = :frames";
            sign = sign.with_expression(set).value(":frames", number(last_of(chunk)));
        }
        // The frames bear the holder's name, so that those of one who lost the lease are seen by nobody.
        let keep = async {
            match &chunk {
                Some((chunk, prepared)) => self.table.apply(put_chunk(lease, chunk, prepared, now)).await.map(|_| ()),
                None => Ok(()),
            }
        };
        let (signed, kept) = join!(self.table.apply(sign.returning_old()), keep);
        let Applied::Done(run) = signed? else {
            if let Some((chunk, prepared)) = &chunk {
                self.forget_chunk(lease, chunk, prepared).await;
            }
            return Err(StoreError::LeaseLost);
        };
        kept?;
        if !is_alive(&run, now) {
            // It may have been taken for dead by an admission that counted.
            self.table.apply(count(&key.user, set([stream(*holder, &key.request)]), now)).await?;
        }
        let is_watched = run.moment(WATCHED_UNTIL).is_ok_and(|watched| watched > now);
        Ok(Signals { is_cancelled: run.flag(CANCELLED), is_watched })
    }

    /// Prepares the frames of a chunk.
    pub(super) async fn prepare_chunk(
        &self,
        lease: &Lease,
        chunk: &Chunk,
        now: Timestamp,
    ) -> Result<Prepared, StoreError> {
        let Lease { key, .. } = lease;
        let owner = request_owner(key.request.as_str());
        self.table.prepare(&key.user, &owner, Uuid::now_v7(), &chunk.frames, &chunk_expiry(now)).await
    }

    /// Does not leave behind what nobody can see.
    async fn forget_chunk(&self, lease: &Lease, chunk: &Chunk, prepared: &Prepared) {
        let key = chunk_key(lease, chunk);
        // What is left all the same has an expiry.
        let _gone = self.table.apply(Write::delete(key)).await;
        if let Some(divided) = &prepared.divided {
            self.table.discard(divided).await;
        }
    }

    pub(super) async fn look_at(
        &self,
        user: &UserId,
        request: &RequestId,
        after: u32,
    ) -> Result<Option<Followed>, StoreError> {
        // First the run and then its frames, so that all of them are there if it has ended.
        let Some(run) = self.table.get(Key::run(user, request.as_str())).await? else { return Ok(None) };
        let now = Timestamp::now();
        let state = match run.text(PHASE)? {
            ENDED => RunState::Ended,
            _ if is_alive(&run, now) => RunState::Running,
            _ => RunState::Lost,
        };
        let watch = async {
            let is_known = run.moment(WATCHED_UNTIL).is_ok_and(|watched| watched > later(now, WATCHED / 2));
            if state == RunState::Running && !is_known {
                let watch = Write::update(Key::run(user, request.as_str()), "SET watched_until = :watched");
                let watch = watch.when("attribute_exists(holder)").value(":watched", moment(later(now, WATCHED)));
                self.table.apply(watch).await?;
            }
            Ok(())
        };
        let ((), chunks) = try_join(watch, self.chunks(user, request, &run, after)).await?;
        Ok(Some(Followed { state, head: run.bytes(HEAD)?.to_vec(), chunks }))
    }

    /// The frames of a run after a number, as far as there is no gap.
    async fn chunks(
        &self,
        user: &UserId,
        request: &RequestId,
        run: &Item,
        after: u32,
    ) -> Result<Vec<Chunk>, StoreError> {
        let frames: u32 = run.number(FRAMES).unwrap_or_default();
        if frames <= after {
            return Ok(Vec::new());
        }
        let prefix = chunks_of(request.as_str(), run.text(HOLDER)?);
        let query = Query::between(user, &format!("{prefix}{:010}", after + 1), &format!("{prefix}{frames:010}"));
        let mut chunks: Vec<Chunk> = Vec::new();
        for item in self.table.rest(query).await? {
            let chunk = Chunk {
                first: item.number(FIRST_FRAME)?,
                count: item.number(FRAME_COUNT)?,
                frames: self.table.value(user, &request_owner(request.as_str()), &item).await?,
            };
            // A try whose answer was lost may have left a shorter one.
            while chunks.pop_if(|earlier| earlier.first >= chunk.first).is_some() {}
            if chunk.first > chunks.last().map_or(after, last_of) + 1 {
                break;
            }
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    pub(super) async fn cancel_run(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>, StoreError> {
        let (request, holder) = match request {
            Some(request) => (request.clone(), None),
            None => {
                let Some(lease) = self.table.get(Key::lease(user, session)).await? else { return Ok(None) };
                // A lease without a request is that of nobody who could stop.
                let Ok(request) = lease.text(REQUEST) else { return Ok(None) };
                let request = RequestId::parse(REQUEST, request).map_err(|_| StoreError::Malformed(REQUEST))?;
                (request, Some(lease.text(HOLDER)?.to_owned()))
            }
        };
        let mut condition = "session_id = :session AND phase = :running AND alive_until > :now".to_owned();
        let mut cancel = Write::update(Key::run(user, request.as_str()), "SET cancelled = :yes");
        if let Some(holder) = &holder {
            condition.push_str(" AND holder = :holder");
            cancel = cancel.value(":holder", text(holder));
        }
        let cancel = cancel
            .when(condition)
            .value(":session", text(session.as_str()))
            .value(":running", text(RUNNING))
            .value(":now", moment(Timestamp::now()))
            .value(":yes", flag(true));
        Ok(match self.table.apply(cancel).await? {
            Applied::Done(_) => Some(request),
            Applied::Refused => None,
        })
    }
}

/// Number of a chunk's last frame.
pub(super) fn last_of(chunk: &Chunk) -> u32 {
    chunk.first.saturating_add(chunk.count).saturating_sub(1)
}

pub(super) fn put_chunk(lease: &Lease, chunk: &Chunk, prepared: &Prepared, now: Timestamp) -> Write {
    let mut attributes = prepared.attributes.clone();
    attributes.extend([
        (FIRST_FRAME, number(chunk.first)),
        (FRAME_COUNT, number(chunk.count)),
        (EXPIRES, chunk_expiry(now)),
    ]);
    Write::put(chunk_key(lease, chunk), attributes)
}

fn chunk_key(lease: &Lease, chunk: &Chunk) -> Key {
    let holder = lease.holder.to_string();
    Key::chunk(&lease.key.user, &lease.key.request, &holder, last_of(chunk))
}

/// Later than the run is forgotten, whose end is not known yet.
pub(super) fn chunk_expiry(now: Timestamp) -> AttributeValue {
    super::item::expiry(now, REMEMBERED + super::DAY)
}
