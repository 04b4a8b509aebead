use proptest::prelude::*;

use super::*;
use crate::{chat::TurnEvent, language::Language, service::frame::FrameBuilder, service::run::log::push_delimited};

fn delta(length: usize) -> EncodedFrame {
    FrameBuilder::new(Language::English, false).build(TurnEvent::Delta("x".repeat(length))).unwrap()
}

/// Frames from number 1 on, in chunks of these numbers of frames.
fn chunks_of(frames: &[EncodedFrame], counts: impl IntoIterator<Item = usize>) -> Vec<FrameChunk> {
    let (mut chunks, mut rest, mut first) = (Vec::new(), frames, 1);
    for count in counts.into_iter().chain([frames.len()]) {
        let (some, others) = rest.split_at(count.min(rest.len()));
        let mut bytes = Vec::new();
        some.iter().for_each(|frame| push_delimited(&mut bytes, frame));
        let count = u32::try_from(some.len()).unwrap();
        if count > 0 {
            chunks.push(FrameChunk { first, count, frames: bytes });
        }
        (rest, first) = (others, first + count);
    }
    chunks
}

/// As a store answers.
fn read_page(chunks: &[FrameChunk], page: &FramePage) -> RunSnapshot {
    let mut left = page.limit;
    let mut read = Vec::new();
    for chunk in chunks.iter().filter(|chunk| chunk.first + chunk.count - 1 > page.after) {
        if left == 0 {
            break;
        }
        let rest = &chunk.frames[if chunk.first == page.chunk { page.offset } else { 0 }..];
        let frames = rest[..rest.len().min(left)].to_vec();
        left -= frames.len();
        read.push(FrameChunk { frames, ..*chunk });
    }
    let stored = chunks.last().map_or(0, |chunk| chunk.first + chunk.count - 1);
    RunSnapshot { state: RunState::Ended, head: b"head".to_vec(), stored, chunks: read }
}

/// The frames that a reader gets, and the most bytes that it holds.
fn read_all(chunks: &[FrameChunk], after: u32) -> (Vec<(u32, EncodedFrame)>, usize) {
    let (mut cursor, mut frames, mut held) = (PageCursor::new(after), Vec::new(), 0);
    loop {
        let before = cursor.after();
        let snapshot = read_page(chunks, &cursor.next_page());
        held = held.max(snapshot.chunks.iter().map(|chunk| chunk.frames.len()).sum());
        cursor.set_page(snapshot).unwrap();
        while let Some(frame) = cursor.next_frame().unwrap() {
            frames.push(frame);
        }
        if cursor.after() == before && !cursor.is_cut() {
            return (frames, held);
        }
    }
}

proptest! {
    #[test]
    fn pages_add_up_to_the_frames_after_any_number(
        lengths in prop::collection::vec(prop_oneof![9 => 0_usize..3_000, 1 => 0_usize..150_000], 1..80),
        counts in prop::collection::vec(1_usize..40, 0..20),
        after in any::<prop::sample::Index>(),
    ) {
        let frames: Vec<_> = lengths.iter().map(|length| delta(*length)).collect();
        let chunks = chunks_of(&frames, counts);
        let after = after.index(frames.len() + 1);
        let (read, held) = read_all(&chunks, u32::try_from(after).unwrap());
        let expected: Vec<_> = (1..).zip(frames.iter().cloned()).skip(after).collect();
        prop_assert_eq!(read, expected);
        let longest = frames.iter().map(|frame| frame.content.len() + 10).max().unwrap_or_default();
        prop_assert!(held <= FRAME_PAGE_BYTES.max(longest), "{} bytes", held);
    }
}

#[test]
fn overlapping_chunks_are_read_once() {
    let frames: Vec<_> = (0..9).map(delta).collect();
    let mut chunks = chunks_of(&frames, [3]);
    chunks.push(FrameChunk { first: 2, count: 8, ..chunks_of(&frames[1..], []).remove(0) });
    let expected: Vec<_> = (1..).zip(frames).collect();
    assert_eq!(read_all(&chunks, 0).0, expected);
}

#[test]
fn nothing_is_read_behind_a_gap() {
    let frames: Vec<_> = (0..9).map(delta).collect();
    let mut chunks = chunks_of(&frames, [3, 3]);
    chunks.remove(1);
    assert_eq!(read_all(&chunks, 0).0.len(), 3);
}

#[test]
fn chunk_without_its_end_is_malformed() {
    for cut in [1, 50, 100_000] {
        let mut chunks = chunks_of(&[delta(10), delta(100_000)], []);
        let length = chunks[0].frames.len();
        chunks[0].frames.truncate(length - cut);
        let mut cursor = PageCursor::new(0);
        let error = (0..4).find_map(|_| {
            cursor.set_page(read_page(&chunks, &cursor.next_page())).unwrap();
            loop {
                match cursor.next_frame() {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        });
        assert!(matches!(error, Some(StoreError::Malformed(_))), "{cut}: {error:?}");
    }
}

#[test]
fn frames_of_another_run_of_the_request_are_not_read() {
    let chunks = chunks_of(&[delta(1), delta(2)], [1]);
    let mut cursor = PageCursor::new(0);
    assert!(cursor.set_page(read_page(&chunks, &cursor.next_page())).is_some());
    let other = RunSnapshot { head: b"another".to_vec(), ..read_page(&chunks, &cursor.next_page()) };
    assert!(cursor.set_page(other).is_none());
}
