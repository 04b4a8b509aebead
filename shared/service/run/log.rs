//! The encoded frames of one run, for all its readers in this process: those that are not stored yet, and the last ones that a
//! reader has still to read. A reader behind them takes the stored ones from the store ([`LogRead::Behind`]), so that one that
//! does not read keeps no more than that in memory.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use prost::encoding::encode_varint;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    conversation::{FRAME_PAGE_BYTES, FrameChunk},
    service::{
        envelope::Envelope,
        frame::{EncodedFrame, FrameKind, is_status},
    },
};

/// Most bytes of a run's frames; only a defective provider sends more.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes of one chunk, unless a single frame is longer.
pub(super) const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of stored frames that the log keeps for a reader that is slower than the run.
const MAX_LAG_BYTES: usize = FRAME_PAGE_BYTES;
/// Buffers of this capacity are not made smaller.
const SMALL_BUFFER_BYTES: usize = 512;

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
    /// Frames before it are discarded.
    begin: FrameCursor,
    bytes: Vec<u8>,
    /// For each frame in `bytes` whether it is a delta.
    deltas: Vec<bool>,
    /// The last status, with its number: a reader that begins behind it repeats it while there is nothing else.
    status: Option<(u32, Bytes)>,
    /// Of the last frame, once there is one.
    outcome: Option<&'static str>,
    /// By [`LogReader::slot`].
    readers: Vec<Option<ReaderState>>,
    /// A new request of the session waits for the end of the run.
    is_preempted: bool,
}

struct ReaderState {
    /// Frames before it are read. `None`: the reader is behind, and reads from the store.
    cursor: Option<FrameCursor>,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FrameCursor {
    /// Number of the frame before it.
    pub(super) number: u32,
    /// Bytes of the run's frames before it, discarded ones included.
    offset: usize,
}

impl FrameLog {
    #[cfg(test)]
    pub(in crate::service) fn example() -> Arc<Self> {
        use crate::identity::{RequestId, SessionId, TraceId};
        let trace = TraceId::from_call(None, None, "");
        Self::new(Envelope::new(SessionId::generate(), &RequestId::generate(), &trace))
    }

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
        self.push_to(self.state(), frame)
    }

    /// After the run has ended nobody discards anything any more, so that it is done here if all frames are stored.
    pub(in crate::service) fn push_last(&self, frame: &EncodedFrame, is_stored: bool) {
        let mut state = self.state();
        if is_stored {
            let end = state.end();
            state.discard(end);
        }
        self.push_to(state, frame);
        let mut state = self.state();
        if is_stored && !state.readers.iter().flatten().any(|reader| reader.cursor.is_some()) {
            let end = state.end();
            state.discard(end);
        }
    }

    fn push_to(&self, mut state: MutexGuard<'_, LogState>, frame: &EncodedFrame) -> bool {
        push_delimited(&mut state.bytes, frame);
        state.deltas.push(frame.kind == FrameKind::Delta);
        match frame.kind {
            FrameKind::Last { outcome } => state.outcome = Some(outcome),
            FrameKind::Other if is_status(&frame.content) => {
                state.status = Some((state.last_number(), frame.content.clone()));
            }
            FrameKind::Other | FrameKind::Delta => {}
        }
        let has_space = state.begin.offset + state.bytes.len() < MAX_BYTES;
        let mut wakers = state.readers.iter_mut().flatten().filter_map(|reader| reader.waker.take());
        // A run has one reader nearly always, and then this allocates nothing.
        let (first, others) = (wakers.next(), wakers.collect::<Vec<_>>());
        drop(state);
        first.into_iter().chain(others).for_each(Waker::wake);
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
        let frames = state.slice(after.offset, end.offset)?.to_vec();
        let count = end.number - after.number;
        (count > 0).then_some((FrameChunk { first: after.number + 1, count, frames }, end))
    }

    pub(super) fn has_more(&self, after: FrameCursor) -> bool {
        self.state().last_number() > after.number
    }

    /// Drops stored frames, those before `stored`: [`LogState::discard`].
    pub(super) fn discard(&self, stored: FrameCursor) {
        self.state().discard(stored);
    }

    /// Reads the frames after number `after`, those that exist and those that follow. Behind the last frame of a run it
    /// reads that one again. `None`: the frame does not exist.
    pub(in crate::service) fn read(self: &Arc<Self>, after: u32) -> Option<LogReader> {
        let mut state = self.state();
        let is_behind_last = state.outcome.is_some() && after == state.last_number();
        let after = if is_behind_last { after.saturating_sub(1) } else { after };
        let mut cursor = state.begin;
        while cursor.number < after {
            cursor = state.next(cursor)?.0;
        }
        let cursor = (cursor.number == after).then_some(cursor);
        let reader = self.add_reader(&mut state, cursor, after);
        drop(state);
        self.came.notify_waiters();
        Some(reader)
    }

    pub(in crate::service) fn read_from_start(self: &Arc<Self>) -> LogReader {
        let mut state = self.state();
        let cursor = (state.begin.number == 0).then_some(state.begin);
        self.add_reader(&mut state, cursor, 0)
    }

    pub(in crate::service) fn has_ended(&self) -> bool {
        self.state().outcome.is_some()
    }

    fn add_reader(self: &Arc<Self>, state: &mut LogState, cursor: Option<FrameCursor>, number: u32) -> LogReader {
        let reader = Some(ReaderState { cursor, waker: None });
        let free = state.readers.iter().position(Option::is_none);
        let slot = free.unwrap_or(state.readers.len());
        match state.readers.get_mut(slot) {
            Some(free) => *free = reader,
            None => state.readers.push(reader),
        }
        LogReader { log: self.clone(), slot, number }
    }

    /// The last status up to this number. `None` if there is a later one, which a reader behind this number gets.
    pub(in crate::service) fn last_status(&self, through: u32) -> Option<Bytes> {
        self.state().status.as_ref().filter(|(number, _)| *number <= through).map(|(_, status)| status.clone())
    }

    pub(super) async fn wait_until_unread(&self) {
        loop {
            let left = self.left.notified();
            if !self.state().has_readers() {
                return;
            }
            left.await;
        }
    }

    /// Stops the run, if nobody reads it.
    pub(super) fn preempt(&self) -> bool {
        let mut state = self.state();
        state.is_preempted |= !state.has_readers();
        let is_preempted = state.is_preempted;
        drop(state);
        self.came.notify_waiters();
        is_preempted
    }

    pub(super) fn is_preempted(&self) -> bool {
        self.state().is_preempted
    }

    pub(super) async fn wait_for_reader_or_preemption(&self) -> ReaderChange {
        loop {
            let came = self.came.notified();
            let (is_preempted, is_read) = {
                let state = self.state();
                (state.is_preempted, state.has_readers())
            };
            if is_preempted {
                return ReaderChange::Preempted;
            }
            if is_read {
                return ReaderChange::Came;
            }
            came.await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReaderChange {
    Came,
    Preempted,
}

impl LogState {
    fn last_number(&self) -> u32 {
        self.begin.number + u32::try_from(self.deltas.len()).unwrap_or(u32::MAX)
    }

    fn end(&self) -> FrameCursor {
        FrameCursor { number: self.last_number(), offset: self.begin.offset + self.bytes.len() }
    }

    /// Drops the stored frames, those before `stored`, that every reader has read, and those that only readers need that are
    /// far behind. An answer of any length then takes no more memory than what comes between two flushes.
    fn discard(&mut self, stored: FrameCursor) {
        let longest_lag = self.end().offset.saturating_sub(MAX_LAG_BYTES);
        let readers = self.readers.iter().flatten().filter_map(|reader| reader.cursor);
        let near = readers.filter(|cursor| cursor.offset >= longest_lag);
        let Some(begin) = near.chain([stored]).min_by_key(|cursor| cursor.number) else { return };
        let (frames, bytes) = (begin.number - self.begin.number, begin.offset - self.begin.offset);
        self.bytes.drain(..bytes);
        self.deltas.drain(..frames as usize);
        self.begin = begin;
        for reader in self.readers.iter_mut().flatten() {
            reader.cursor = reader.cursor.filter(|cursor| cursor.number >= begin.number);
        }
        let needed = (2 * self.bytes.len()).max(SMALL_BUFFER_BYTES);
        if self.bytes.capacity() > 2 * needed {
            self.bytes.shrink_to(needed);
            self.deltas.shrink_to(needed);
        }
    }

    fn has_readers(&self) -> bool {
        self.readers.iter().any(Option::is_some)
    }

    /// The bytes between two offsets of the run; `None` if they are discarded or do not exist.
    fn slice(&self, from: usize, to: usize) -> Option<&[u8]> {
        self.bytes.get(from.checked_sub(self.begin.offset)?..to.checked_sub(self.begin.offset)?)
    }

    /// The cursor behind the next frame, and where the frame's content begins.
    fn next(&self, cursor: FrameCursor) -> Option<(FrameCursor, usize)> {
        let mut rest = self.slice(cursor.offset, self.begin.offset + self.bytes.len())?;
        let before = rest.len();
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let begin = cursor.offset + (before - rest.len());
        Some((FrameCursor { number: cursor.number + 1, offset: begin + length }, begin))
    }

    fn kind(&self, number: u32) -> FrameKind {
        match (self.outcome, self.deltas.get((number - self.begin.number) as usize - 1)) {
            (Some(outcome), _) if number == self.last_number() => FrameKind::Last { outcome },
            (_, Some(true)) => FrameKind::Delta,
            _ => FrameKind::Other,
        }
    }

    /// The next frame of a reader, of which it counts as read.
    fn take_next(&mut self, slot: usize, cursor: FrameCursor) -> Option<(u32, EncodedFrame)> {
        let (next, begin) = self.next(cursor)?;
        let content = Bytes::copy_from_slice(self.slice(begin, next.offset)?);
        let kind = self.kind(next.number);
        self.readers.get_mut(slot)?.as_mut()?.cursor = Some(next);
        Some((next.number, EncodedFrame { content, kind }))
    }
}

/// Counts as a reader of the run until it is dropped.
pub(in crate::service) struct LogReader {
    log: Arc<FrameLog>,
    slot: usize,
    /// Of the last frame that was read.
    number: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogRead {
    Frame(u32, EncodedFrame),
    /// The log has discarded the frames that follow this number. They are in the store; see [`LogReader::rejoin`].
    Behind(u32),
    /// There are no more frames.
    Ended,
}

impl LogReader {
    pub(super) fn log(&self) -> &Arc<FrameLog> {
        &self.log
    }

    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<LogRead> {
        let mut state = self.log.state();
        let Some(Some(reader)) = state.readers.get(self.slot) else { return Poll::Ready(LogRead::Ended) };
        let Some(cursor) = reader.cursor else { return Poll::Ready(LogRead::Behind(self.number)) };
        if let Some((number, frame)) = state.take_next(self.slot, cursor) {
            self.number = number;
            return Poll::Ready(LogRead::Frame(number, frame));
        }
        if state.outcome.is_some() {
            return Poll::Ready(LogRead::Ended);
        }
        if let Some(Some(reader)) = state.readers.get_mut(self.slot) {
            reader.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// The frames up to this number were read from the store. Returns whether the log has those that follow.
    pub(super) fn rejoin(&mut self, number: u32) -> bool {
        self.number = number;
        let mut state = self.log.state();
        let mut cursor = state.begin;
        while cursor.number < number
            && let Some((next, _)) = state.next(cursor)
        {
            cursor = next;
        }
        let has_rejoined = cursor.number == number;
        if has_rejoined && let Some(Some(reader)) = state.readers.get_mut(self.slot) {
            reader.cursor = Some(cursor);
        }
        has_rejoined
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        let mut state = self.log.state();
        if let Some(reader) = state.readers.get_mut(self.slot) {
            *reader = None;
        }
        let is_last = !state.has_readers();
        drop(state);
        if is_last {
            // The driver may wait, and a request that wants the session.
            self.log.left.notify_waiters();
        }
    }
}

pub(super) fn push_delimited(bytes: &mut Vec<u8>, frame: &EncodedFrame) {
    encode_varint(frame.content.len() as u64, bytes);
    bytes.extend_from_slice(&frame.content);
}

#[cfg(test)]
mod tests;
