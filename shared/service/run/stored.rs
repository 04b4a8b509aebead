//! Replay of a run from the store: one of another process, or one that has ended.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::time::sleep;

use super::pages::{FramePages, PageState};
use crate::{
    chat::TurnFailure,
    conversation::{ConversationStore, RunState, StoreError},
    identity::{RequestId, UserId},
    service::{
        drain::Drain,
        envelope::Envelope,
        frame::{EncodedFrame, FrameBuilder, is_status},
    },
};

/// Frames of another process arrive in pieces of about this length.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Store errors in a row after which the replay fails.
const MAX_FAILURES: u32 = 20;
/// In which the last status of a run is looked for: about a megabyte.
const MAX_STATUS_PAGES: usize = 16;

/// Why a reader cannot go on. The run is not concerned, and a client may resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum ReadError {
    ShuttingDown,
    StoreUnavailable,
}

/// Numbered frames; the last one, or an error, ends the stream.
pub(in crate::service) type StoredFrames = Pin<Box<dyn Stream<Item = Result<(u32, EncodedFrame), ReadError>> + Send>>;

/// The store and the request of a run.
#[derive(Clone)]
pub(in crate::service) struct RunAddress {
    pub(in crate::service) store: Arc<dyn ConversationStore>,
    pub(in crate::service) drain: Drain,
    pub(in crate::service) user: UserId,
    pub(in crate::service) request: RequestId,
}

impl RunAddress {
    fn pages(&self, after: u32) -> FramePages {
        FramePages::new(self.store.clone(), self.user.clone(), self.request.clone(), after)
    }
}

pub(in crate::service) struct StoredRun {
    pub(in crate::service) envelope: Envelope,
    address: RunAddress,
    pages: FramePages,
    state: PageState,
    mark: ReaderMark,
    /// The client has the frames up to this number.
    received: u32,
}

impl StoredRun {
    /// `None` if the store has no such run, or no longer.
    pub(in crate::service) async fn load(address: RunAddress, received: u32) -> Result<Option<Self>, StoreError> {
        // The last received one is read as well: behind the last frame of a run the client gets that one again.
        let mut pages = address.pages(received.saturating_sub(1));
        let mut mark = ReaderMark { address: address.clone(), is_held: true };
        let state = pages.fetch(true).await?;
        mark.is_held = state.as_ref().is_some_and(|state| state.run == RunState::Running);
        let Some(state) = state else { return Ok(None) };
        let envelope = Envelope::from_bytes(pages.cursor.head()).ok_or(StoreError::Malformed("the head of a run"))?;
        Ok(Some(Self { envelope, address, pages, state, mark, received }))
    }

    pub(in crate::service) fn is_running(&self) -> bool {
        self.state.run == RunState::Running
    }

    /// The last status among the received frames. `None` if it is not known: such a frame may not be stored yet.
    pub(in crate::service) async fn last_status(&self) -> Result<Option<Bytes>, StoreError> {
        if self.received == 0 || self.state.stored < self.received {
            return Ok(None);
        }
        let (mut pages, mut status) = (self.address.pages(0), None);
        for _ in 0..MAX_STATUS_PAGES {
            pages.fetch(false).await?;
            let before = pages.cursor.after();
            while let Some((number, frame)) = pages.cursor.next_frame()? {
                if number > self.received {
                    return Ok(status);
                }
                if is_status(&frame.content) {
                    // A copy, which does not hold the page.
                    status = Some(Bytes::copy_from_slice(&frame.content));
                }
            }
            if pages.cursor.after() == self.received || pages.cursor.after() == before {
                break;
            }
        }
        Ok(status)
    }

    /// The frames that the client has not received: those that are stored, then those that follow. Behind the last frame of a
    /// run that one again. `builder` makes the error frame of a lost run. `None`: the run has ended without such a frame.
    pub(in crate::service) fn frames(self, builder: FrameBuilder) -> Option<StoredFrames> {
        let Self { address, pages, state, mark, received, .. } = self;
        if state.run == RunState::Ended && received > state.stored {
            return None;
        }
        Some(RunFollower { address, pages, state, received, other: Some((mark, builder)), failures: 0 }.into_frames())
    }
}

/// The stored frames after a number of a run that this process drives, as many as there are. It does not count as a reader of
/// another process.
pub(super) fn stored_frames(address: RunAddress, after: u32) -> StoredFrames {
    let pages = address.pages(after);
    let state = PageState { run: RunState::Running, stored: u32::MAX };
    RunFollower { address, pages, state, received: after, other: None, failures: 0 }.into_frames()
}

struct RunFollower {
    address: RunAddress,
    pages: FramePages,
    state: PageState,
    received: u32,
    /// Of a run of another process. `None`: the run belongs to this one.
    other: Option<(ReaderMark, FrameBuilder)>,
    failures: u32,
}

impl RunFollower {
    fn into_frames(self) -> StoredFrames {
        Box::pin(stream::unfold(Some(self), |follower| async move {
            let mut follower = follower?;
            let next = follower.next().await;
            let is_over = next.as_ref().map_or(true, |(_, frame)| frame.is_last());
            Some((next, (!is_over).then_some(follower)))
        }))
    }

    async fn next(&mut self) -> Result<(u32, EncodedFrame), ReadError> {
        let mut before = None;
        loop {
            match self.pages.cursor.next_frame() {
                Ok(Some((number, frame))) if number > self.received || frame.is_last() => return Ok((number, frame)),
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) => return Err(unreadable(&error)),
            }
            let after = self.pages.cursor.after();
            let has_more = self.pages.cursor.is_cut() || (after < self.state.stored && before != Some(after));
            if !has_more && self.failures == 0 && self.state.run != RunState::Running {
                return self.end_without_last_frame();
            }
            if !has_more || self.failures > 0 {
                let cancelled = self.address.drain.cancelled();
                tokio::select! {
                    () = cancelled => return Err(ReadError::ShuttingDown),
                    () = sleep(POLL_INTERVAL) => {}
                }
            }
            before = Some(after);
            self.fetch().await?;
        }
    }

    async fn fetch(&mut self) -> Result<(), ReadError> {
        let marks_reader = self.other.is_some() && self.state.run == RunState::Running;
        let cancelled = self.address.drain.cancelled();
        let page = tokio::select! {
            biased;
            () = cancelled => return Err(ReadError::ShuttingDown),
            page = self.pages.fetch(marks_reader) => page,
        };
        match page {
            Ok(Some(state)) => (self.failures, self.state) = (0, state),
            Ok(None) => self.state = PageState { run: RunState::Lost, stored: 0 },
            Err(error) => {
                self.failures += 1;
                if self.failures > MAX_FAILURES {
                    return Err(unreadable(&error));
                }
            }
        }
        if let Some((mark, _)) = &mut self.other {
            mark.is_held = self.state.run == RunState::Running;
        }
        Ok(())
    }

    /// The frame with the finish reason is missing. That of a lost run will never be stored, so an error takes its number; the
    /// position of a run that has ended belongs to the frame that cannot be read.
    fn end_without_last_frame(&self) -> Result<(u32, EncodedFrame), ReadError> {
        let other = self.other.as_ref().filter(|_| self.state.run == RunState::Lost);
        let (_, builder) = other.ok_or(ReadError::StoreUnavailable)?;
        let number = self.pages.cursor.after().max(self.received).saturating_add(1);
        Ok((number, builder.failure(&TurnFailure::Abandoned)))
    }
}

fn unreadable(error: &StoreError) -> ReadError {
    tracing::warn!(%error, "the frames of a run cannot be read; its reader is told to try again");
    ReadError::StoreUnavailable
}

/// The store's entry for a reader of another process' run. Left behind, it would count as a reader for a while, and a new
/// request of the session would be refused.
struct ReaderMark {
    address: RunAddress,
    is_held: bool,
}

impl Drop for ReaderMark {
    fn drop(&mut self) {
        if self.is_held {
            let RunAddress { store, drain, user, request } = self.address.clone();
            drain.spawn(async move {
                if let Err(error) = store.unwatch(&user, &request).await {
                    tracing::debug!(%error, "the mark of a reader that left expires by itself");
                }
            });
        }
    }
}
