//! The encoded frames of one run, for all its readers in this process.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use prost::encoding::encode_varint;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    conversation::FrameChunk,
    service::{
        envelope::Envelope,
        frame::{EncodedFrame, FrameKind},
    },
};

/// Most bytes of a run's frames; only a defective provider sends more.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes of one chunk, unless a single frame is longer.
pub(super) const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Its lock is held for memory operations only, never across an await.
pub(in crate::service) struct FrameLog {
    pub(in crate::service) envelope: Envelope,
    state: Mutex<LogState>,
    left: Notify,
    came: Notify,
    pub(in crate::service) cancelled: CancellationToken,
}

/// Frames stand in one buffer, each after its length as a varint, because a delta has only a few dozen bytes. Stored chunks are
/// slices of the buffer.
#[derive(Default)]
struct LogState {
    bytes: Vec<u8>,
    /// For each frame whether it is a delta.
    deltas: Vec<bool>,
    /// Of the last frame, once there is one.
    outcome: Option<&'static str>,
    readers: usize,
    wakers: Vec<Waker>,
}

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

    fn state(&self) -> MutexGuard<'_, LogState> {
        // No holder of the lock leaves the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether there is space for more.
    pub(super) fn push(&self, frame: &EncodedFrame) -> bool {
        let mut state = self.state();
        push_delimited(&mut state.bytes, frame);
        state.deltas.push(frame.kind == FrameKind::Delta);
        if let FrameKind::Last { outcome } = frame.kind {
            state.outcome = Some(outcome);
        }
        let has_space = state.bytes.len() < MAX_BYTES;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        has_space
    }

    /// The frames after a cursor as a chunk for the store, about [`CHUNK_BYTES`] at most, and the cursor behind them.
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

    pub(super) fn has_more(&self, after: FrameCursor) -> bool {
        self.state().deltas.len() > after.number as usize
    }

    /// Reads the frames after number `after`, those that exist and those that follow. Behind the last frame of a run it
    /// reads that one again. `None`: the frame does not exist.
    pub(in crate::service) fn read(self: &Arc<Self>, after: u32) -> Option<LogReader> {
        let mut state = self.state();
        let frames = state.deltas.len();
        let is_behind_last = state.outcome.is_some() && after as usize == frames;
        let after = if is_behind_last { after.saturating_sub(1) } else { after };
        let mut cursor = FrameCursor::default();
        while cursor.number < after {
            cursor = state.next(cursor)?.0;
        }
        state.readers += 1;
        drop(state);
        self.came.notify_waiters();
        Some(LogReader { log: self.clone(), cursor })
    }

    pub(in crate::service) fn read_from_start(self: &Arc<Self>) -> LogReader {
        self.state().readers += 1;
        LogReader { log: self.clone(), cursor: FrameCursor::default() }
    }

    pub(super) async fn wait_until_abandoned(self: Arc<Self>, grace: Duration) {
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

impl LogState {
    /// The cursor behind the next frame, and where the frame's content begins.
    fn next(&self, cursor: FrameCursor) -> Option<(FrameCursor, usize)> {
        let mut rest = self.bytes.get(cursor.offset..).filter(|rest| !rest.is_empty())?;
        let before = rest.len();
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let begin = cursor.offset + (before - rest.len());
        Some((FrameCursor { number: cursor.number + 1, offset: begin + length }, begin))
    }

    fn kind(&self, number: u32) -> FrameKind {
        match (self.outcome, self.deltas.get(number as usize - 1)) {
            (Some(outcome), _) if number as usize == self.deltas.len() => FrameKind::Last { outcome },
            (_, Some(true)) => FrameKind::Delta,
            _ => FrameKind::Other,
        }
    }
}

pub(in crate::service) struct LogReader {
    log: Arc<FrameLog>,
    cursor: FrameCursor,
}

impl Stream for LogReader {
    type Item = (u32, EncodedFrame);

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut state = this.log.state();
        let Some((next, begin)) = state.next(this.cursor) else {
            if state.outcome.is_some() {
                return Poll::Ready(None);
            }
            state.wakers.push(context.waker().clone());
            return Poll::Pending;
        };
        this.cursor = next;
        let content = state.bytes.get(begin..next.offset).map(Bytes::copy_from_slice);
        let kind = state.kind(next.number);
        Poll::Ready(content.map(|content| (next.number, EncodedFrame { content, kind })))
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        let mut state = self.log.state();
        state.readers -= 1;
        let is_last = state.readers == 0;
        drop(state);
        if is_last {
            // Stores a permit: the driver may not be waiting at this moment.
            self.log.left.notify_one();
        }
    }
}

pub(super) fn push_delimited(bytes: &mut Vec<u8>, frame: &EncodedFrame) {
    encode_varint(frame.content.len() as u64, bytes);
    bytes.extend_from_slice(&frame.content);
}

/// The frames of a stored chunk with their numbers, up to the first that is malformed.
pub(super) fn frames_of_chunk(chunk: FrameChunk) -> impl Iterator<Item = (u32, EncodedFrame)> {
    let mut rest = Bytes::from(chunk.frames);
    (chunk.first..chunk.first.saturating_add(chunk.count)).map_while(move |number| {
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let content = (length <= rest.remaining()).then(|| rest.split_to(length))?;
        Some((number, EncodedFrame::from_stored(content)?))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        chat::{TurnEvent, TurnFailure},
        identity::{RequestId, SessionId, TraceId},
        language::Language,
        service::frame::FrameBuilder,
    };

    fn log() -> Arc<FrameLog> {
        let trace = TraceId::from_call(None, None, "");
        FrameLog::new(Envelope::new(SessionId::generate(), &RequestId::generate(), &trace))
    }

    fn delta(text: &str) -> EncodedFrame {
        FrameBuilder::new(Language::English, false).build(TurnEvent::Delta(text.to_owned())).unwrap()
    }

    fn read(log: &Arc<FrameLog>, after: u32) -> Vec<(u32, EncodedFrame)> {
        let reader = log.read(after).unwrap();
        reader.collect::<Vec<_>>().now_or_never().expect("an ended log is read without waiting")
    }

    proptest! {
        #[test]
        fn every_reader_and_the_store_get_the_same_frames(
            texts in prop::collection::vec(".{0,200}", 1..40),
            after in any::<u32>(),
        ) {
            let log = log();
            let mut frames: Vec<_> = texts.iter().map(|text| delta(text)).collect();
            frames.push(FrameBuilder::new(Language::English, false).failure(&TurnFailure::Internal));
            for frame in &frames {
                log.push(frame);
            }
            let all: Vec<_> = (1..).zip(frames).collect();
            prop_assert_eq!(&read(&log, 0), &all);
            for number in 0..all.len() {
                prop_assert_eq!(&read(&log, u32::try_from(number).unwrap())[..], &all[number..]);
            }
            prop_assert_eq!(&read(&log, u32::try_from(all.len()).unwrap())[..], &all[all.len() - 1..]);
            prop_assert_eq!(log.read(after).is_some(), after as usize <= all.len());
            let (chunk, end) = log.chunk(FrameCursor::default()).unwrap();
            prop_assert_eq!(end.number as usize, all.len());
            prop_assert_eq!(frames_of_chunk(chunk).collect::<Vec<_>>(), all);
            prop_assert!(log.chunk(end).is_none());
        }
    }

    #[test]
    fn chunk_is_bounded_and_the_next_one_continues() {
        let log = log();
        let text = "x".repeat(CHUNK_BYTES / 3);
        for _ in 0..7 {
            log.push(&delta(&text));
        }
        let (mut cursor, mut counts) = (FrameCursor::default(), Vec::new());
        while let Some((chunk, end)) = log.chunk(cursor) {
            assert!(chunk.frames.len() <= CHUNK_BYTES && chunk.first == cursor.number + 1);
            counts.push(chunk.count);
            cursor = end;
        }
        assert_eq!(counts, [2, 2, 2, 1]);
    }

    #[test]
    fn chunk_holds_a_frame_that_is_longer_than_the_bound() {
        let log = log();
        log.push(&delta(&"x".repeat(CHUNK_BYTES + 1)));
        log.push(&delta("next"));
        let (chunk, end) = log.chunk(FrameCursor::default()).unwrap();
        assert_eq!((chunk.count, end.number), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn run_is_abandoned_after_its_grace_without_a_reader() {
        let log = log();
        let grace = Duration::from_secs(10);
        let abandoned = |grace| log.clone().wait_until_abandoned(grace);
        let (first, second) = (log.read_from_start(), log.read_from_start());
        drop(first);
        assert!(timeout(grace * 3, abandoned(grace)).await.is_err(), "the second reader is still there");
        drop(second);
        assert!(timeout(grace / 2, abandoned(grace)).await.is_err(), "the grace has not passed");
        let returned = log.read(0).unwrap();
        assert!(timeout(grace * 3, abandoned(grace)).await.is_err(), "a reader returned");
        drop(returned);
        assert!(timeout(grace * 2, abandoned(grace)).await.is_ok());
        assert!(timeout(grace, abandoned(Duration::ZERO)).await.is_ok());
    }

    #[test]
    fn read_after_a_frame_that_is_still_to_come_is_refused() {
        let log = log();
        log.push(&delta("a"));
        assert!(log.read(1).is_some());
        assert!([2, u32::MAX].iter().all(|after| log.read(*after).is_none()));
    }

    #[tokio::test]
    async fn reader_is_woken_by_the_next_frame() {
        let log = log();
        let mut reader = log.read_from_start();
        let reading = tokio::spawn(async move { reader.next().await });
        tokio::task::yield_now().await;
        let frame = delta("a");
        log.push(&frame);
        assert_eq!(reading.await.unwrap(), Some((1, frame)));
    }
}
