//! The frames of one run, for everybody in this process who reads them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::Stream;
use prost::Message as _;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{conversation::FrameChunk, proto::agent_v1 as pb, service::frames::Envelope};

/// Most bytes of a run's frames. A provider that sends more has gone mad.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes of one chunk.
pub(super) const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Frames as they were made, one behind the other as protobuf with their lengths: a few dozen bytes for a delta.
pub(in crate::service) struct FrameLog {
    pub(in crate::service) envelope: Envelope,
    state: Mutex<State>,
    /// Told when the last reader leaves.
    left: Notify,
    /// Told when a reader comes.
    came: Notify,
    /// Somebody wants the run to stop.
    pub(in crate::service) cancelled: CancellationToken,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    frames: u32,
    is_over: bool,
    readers: usize,
    waiting: Vec<Waker>,
}

/// A place between two frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FrameCursor {
    /// Number of the frame before it.
    pub(super) number: u32,
    offset: usize,
}

impl FrameLog {
    pub(super) fn new(envelope: Envelope) -> Arc<Self> {
        let (left, came) = (Notify::new(), Notify::new());
        Arc::new(Self { envelope, state: Mutex::default(), left, came, cancelled: CancellationToken::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it has changed nothing by halves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame. Returns whether there is room for more.
    pub(super) fn push(&self, frame: &pb::ChatResponse) -> bool {
        self.add(|state| {
            // A vector takes whatever is written to it.
            let _ = frame.encode_length_delimited(&mut state.bytes);
            state.frames += 1;
        })
    }

    /// Adds the last frame.
    pub(super) fn end(&self, frame: &pb::ChatResponse) {
        self.add(|state| {
            let _ = frame.encode_length_delimited(&mut state.bytes);
            state.frames += 1;
            state.is_over = true;
        });
    }

    fn add(&self, change: impl FnOnce(&mut State)) -> bool {
        let mut state = self.state();
        change(&mut state);
        let has_room = state.bytes.len() < MAX_BYTES;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        has_room
    }

    /// Frames after a place, at least one if there are any, about [`CHUNK_BYTES`] at most; and the place behind them.
    pub(super) fn chunk(&self, after: FrameCursor) -> Option<(FrameChunk, FrameCursor)> {
        let state = self.state();
        let mut end = after;
        while let Some((next, _)) = state.next(end)
            && (end == after || next.offset - after.offset <= CHUNK_BYTES)
        {
            end = next;
        }
        let frames = state.bytes.get(after.offset..end.offset)?.to_vec();
        let count = end.number - after.number;
        (count > 0).then_some((FrameChunk { first: after.number + 1, count, frames }, end))
    }

    /// Whether there are frames after a place.
    pub(super) fn has_more(&self, after: FrameCursor) -> bool {
        self.state().frames > after.number
    }

    /// Reads the frames after number `after`, those that are there and those that come.
    pub(in crate::service) fn read(self: &Arc<Self>, after: u32) -> LogReader {
        let mut state = self.state();
        let mut place = FrameCursor::default();
        while place.number < after
            && let Some((next, _)) = state.next(place)
        {
            place = next;
        }
        state.readers += 1;
        drop(state);
        self.came.notify_waiters();
        LogReader { log: self.clone(), place }
    }

    /// Resolves when nobody has read for so long.
    pub(super) async fn wait_until_abandoned(&self, grace: Duration) {
        loop {
            let left = self.left.notified();
            if self.state().readers > 0 {
                left.await;
                continue;
            }
            let came = self.came.notified();
            if self.state().readers > 0 {
                continue;
            }
            if timeout(grace, came).await.is_err() && self.state().readers == 0 {
                return;
            }
        }
    }
}

impl State {
    /// The place behind the next frame, and where its bytes begin.
    fn next(&self, place: FrameCursor) -> Option<(FrameCursor, usize)> {
        if place.number >= self.frames {
            return None;
        }
        let mut rest = self.bytes.get(place.offset..)?;
        let before = rest.len();
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let begin = place.offset + (before - rest.len());
        Some((FrameCursor { number: place.number + 1, offset: begin + length }, begin))
    }
}

/// Reads a [`FrameLog`].
pub(in crate::service) struct LogReader {
    log: Arc<FrameLog>,
    place: FrameCursor,
}

impl LogReader {
    pub(in crate::service) fn envelope(&self) -> &Envelope {
        &self.log.envelope
    }
}

impl Stream for LogReader {
    /// A frame without its envelope, and its number.
    type Item = (u32, pb::ChatResponse);

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut state = this.log.state();
        let Some((next, begin)) = state.next(this.place) else {
            if state.is_over {
                return Poll::Ready(None);
            }
            state.waiting.push(context.waker().clone());
            return Poll::Pending;
        };
        // Bytes of ours: what was encoded can be decoded.
        let frame = state.bytes.get(begin..next.offset).and_then(|bytes| pb::ChatResponse::decode(bytes).ok());
        this.place = next;
        Poll::Ready(frame.map(|frame| (next.number, frame)))
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        let mut state = self.log.state();
        state.readers -= 1;
        let is_last = state.readers == 0;
        drop(state);
        if is_last {
            // Kept for whoever looks next: nobody may be waiting just now.
            self.log.left.notify_one();
        }
    }
}

/// The frames of a chunk, in order. What can not be read is left out.
pub(super) fn frames_of(chunk: &FrameChunk) -> impl Iterator<Item = (u32, pb::ChatResponse)> + '_ {
    let mut rest = chunk.frames.as_slice();
    (chunk.first..chunk.first.saturating_add(chunk.count))
        .map_while(move |number| Some((number, pb::ChatResponse::decode_length_delimited(&mut rest).ok()?)))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{RequestId, SessionId, TraceId};

    fn log() -> Arc<FrameLog> {
        let trace = TraceId::from_call(None, None, "");
        FrameLog::new(Envelope::new(SessionId::generate(), RequestId::generate(), trace))
    }

    fn delta(text: &str) -> pb::ChatResponse {
        let content = Some(pb::chat_response::Content::Delta(text.to_owned()));
        pb::ChatResponse { content, ..Default::default() }
    }

    proptest! {
        #[test]
        fn from_any_place_on_everybody_reads_the_same(texts in prop::collection::vec(".{0,200}", 1..40), after in 0_u32..40) {
            let log = log();
            for text in &texts {
                log.push(&delta(text));
            }
            log.end(&delta("the end"));
            let all: Vec<_> = futures_util::FutureExt::now_or_never(log.read(0).collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(all.len(), texts.len() + 1);
            let rest: Vec<_> = futures_util::FutureExt::now_or_never(log.read(after).collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(&rest[..], &all[all.len().min(after as usize)..]);
            let (chunk, end) = log.chunk(FrameCursor::default()).unwrap();
            prop_assert_eq!(end.number as usize, all.len());
            prop_assert_eq!(frames_of(&chunk).collect::<Vec<_>>(), all);
            prop_assert!(log.chunk(end).is_none());
        }
    }

    #[test]
    fn a_chunk_is_bounded_and_the_next_one_goes_on_behind_it() {
        let log = log();
        let text = "x".repeat(CHUNK_BYTES / 3);
        for _ in 0..7 {
            log.push(&delta(&text));
        }
        let (mut place, mut counts) = (FrameCursor::default(), Vec::new());
        while let Some((chunk, end)) = log.chunk(place) {
            assert!(chunk.frames.len() <= CHUNK_BYTES && chunk.first == place.number + 1);
            counts.push(chunk.count);
            place = end;
        }
        assert_eq!(counts, [2, 2, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_deserted_when_the_last_reader_has_been_away_for_long_enough() {
        let log = log();
        let grace = Duration::from_secs(10);
        let (first, second) = (log.read(0), log.read(0));
        drop(first);
        assert!(timeout(grace * 3, log.wait_until_abandoned(grace)).await.is_err(), "there is another reader");
        drop(second);
        assert!(timeout(grace / 2, log.wait_until_abandoned(grace)).await.is_err(), "not yet");
        let back = log.read(0);
        assert!(timeout(grace * 3, log.wait_until_abandoned(grace)).await.is_err(), "somebody came back");
        drop(back);
        assert!(timeout(grace * 2, log.wait_until_abandoned(grace)).await.is_ok());
        assert!(timeout(grace, log.wait_until_abandoned(Duration::ZERO)).await.is_ok());
    }

    #[tokio::test]
    async fn a_reader_is_woken_by_the_next_frame() {
        let log = log();
        let mut reader = log.read(0);
        let reading = tokio::spawn(async move { reader.next().await });
        tokio::task::yield_now().await;
        log.push(&delta("a"));
        assert_eq!(reading.await.unwrap(), Some((1, delta("a"))));
    }
}
