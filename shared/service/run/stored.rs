//! Replay of a run from the store: one of another process, or one that has ended.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::time::sleep;

use super::log::{frames_of_chunk, last_status};
use crate::{
    chat::TurnFailure,
    conversation::{ConversationStore, FrameChunk, RunSnapshot, RunState, StoreError},
    identity::{RequestId, UserId},
    service::{
        drain::Drain,
        envelope::Envelope,
        frame::{EncodedFrame, FrameBuilder},
    },
};

/// Frames of another process arrive in pieces of about this length.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Store errors in a row after which the replay fails.
const MAX_FAILURES: u32 = 20;

/// Numbered frames; the last one ends the stream.
pub(in crate::service) type StoredFrames = Pin<Box<dyn Stream<Item = (u32, EncodedFrame)> + Send>>;

pub(in crate::service) struct StoredRun {
    pub(in crate::service) envelope: Envelope,
    store: Arc<dyn ConversationStore>,
    drain: Drain,
    user: UserId,
    request: RequestId,
    snapshot: RunSnapshot,
}

impl StoredRun {
    /// `None` if the store has no such run, or no longer.
    pub(in crate::service) async fn load(
        store: Arc<dyn ConversationStore>,
        drain: Drain,
        user: UserId,
        request: RequestId,
    ) -> Result<Option<Self>, StoreError> {
        let Some(snapshot) = store.follow(&user, &request, 0).await? else { return Ok(None) };
        let envelope = Envelope::from_bytes(&snapshot.head).ok_or(StoreError::Malformed("the head of a run"))?;
        Ok(Some(Self { envelope, store, drain, user, request, snapshot }))
    }

    pub(in crate::service) fn is_running(&self) -> bool {
        self.snapshot.state == RunState::Running
    }

    /// The last status among the frames up to this number; `None` if that frame is not stored yet, which may be a later one.
    pub(in crate::service) fn last_status(&self, through: u32) -> Option<Bytes> {
        let stored = self.snapshot.chunks.last().map_or(0, |chunk| chunk.first.saturating_add(chunk.count) - 1);
        if stored < through {
            return None;
        }
        let chunks = self.snapshot.chunks.iter().rev();
        chunks.filter_map(|chunk| last_status(&chunk.frames, chunk.first, through)).next()
    }

    /// The frames after number `after`: those that are stored, then those that follow. Behind the last frame of a run that
    /// one again. `builder` makes the error frame of a lost run. `None`: the run has ended without such a frame.
    pub(in crate::service) fn frames(self, after: u32, builder: FrameBuilder) -> Option<StoredFrames> {
        let Self { store, drain, user, request, snapshot, .. } = self;
        let state = snapshot.state;
        let mut follower = RunFollower {
            store,
            drain,
            user,
            request,
            builder,
            number: 0,
            frames: VecDeque::new(),
            state,
            failures: 0,
        };
        follower.push_chunks(snapshot.chunks);
        follower.skip_through(after)?;
        Some(Box::pin(stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            let (number, frame) = follower.next().await;
            let is_last = frame.is_last();
            Some(((number, frame), (!is_last).then_some(follower)))
        })))
    }
}

struct RunFollower {
    store: Arc<dyn ConversationStore>,
    /// For the last write of a reader that leaves.
    drain: Drain,
    user: UserId,
    request: RequestId,
    builder: FrameBuilder,
    /// Of the last frame in `frames`, or before them.
    number: u32,
    frames: VecDeque<(u32, EncodedFrame)>,
    state: RunState,
    failures: u32,
}

impl RunFollower {
    fn push_chunks(&mut self, chunks: Vec<FrameChunk>) {
        for (number, frame) in chunks.into_iter().flat_map(frames_of_chunk) {
            // Chunks may overlap. A gap would be lost text, so nothing after it is sent.
            if number == self.number + 1 {
                self.number = number;
                self.frames.push_back((number, frame));
            }
        }
    }

    /// Of a run that has not ended, the client may have received frames that are not stored.
    fn skip_through(&mut self, after: u32) -> Option<()> {
        let last = self.number;
        if self.state == RunState::Ended && after > last {
            return None;
        }
        let has_last_frame = self.frames.back().is_some_and(|(_, frame)| frame.is_last());
        let skipped = if has_last_frame { after.min(last - 1) } else { after };
        self.frames.retain(|(number, _)| *number > skipped);
        self.number = last.max(after);
        Some(())
    }

    async fn next(&mut self) -> (u32, EncodedFrame) {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return frame;
            }
            match self.state {
                RunState::Running => {}
                // The frame with the finish reason is missing.
                RunState::Ended | RunState::Lost => return self.failed(TurnFailure::Abandoned),
            }
            sleep(POLL_INTERVAL).await;
            match self.store.follow(&self.user, &self.request, self.number).await {
                Ok(Some(snapshot)) => {
                    self.failures = 0;
                    self.state = snapshot.state;
                    self.push_chunks(snapshot.chunks);
                }
                Ok(None) => self.state = RunState::Lost,
                Err(error) => {
                    self.failures += 1;
                    if self.failures > MAX_FAILURES {
                        tracing::warn!(%error, failures = self.failures, "replay failed: the run cannot be read");
                        return self.failed(TurnFailure::NotPersisted);
                    }
                }
            }
        }
    }

    fn failed(&mut self, failure: TurnFailure) -> (u32, EncodedFrame) {
        (self.number + 1, self.builder.failure(&failure))
    }
}

impl Drop for RunFollower {
    /// Its mark would count as a reader for a while, and a new request of the session would be refused.
    fn drop(&mut self) {
        if self.state == RunState::Running {
            let (store, user, request) = (self.store.clone(), self.user.clone(), self.request.clone());
            self.drain.spawn(async move {
                if let Err(error) = store.unwatch(&user, &request).await {
                    tracing::debug!(%error, "the mark of a reader that left expires by itself");
                }
            });
        }
    }
}
