//! A reader of a run of this process: it reads the log, and what the log has discarded from the store.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, StreamExt as _};

use super::{
    log::{FrameLog, LogRead, LogReader},
    stored::{ReadError, RunAddress, StoredFrames, stored_frames},
};
use crate::service::frame::EncodedFrame;

pub(in crate::service) struct RunReader {
    log: LogReader,
    address: RunAddress,
    /// While the reader is behind the log.
    stored: Option<StoredFrames>,
}

impl RunReader {
    pub(super) fn new(log: LogReader, address: RunAddress) -> Self {
        Self { log, address, stored: None }
    }

    pub(in crate::service) fn log(&self) -> &Arc<FrameLog> {
        self.log.log()
    }
}

impl Stream for RunReader {
    type Item = Result<(u32, EncodedFrame), ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(stored) = &mut this.stored {
                let next = ready!(stored.poll_next_unpin(context));
                if let Some(Ok((number, _))) = &next
                    && this.log.rejoin(*number)
                {
                    this.stored = None;
                }
                return Poll::Ready(next);
            }
            match ready!(this.log.poll_read(context)) {
                LogRead::Frame(number, frame) => return Poll::Ready(Some(Ok((number, frame)))),
                LogRead::Behind(number) => this.stored = Some(stored_frames(this.address.clone(), number)),
                LogRead::Ended => return Poll::Ready(None),
            }
        }
    }
}
