//! Reads the stored frames of a run, a page at a time: what a reader holds does not depend on the length of the run.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Buf as _, Bytes};

use crate::{
    conversation::{ConversationStore, FRAME_PAGE_BYTES, FrameChunk, FramePage, RunSnapshot, RunState, StoreError},
    identity::{RequestId, UserId},
    service::frame::EncodedFrame,
};

const MALFORMED: StoreError = StoreError::Malformed("the frames of a run");

pub(super) struct FramePages {
    store: Arc<dyn ConversationStore>,
    user: UserId,
    request: RequestId,
    pub(super) cursor: PageCursor,
}

/// The position of a reader, and the rest of its page.
pub(super) struct PageCursor {
    /// Empty before the first page.
    head: Vec<u8>,
    /// Frames up to this number are read, or not wanted.
    after: u32,
    place: ChunkPlace,
    limit: usize,
    /// The rest of the page.
    chunks: VecDeque<FrameChunk>,
    current: Option<OpenChunk>,
    /// A frame of the page was taken.
    has_progress: bool,
    is_cut: bool,
}

/// The begin of the next frame.
#[derive(Debug, Clone, Copy, Default)]
struct ChunkPlace {
    /// Number of the chunk's first frame; 0 = no chunk.
    chunk: u32,
    /// Number of the next frame.
    next: u32,
    offset: usize,
}

/// The rest of a chunk, as far as it is in the page.
struct OpenChunk {
    last: u32,
    rest: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageState {
    pub(super) run: RunState,
    /// Number of the last stored frame.
    pub(super) stored: u32,
}

impl FramePages {
    pub(super) fn new(store: Arc<dyn ConversationStore>, user: UserId, request: RequestId, after: u32) -> Self {
        Self { store, user, request, cursor: PageCursor::new(after) }
    }

    /// Reads the next page. `None`: the store has no such run, or no longer.
    pub(super) async fn fetch(&mut self, marks_reader: bool) -> Result<Option<PageState>, StoreError> {
        let page = FramePage { marks_reader, ..self.cursor.next_page() };
        let snapshot = self.store.follow(&self.user, &self.request, &page).await?;
        Ok(snapshot.and_then(|snapshot| self.cursor.set_page(snapshot)))
    }
}

impl PageCursor {
    fn new(after: u32) -> Self {
        Self {
            head: Vec::new(),
            after,
            place: ChunkPlace::default(),
            limit: FRAME_PAGE_BYTES,
            chunks: VecDeque::new(),
            current: None,
            has_progress: false,
            is_cut: false,
        }
    }

    fn next_page(&self) -> FramePage {
        let ChunkPlace { chunk, offset, .. } = self.place;
        FramePage { chunk, offset, limit: self.limit, ..FramePage::after(self.after) }
    }

    /// `None`: the request runs again, and its frames belong to another stream.
    fn set_page(&mut self, snapshot: RunSnapshot) -> Option<PageState> {
        let RunSnapshot { state, head, stored, chunks } = snapshot;
        if !self.head.is_empty() && self.head != head {
            return None;
        }
        (self.head, self.chunks) = (head, chunks.into());
        (self.current, self.has_progress, self.is_cut) = (None, false, false);
        Some(PageState { run: state, stored })
    }

    /// Number of the last frame that was read.
    pub(super) fn after(&self) -> u32 {
        self.after
    }

    /// The page ended within a chunk, so that the next one has more.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The next frame of the page. `None`: the page is over.
    pub(super) fn next_frame(&mut self) -> Result<Option<(u32, EncodedFrame)>, StoreError> {
        while let Some((number, content)) = self.next_content()? {
            // Before those that are wanted, a chunk may have others, and chunks may overlap.
            if number > self.after {
                self.after = number;
                return Ok(Some((number, EncodedFrame::from_stored(content).ok_or(MALFORMED)?)));
            }
        }
        Ok(None)
    }

    fn next_content(&mut self) -> Result<Option<(u32, Bytes)>, StoreError> {
        loop {
            let Some(current) = &mut self.current else {
                match self.open_chunk() {
                    true => continue,
                    false => return Ok(None),
                }
            };
            if self.place.next > current.last {
                self.current = None;
                continue;
            }
            let (before, mut rest) = (current.rest.remaining(), current.rest.clone());
            let length = prost::decode_length_delimiter(&mut rest).map(|length| (length, before - rest.remaining()));
            let content = match length {
                Ok((length, _)) if length <= rest.remaining() => rest.split_to(length),
                Ok((length, prefix)) => return self.cut_at(length.saturating_add(prefix)),
                // The length itself is cut.
                Err(_) => return self.cut_at(before + 1),
            };
            let number = self.place.next;
            self.place.next += 1;
            self.place.offset += before - rest.remaining();
            current.rest = rest;
            (self.limit, self.has_progress) = (FRAME_PAGE_BYTES, true);
            return Ok(Some((number, content)));
        }
    }

    /// A gap would be lost text, so nothing behind it is read.
    fn open_chunk(&mut self) -> bool {
        let Some(FrameChunk { first, count, frames }) = self.chunks.pop_front() else { return false };
        if first != self.place.chunk {
            self.place = ChunkPlace { chunk: first, next: first, offset: 0 };
        }
        if self.place.next > self.after.saturating_add(1) {
            self.chunks.clear();
            return false;
        }
        self.current = Some(OpenChunk { last: first.saturating_add(count).saturating_sub(1), rest: frames.into() });
        true
    }

    /// The page ends within a frame, of which that many bytes are needed.
    fn cut_at(&mut self, needed: usize) -> Result<Option<(u32, Bytes)>, StoreError> {
        if !self.has_progress && needed <= self.limit {
            return Err(MALFORMED);
        }
        self.limit = needed.max(FRAME_PAGE_BYTES);
        self.chunks.clear();
        (self.current, self.is_cut) = (None, true);
        Ok(None)
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
