//! The sources of a call's frames. All are pull-based: a poll is backpressure, and dropping the source cancels what only it reads.

use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    frame::{EncodedFrame, FrameBuilder},
    limits::OpenStream,
    run::{EventsOrDefect, ReadError, RunReader, StoredFrames},
};
use crate::chat::{HISTORY_TOKEN_BUDGET, Stage, TurnEvent, TurnFailure, TurnInput};

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

/// Of ASCII text. History beyond its budget does not reach the prompt.
const MAX_HISTORY_BYTES: usize = 4 * HISTORY_TOKEN_BUDGET as usize;

/// The costs of a chat that no store counts.
pub(super) struct DirectChat {
    open: OpenStream,
    /// Counted when the provider is asked.
    prompt_bytes: usize,
    is_answered: bool,
}

impl DirectChat {
    pub(super) fn new(open: OpenStream, input: &TurnInput) -> Self {
        Self { open, prompt_bytes: prompt_bytes(input), is_answered: false }
    }

    fn count(&mut self, event: &TurnEvent) {
        match event {
            TurnEvent::StageEntered(Stage::Generating { .. }) => {
                self.open.add_bytes(std::mem::take(&mut self.prompt_bytes));
            }
            TurnEvent::Usage(report) => {
                let tokens = u64::from(report.usage.prompt) + u64::from(report.usage.completion);
                self.open.charge_tokens(tokens);
            }
            TurnEvent::Delta(text) => {
                self.is_answered = true;
                self.open.add_bytes(text.len());
            }
            TurnEvent::ToolExecuted(_) | TurnEvent::ToolCalled(_) | TurnEvent::ApprovalRequested(_) => {
                self.is_answered = true;
            }
            // The provider answered nothing, so it costs nothing.
            TurnEvent::Failed(TurnFailure::Model(_)) if !self.is_answered => self.open.forget_bytes(),
            _ => {}
        }
    }
}

/// About as long as what the prompt has of the request.
fn prompt_bytes(input: &TurnInput) -> usize {
    let history: usize = input.history.iter().map(|message| message.content.len()).sum();
    let context = if input.extra_context.is_null() { 0 } else { input.extra_context.to_string().len() };
    input.message.len() + history.min(MAX_HISTORY_BYTES) + context
}

pub(super) struct DirectFrames {
    events: EventsOrDefect,
    builder: FrameBuilder,
    /// Of the last frame.
    number: u32,
    _permit: OwnedSemaphorePermit,
    /// `None` = the user has no limits.
    open: Option<DirectChat>,
}

impl DirectFrames {
    pub(super) fn new(
        events: EventsOrDefect,
        builder: FrameBuilder,
        permit: OwnedSemaphorePermit,
        open: Option<DirectChat>,
    ) -> Self {
        Self { events, builder, number: 0, _permit: permit, open }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<(u32, EncodedFrame)>> {
        while let Some(event) = ready!(self.events.poll_next_unpin(context)) {
            if let Some(open) = &mut self.open {
                open.count(&event);
            }
            if let Some(frame) = self.builder.build(event) {
                self.number += 1;
                return Poll::Ready(Some((self.number, frame)));
            }
        }
        Poll::Ready(None)
    }
}
