//! What happens to a run between its admission and its end.

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{future::try_join, join};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DynamoConversations,
    admit::{add_streams, refund_request, remove_streams},
    item::{Item, ItemExt as _, add, flag, millis, number, set, text},
    keys::{EXPIRES_AT, Key, chunk_prefix, request_owner, stream_member},
    lease::{
        CANCELLED, ENDED, FRAMES, HEAD, HOLDS_SESSION, LEASE_TOKEN, PHASE, REQUEST, RUNNING, STARTED_AT, WATCHED_UNTIL,
        is_alive, renew_lease, require_lease,
    },
    parts::StagedValue,
    table::Query,
    write::{Write, WriteOutcome},
};
use crate::{
    conversation::{
        FrameChunk, IDEMPOTENCY_WINDOW, Lease, RunSignals, RunSnapshot, RunState, StoreError, WATCH_WINDOW,
    },
    identity::{RequestId, SessionId, UserId},
};

/// What is kept of a chunk beside its frames.
const FIRST_FRAME: &str = "first_frame";
const FRAME_COUNT: &str = "frame_count";

impl DynamoConversations {
    /// Undoes an admission, with what it counted. Whose lease is lost, or who has ended, takes nothing back.
    pub(super) async fn abandon_run(&self, lease: &Lease) -> Result<(), StoreError> {
        let Lease { key, lease_token: holder } = lease;
        let place = Key::run(&key.user, key.request.as_str());
        let Some(run) = self.table.get(place.clone()).await? else { return Ok(()) };
        let now = Timestamp::now();
        let mut writes = vec![
            require_lease(Write::delete(place), *holder),
            remove_streams(&key.user, set([stream_member(*holder, &key.request)]), now),
        ];
        writes.extend(refund_request(&key.user, run.millis(STARTED_AT)?, now));
        if run.flag(HOLDS_SESSION) {
            let lease = Write::delete(Key::lease(&key.user, &key.session));
            writes.push(lease.condition("holder = :holder").bind(":holder", text(*holder)));
        }
        self.table.transact(writes).await?;
        Ok(())
    }

    pub(super) async fn checkpoint_run(
        &self,
        lease: &Lease,
        chunk: Option<&FrameChunk>,
    ) -> Result<RunSignals, StoreError> {
        let Lease { key, lease_token: holder } = lease;
        let now = Timestamp::now();
        let chunk = match chunk.filter(|chunk| chunk.count > 0) {
            Some(chunk) => Some((chunk, self.stage_chunk(lease, chunk, now).await?)),
            None => None,
        };
        let mut sign = renew_lease(key, *holder, now);
        if let Some((chunk, _)) = &chunk {
            sign = sign.append(", frames = :frames").bind(":frames", number(last_frame(chunk)));
        }
        // The frames bear the holder's name, so that those of one who lost the lease are seen by nobody.
        let keep = async {
            match &chunk {
                Some((chunk, prepared)) => self.table.write(put_chunk(lease, chunk, prepared, now)).await.map(|_| ()),
                None => Ok(()),
            }
        };
        let (signed, kept) = join!(self.table.write(sign.returning_old()), keep);
        let WriteOutcome::Done(run) = signed? else {
            if let Some((chunk, prepared)) = &chunk {
                self.forget_chunk(lease, chunk, prepared).await;
            }
            return Err(StoreError::LeaseLost);
        };
        kept?;
        if !is_alive(&run, now) {
            // It may have been taken for dead by an admission that counted.
            self.table.write(add_streams(&key.user, set([stream_member(*holder, &key.request)]), now)).await?;
        }
        let is_watched = run.millis(WATCHED_UNTIL).is_ok_and(|watched| watched > now);
        Ok(RunSignals { is_cancelled: run.flag(CANCELLED), is_watched })
    }

    /// Prepares the frames of a chunk.
    pub(super) async fn stage_chunk(
        &self,
        lease: &Lease,
        chunk: &FrameChunk,
        now: Timestamp,
    ) -> Result<StagedValue, StoreError> {
        let Lease { key, .. } = lease;
        let owner = request_owner(key.request.as_str());
        self.table.stage_value(&key.user, &owner, Uuid::now_v7(), &chunk.frames, &chunk_expiry(now)).await
    }

    /// Does not leave behind what nobody can see.
    async fn forget_chunk(&self, lease: &Lease, chunk: &FrameChunk, prepared: &StagedValue) {
        let key = chunk_key(lease, chunk);
        // What is left all the same has an expiry.
        let _gone = self.table.write(Write::delete(key)).await;
        if let Some(divided) = &prepared.parts {
            self.table.delete_parts(divided).await;
        }
    }

    pub(super) async fn snapshot_run(
        &self,
        user: &UserId,
        request: &RequestId,
        after: u32,
    ) -> Result<Option<RunSnapshot>, StoreError> {
        // First the run and then its frames, so that all of them are there if it has ended.
        let Some(run) = self.table.get(Key::run(user, request.as_str())).await? else { return Ok(None) };
        let now = Timestamp::now();
        let state = match run.text(PHASE)? {
            ENDED => RunState::Ended,
            _ if is_alive(&run, now) => RunState::Running,
            _ => RunState::Lost,
        };
        let watch = async {
            let is_known = run.millis(WATCHED_UNTIL).is_ok_and(|watched| watched > add(now, WATCH_WINDOW / 2));
            if state == RunState::Running && !is_known {
                let watch = Write::update(Key::run(user, request.as_str()), "SET watched_until = :watched");
                let watch =
                    watch.condition("attribute_exists(holder)").bind(":watched", millis(add(now, WATCH_WINDOW)));
                self.table.write(watch).await?;
            }
            Ok(())
        };
        let ((), chunks) = try_join(watch, self.chunks(user, request, &run, after)).await?;
        Ok(Some(RunSnapshot { state, head: run.bytes(HEAD)?.to_vec(), chunks }))
    }

    /// The frames of a run after a number, as far as there is no gap.
    async fn chunks(
        &self,
        user: &UserId,
        request: &RequestId,
        run: &Item,
        after: u32,
    ) -> Result<Vec<FrameChunk>, StoreError> {
        let frames: u32 = run.number(FRAMES).unwrap_or_default();
        if frames <= after {
            return Ok(Vec::new());
        }
        let prefix = chunk_prefix(request.as_str(), run.text(LEASE_TOKEN)?);
        let query = Query::between(user, &format!("{prefix}{:010}", after + 1), &format!("{prefix}{frames:010}"));
        let mut chunks: Vec<FrameChunk> = Vec::new();
        for item in self.table.query_all(query).await? {
            let chunk = FrameChunk {
                first: item.number(FIRST_FRAME)?,
                count: item.number(FRAME_COUNT)?,
                frames: self.table.read_value(user, &request_owner(request.as_str()), &item).await?,
            };
            // A try whose answer was lost may have left a shorter one.
            while chunks.pop_if(|earlier| earlier.first >= chunk.first).is_some() {}
            if chunk.first > chunks.last().map_or(after, last_frame) + 1 {
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
                (request, Some(lease.text(LEASE_TOKEN)?.to_owned()))
            }
        };
        let mut condition = "session_id = :session AND phase = :running AND alive_until > :now".to_owned();
        let mut cancel = Write::update(Key::run(user, request.as_str()), "SET cancelled = :yes");
        if let Some(holder) = &holder {
            condition.push_str(" AND holder = :holder");
            cancel = cancel.bind(":holder", text(holder));
        }
        let cancel = cancel
            .condition(condition)
            .bind(":session", text(session.as_str()))
            .bind(":running", text(RUNNING))
            .bind(":now", millis(Timestamp::now()))
            .bind(":yes", flag(true));
        Ok(match self.table.write(cancel).await? {
            WriteOutcome::Done(_) => Some(request),
            WriteOutcome::Refused => None,
        })
    }
}

/// Number of a chunk's last frame.
pub(super) fn last_frame(chunk: &FrameChunk) -> u32 {
    chunk.first.saturating_add(chunk.count).saturating_sub(1)
}

pub(super) fn put_chunk(lease: &Lease, chunk: &FrameChunk, prepared: &StagedValue, now: Timestamp) -> Write {
    let mut attributes = prepared.attributes.clone();
    attributes.extend([
        (FIRST_FRAME, number(chunk.first)),
        (FRAME_COUNT, number(chunk.count)),
        (EXPIRES_AT, chunk_expiry(now)),
    ]);
    Write::put(chunk_key(lease, chunk), attributes)
}

fn chunk_key(lease: &Lease, chunk: &FrameChunk) -> Key {
    let holder = lease.lease_token.to_string();
    Key::chunk(&lease.key.user, &lease.key.request, &holder, last_frame(chunk))
}

/// Later than the run is forgotten, whose end is not known yet.
pub(super) fn chunk_expiry(now: Timestamp) -> AttributeValue {
    super::item::expiry(now, IDEMPOTENCY_WINDOW + super::DAY)
}
