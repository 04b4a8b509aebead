use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{future::try_join, join};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DynamoConversations, EXPIRY_MARGIN,
    attributes::{
        CANCELLED, ENDED, FIRST_FRAME, FRAME_COUNT, FRAMES, HEAD, HOLDS_SESSION, LEASE_TOKEN, PHASE, REQUEST, RUNNING,
        STARTED_AT, WATCHED_UNTIL,
    },
    item::{Item, ItemExt as _, add, expiry, flag, millis, number, set, text},
    keys::{EXPIRES_AT, Key, chunk_prefix, request_owner, stream_member},
    lease::{is_alive, release_lease, renew_lease, require_lease},
    parts::{StagedValue, ValueOwner},
    table::{PageCursor, Query},
    usage::{add_streams, refund_request, remove_streams},
    write::{Write, WriteOutcome},
};
use crate::{
    conversation::{
        error::{Result, StoreError},
        run::{FrameChunk, FramePage, IDEMPOTENCY_WINDOW, Lease, RunSignals, RunSnapshot, RunState, WATCH_WINDOW},
    },
    identity::{RequestId, SessionId, UserId},
};

/// A run in progress has many short chunks. The table returns at most a megabyte at a time.
const CHUNKS_AT_ONCE: usize = 16;

impl DynamoConversations {
    pub(super) async fn revoke_run(&self, lease: &Lease) -> Result<()> {
        let key = &lease.key;
        let run_key = Key::run(&key.user, key.request.as_str());
        let Some(run) = self.table.get(run_key.clone()).await? else { return Ok(()) };
        let now = Timestamp::now();
        let streams = set([stream_member(lease.lease_token, &key.request)]);
        let mut writes = vec![require_lease(Write::delete(run_key), lease), remove_streams(&key.user, streams, now)];
        writes.extend(refund_request(&key.user, run.millis(STARTED_AT)?, now));
        if run.flag(HOLDS_SESSION) {
            writes.push(release_lease(lease));
        }
        // Failed conditions: the lease is lost or the run has ended.
        self.table.transact(writes).await?;
        Ok(())
    }

    pub(super) async fn checkpoint_run(&self, lease: &Lease, chunk: Option<&FrameChunk>) -> Result<RunSignals> {
        let now = Timestamp::now();
        let chunk = match chunk.filter(|chunk| chunk.count > 0) {
            Some(chunk) => Some((chunk, self.stage_chunk(lease, chunk, now).await?)),
            None => None,
        };
        let mut heartbeat = renew_lease(lease, now);
        if let Some((chunk, _)) = &chunk {
            heartbeat = heartbeat.append(", frames = :frames").bind(":frames", number(last_frame(chunk)));
        }
        // Concurrent with the heartbeat: the chunk's key holds the lease token, so without the lease no reader sees it.
        let put_chunk = async {
            match &chunk {
                Some((chunk, staged)) => self.table.write(put_chunk(lease, chunk, staged, now)).await.map(drop),
                None => Ok(()),
            }
        };
        let (renewed, stored) = join!(self.table.write(heartbeat.returning_old()), put_chunk);
        let WriteOutcome::Done(run) = renewed? else {
            if let Some((chunk, staged)) = &chunk {
                self.delete_chunk(lease, chunk, staged).await;
            }
            return Err(StoreError::LeaseLost);
        };
        stored?;
        if !is_alive(&run, now) {
            // An admission may have swept the run from the streams while its lease was expired.
            let streams = set([stream_member(lease.lease_token, &lease.key.request)]);
            self.table.write(add_streams(&lease.key.user, streams, now)).await?;
        }
        Ok(RunSignals { is_cancelled: run.flag(CANCELLED) })
    }

    pub(super) async fn stage_chunk(&self, lease: &Lease, chunk: &FrameChunk, now: Timestamp) -> Result<StagedValue> {
        let owner = ValueOwner::new(&lease.key.user, request_owner(lease.key.request.as_str()));
        self.table.stage_value(&owner, Uuid::now_v7(), &chunk.frames, &chunk_expiry(now)).await
    }

    /// A failure is ignored: frames expire.
    async fn delete_chunk(&self, lease: &Lease, chunk: &FrameChunk, staged: &StagedValue) {
        let _deleted = self.table.write(Write::delete(chunk_key(lease, chunk))).await;
        if let Some(parts) = &staged.parts {
            self.table.delete_parts(parts).await;
        }
    }

    pub(super) async fn snapshot_run(
        &self,
        user: &UserId,
        request: &RequestId,
        page: &FramePage,
    ) -> Result<Option<RunSnapshot>> {
        // The run before its frames, so that all frames of an ended run are read.
        let Some(run) = self.table.get(Key::run(user, request.as_str())).await? else { return Ok(None) };
        let now = Timestamp::now();
        let state = match run.text(PHASE)? {
            ENDED => RunState::Ended,
            _ if is_alive(&run, now) => RunState::Running,
            _ => RunState::Lost,
        };
        let watch = async {
            // Renewed in the second half of the window, so that not every poll writes.
            let is_marked = run.millis(WATCHED_UNTIL).is_ok_and(|watched| watched > add(now, WATCH_WINDOW / 2));
            if page.marks_reader && state == RunState::Running && !is_marked {
                let watch = Write::update(Key::run(user, request.as_str()), "SET watched_until = :watched");
                let watch =
                    watch.condition("attribute_exists(holder)").bind(":watched", millis(add(now, WATCH_WINDOW)));
                self.table.write(watch).await?;
            }
            Ok(())
        };
        let ((), chunks) = try_join(watch, self.read_chunks(user, request, &run, page)).await?;
        let stored = run.number(FRAMES).unwrap_or_default();
        Ok(Some(RunSnapshot { state, head: run.bytes(HEAD)?.to_vec(), stored, chunks }))
    }

    /// Up to the first gap, or the end of the page.
    async fn read_chunks(
        &self,
        user: &UserId,
        request: &RequestId,
        run: &Item,
        page: &FramePage,
    ) -> Result<Vec<FrameChunk>> {
        let frames: u32 = run.number(FRAMES).unwrap_or_default();
        if frames <= page.after {
            return Ok(Vec::new());
        }
        let prefix = chunk_prefix(request.as_str(), run.text(LEASE_TOKEN)?);
        let query = Query::between(user, &format!("{prefix}{:010}", page.after + 1), &format!("{prefix}{frames:010}"));
        let owner = ValueOwner::new(user, request_owner(request.as_str()));
        let mut items = PageCursor::new(query.limit(CHUNKS_AT_ONCE));
        let mut chunks: Vec<FrameChunk> = Vec::new();
        while let Some(some) = self.table.next_page(&mut items).await? {
            for item in some {
                let (first, count) = (item.number(FIRST_FRAME)?, item.number(FRAME_COUNT)?);
                // A checkpoint whose answer was lost may have left a shorter chunk.
                while chunks.pop_if(|earlier| earlier.first >= first).is_some() {}
                let left = page.limit.saturating_sub(chunks.iter().map(|chunk| chunk.frames.len()).sum());
                if left == 0 || first > chunks.last().map_or(page.after, last_frame) + 1 {
                    return Ok(chunks);
                }
                let offset = if first == page.chunk { page.offset } else { 0 };
                let frames = self.table.read_value_range(&owner, &item, offset..offset.saturating_add(left)).await?;
                chunks.push(FrameChunk { first, count, frames });
            }
        }
        Ok(chunks)
    }

    pub(super) async fn cancel_run(
        &self,
        user: &UserId,
        session: &SessionId,
        request: Option<&RequestId>,
    ) -> Result<Option<RequestId>> {
        let (request, lease_token) = match request {
            Some(request) => (request.clone(), None),
            None => {
                let Some(lease) = self.table.get(Key::lease(user, session)).await? else { return Ok(None) };
                // The lease of a deletion has no request.
                let Ok(request) = lease.text(REQUEST) else { return Ok(None) };
                let request = RequestId::parse(REQUEST, request).map_err(|_| StoreError::Malformed(REQUEST))?;
                (request, Some(lease.text(LEASE_TOKEN)?.to_owned()))
            }
        };
        let mut condition = "session_id = :session AND phase = :running AND alive_until > :now".to_owned();
        let mut cancel = Write::update(Key::run(user, request.as_str()), "SET cancelled = :yes");
        if let Some(lease_token) = &lease_token {
            condition.push_str(" AND holder = :holder");
            cancel = cancel.bind(":holder", text(lease_token));
        }
        let cancel = cancel
            .condition(condition)
            .bind(":session", text(session.as_str()))
            .bind(":running", text(RUNNING))
            .bind(":now", millis(Timestamp::now()))
            .bind(":yes", flag(true));
        Ok(match self.table.write(cancel).await? {
            WriteOutcome::Done(_) => Some(request),
            WriteOutcome::ConditionFailed => None,
        })
    }
}

pub(super) fn last_frame(chunk: &FrameChunk) -> u32 {
    chunk.first.saturating_add(chunk.count).saturating_sub(1)
}

pub(super) fn put_chunk(lease: &Lease, chunk: &FrameChunk, staged: &StagedValue, now: Timestamp) -> Write {
    let mut attributes = staged.attributes.clone();
    attributes.extend([
        (FIRST_FRAME, number(chunk.first)),
        (FRAME_COUNT, number(chunk.count)),
        (EXPIRES_AT, chunk_expiry(now)),
    ]);
    Write::put(chunk_key(lease, chunk), attributes)
}

fn chunk_key(lease: &Lease, chunk: &FrameChunk) -> Key {
    Key::chunk(&lease.key.user, &lease.key.request, &lease.lease_token.to_string(), last_frame(chunk))
}

/// Later than the expiry of the run, whose end is not known yet.
fn chunk_expiry(now: Timestamp) -> AttributeValue {
    expiry(now, IDEMPOTENCY_WINDOW + EXPIRY_MARGIN)
}
