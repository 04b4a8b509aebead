//! The sources of a call's frames. All are pull-based: a poll is backpressure, and dropping the source cancels what only it reads.

use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    frame::{EncodedFrame, FrameBuilder},
    limits::OpenStream,
    run::{EventsOrDefect, ReadError, RunReader, StoredFrames},
};
use crate::chat::TurnEvent;

pub(super) enum FrameSource {
    /// A turn without persistence, which ends with its call.
    Direct(DirectFrames),
    /// A run of this process.
    Live(RunReader),
    /// A run of another process, or one that has ended, read from the store.
    Replay(StoredFrames),
    /// The one frame of a call that is refused; `None` = it was read.
    Refused(Option<EncodedFrame>),
}

impl FrameSource {
    /// `None` only if the frames ended without a last one.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<(u32, EncodedFrame), ReadError>>> {
        match self {
            Self::Direct(frames) => frames.poll_frame(context).map(|frame| frame.map(Ok)),
            Self::Live(reader) => reader.poll_next_unpin(context),
            Self::Replay(frames) => frames.as_mut().poll_next(context),
            Self::Refused(frame) => Poll::Ready(frame.take().map(|frame| Ok((1, frame)))),
        }
    }
}

pub(super) struct DirectFrames {
    events: EventsOrDefect,
    builder: FrameBuilder,
    /// Of the last frame.
    number: u32,
    _permit: OwnedSemaphorePermit,
    /// `None` = the user has no limits.
    open: Option<OpenStream>,
}

impl DirectFrames {
    pub(super) fn new(
        events: EventsOrDefect,
        builder: FrameBuilder,
        permit: OwnedSemaphorePermit,
        open: Option<OpenStream>,
    ) -> Self {
        Self { events, builder, number: 0, _permit: permit, open }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<(u32, EncodedFrame)>> {
        while let Some(event) = ready!(self.events.poll_next_unpin(context)) {
            match (&event, &mut self.open) {
                (TurnEvent::Usage(report), Some(open)) => {
                    open.charge_tokens(u64::from(report.usage.prompt) + u64::from(report.usage.completion));
                }
                (TurnEvent::Delta(text), Some(open)) => open.add_bytes(text.len()),
                _ => {}
            }
            if let Some(frame) = self.builder.build(event) {
                self.number += 1;
                return Poll::Ready(Some((self.number, frame)));
            }
        }
        Poll::Ready(None)
    }
}
