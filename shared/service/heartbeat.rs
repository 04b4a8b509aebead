//! Heartbeats: while a stream has nothing to send, it repeats its last status, so that no proxy takes the connection for dead.
//!
//! A repetition belongs to one reader: it is in no log and no store, so that waits of any kind are covered and a replay has none.
//! Its id stands between those of the frames around it ([`FramePosition`]), so that a client can resume behind it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use super::frame::{self, EncodedFrame, FrameKind};
use crate::proto::chat_frame::FramePosition;

/// Waits before the probes of a client that closed its sending side. The first makes the system of a client that is gone reset
/// the connection, and a later one finds it reset: the second if the client is near.
const PROBE_WAITS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_secs(1)];

/// After this a reader of another process' run is told that it waits: that process may be dead, and its lease runs out.
const WAITING_NOTICE: Duration = Duration::from_secs(1);

/// In the extensions of a request over HTTP/1.1: whether its client has closed its sending side. It may have closed the whole
/// connection, which only writing to it can tell.
#[derive(Debug, Clone, Default)]
pub struct HalfClose(Arc<AtomicBool>);

impl HalfClose {
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The task that reads the stream must be woken after it.
    pub fn set_closed(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The frame behind which a stream begins, and the status that the client has seen last.
#[derive(Debug, Default)]
pub(super) struct StreamStart {
    pub(super) position: FramePosition,
    pub(super) status: Option<Bytes>,
    /// A status that is sent once if no frame comes soon.
    pub(super) notice: Option<Bytes>,
}

pub(super) struct Heartbeat {
    /// `None` = off.
    interval: Option<Duration>,
    half_close: Option<HalfClose>,
    probes: u8,
    position: FramePosition,
    last_status: Option<Bytes>,
    notice: Option<Bytes>,
    /// Since when nothing was sent; `None` = not known to wait. Frames cost no look at the clock, only the waits between them.
    quiet_since: Option<Instant>,
    /// A frame does not move it: when it fires too early, it is set to the right time.
    timer: Option<Timer>,
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    waker: Waker,
}

impl Heartbeat {
    pub(super) fn new(interval: Option<Duration>, half_close: Option<HalfClose>, start: StreamStart) -> Self {
        let StreamStart { position, status, notice } = start;
        Self { interval, half_close, probes: 0, position, last_status: status, notice, quiet_since: None, timer: None }
    }

    /// A frame is sent, at the returned position.
    pub(super) fn record(&mut self, number: u32, frame: &EncodedFrame) -> FramePosition {
        self.position = FramePosition { number, repetition: 0 };
        self.quiet_since = None;
        self.notice = None;
        if frame.kind == FrameKind::Other && frame::is_status(&frame.content) {
            self.last_status = Some(frame.content.clone());
        }
        self.position
    }

    /// Called when there is no frame to send: the notice or a repetition of the last status, once it is due.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<(FramePosition, Bytes)> {
        let status = self.notice.as_ref().or(self.last_status.as_ref());
        let Some((wait, status)) = self.wait().zip(status) else { return Poll::Pending };
        let due = *self.quiet_since.get_or_insert_with(Instant::now) + wait;
        ready!(Timer::poll(&mut self.timer, due, context));
        let Some(repetition) = self.position.repetition.checked_add(1) else { return Poll::Pending };
        let status = frame::with_current_time(status);
        self.position.repetition = repetition;
        self.quiet_since = None;
        self.notice = None;
        if self.is_half_closed() {
            self.probes = self.probes.saturating_add(1);
        }
        Poll::Ready((self.position, status))
    }

    /// The position of a frame that only this stream has, behind the last one that was sent.
    pub(super) fn next_repetition(&mut self) -> FramePosition {
        self.position.repetition = self.position.repetition.saturating_add(1);
        self.position
    }

    fn is_half_closed(&self) -> bool {
        self.half_close.as_ref().is_some_and(HalfClose::is_closed)
    }

    fn wait(&self) -> Option<Duration> {
        let probe = PROBE_WAITS.get(usize::from(self.probes)).filter(|_| self.is_half_closed());
        probe.copied().or(self.notice.as_ref().map(|_| WAITING_NOTICE)).or(self.interval)
    }
}

impl Timer {
    fn poll(timer: &mut Option<Self>, due: Instant, context: &mut Context<'_>) -> Poll<()> {
        let timer =
            timer.get_or_insert_with(|| Self { sleep: Box::pin(sleep_until(due)), waker: Waker::noop().clone() });
        if due < timer.sleep.deadline() {
            timer.reset(due);
        }
        if timer.waker.will_wake(context.waker()) && !timer.sleep.is_elapsed() {
            return Poll::Pending;
        }
        while timer.sleep.as_mut().poll(context).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.reset(due);
        }
        timer.waker.clone_from(context.waker());
        Poll::Pending
    }

    fn reset(&mut self, due: Instant) {
        self.sleep.as_mut().reset(due);
        self.waker = Waker::noop().clone();
    }
}

#[cfg(test)]
mod tests;
