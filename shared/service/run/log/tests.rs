use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::{
    chat::{TurnEvent, TurnFailure},
    language::Language,
    service::frame::FrameBuilder,
};

fn delta(text: &str) -> EncodedFrame {
    FrameBuilder::new(Language::English, false).build(TurnEvent::Delta(text.to_owned())).unwrap()
}

fn poll(reader: &mut LogReader) -> Poll<LogRead> {
    reader.poll_read(&mut Context::from_waker(Waker::noop()))
}

/// The frames that a reader gets without waiting. Those that it has to take from the store are counted from `pushed`.
fn read_all(reader: &mut LogReader, pushed: &[EncodedFrame]) -> Vec<(u32, EncodedFrame)> {
    let mut frames = Vec::new();
    loop {
        match poll(reader) {
            Poll::Ready(LogRead::Frame(number, frame)) => frames.push((number, frame)),
            Poll::Ready(LogRead::Behind(after)) => {
                for number in after + 1.. {
                    frames.push((number, pushed[number as usize - 1].clone()));
                    if reader.rejoin(number) {
                        break;
                    }
                }
            }
            Poll::Ready(LogRead::Ended) | Poll::Pending => return frames,
        }
    }
}

fn read(log: &Arc<FrameLog>, after: u32) -> Vec<(u32, EncodedFrame)> {
    read_all(&mut log.read(after).unwrap(), &[])
}

proptest! {
    #[test]
    fn every_reader_and_the_store_get_the_same_frames(
        texts in prop::collection::vec(".{0,200}", 1..40),
        after in any::<u32>(),
    ) {
        let log = FrameLog::example();
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
        let mut bytes = Vec::new();
        all.iter().for_each(|(_, frame)| push_delimited(&mut bytes, frame));
        prop_assert_eq!(chunk, FrameChunk { first: 1, count: end.number, frames: bytes });
        prop_assert!(log.chunk(end).is_none());
    }
}

proptest! {
    #[test]
    fn readers_get_all_frames_although_stored_ones_are_discarded(
        // A frame, a frame for the fast reader, for the slow reader, or a flush.
        steps in prop::collection::vec(0_u8..4, 0..200),
        after in any::<prop::sample::Index>(),
        is_long in any::<bool>(),
        is_stored in any::<bool>(),
    ) {
        let log = FrameLog::example();
        let mut readers = [log.read_from_start(), log.read_from_start()];
        let (mut pushed, mut received) = (Vec::new(), [Vec::new(), Vec::new()]);
        let mut stored = FrameCursor::default();
        for step in steps {
            match step {
                0 => {
                    pushed.push(delta(&"x".repeat(if is_long { MAX_LAG_BYTES / 3 } else { pushed.len() })));
                    log.push(pushed.last().unwrap());
                }
                reader @ (1 | 2) => {
                    let index = usize::from(reader) - 1;
                    match poll(&mut readers[index]) {
                        Poll::Ready(LogRead::Frame(number, frame)) => received[index].push((number, frame)),
                        Poll::Ready(LogRead::Behind(after)) => {
                            received[index].push((after + 1, pushed[after as usize].clone()));
                            readers[index].rejoin(after + 1);
                        }
                        Poll::Ready(LogRead::Ended) | Poll::Pending => {}
                    }
                }
                _ => {
                    if let Some((_, end)) = log.chunk(stored) {
                        stored = end;
                    }
                    log.discard(stored);
                }
            }
        }
        let after = u32::try_from(after.index(pushed.len() + 1)).unwrap();
        let mut late = log.read(after).unwrap();
        pushed.push(FrameBuilder::new(Language::English, false).failure(&TurnFailure::Internal));
        log.push_last(pushed.last().unwrap(), is_stored);
        let all: Vec<_> = (1..).zip(pushed.iter().cloned()).collect();
        for (mut reader, received) in readers.into_iter().zip(&mut received) {
            received.extend(read_all(&mut reader, &pushed));
            prop_assert_eq!(&*received, &all);
        }
        prop_assert_eq!(&read_all(&mut late, &pushed)[..], &all[after as usize..]);
    }
}

/// The log of a finished run would otherwise stay in memory as long as its client does not read.
#[test]
fn reader_that_does_not_read_keeps_little_in_memory() {
    let log = FrameLog::example();
    let mut reader = log.read_from_start();
    let mut pushed = Vec::new();
    let mut stored = FrameCursor::default();
    for _ in 0..100 {
        for _ in 0..100 {
            pushed.push(delta("a few words"));
            log.push(pushed.last().unwrap());
        }
        stored = log.chunk(stored).unwrap().1;
        log.discard(stored);
        assert!(log.state().bytes.len() <= MAX_LAG_BYTES, "{} bytes", log.state().bytes.len());
    }
    pushed.push(FrameBuilder::new(Language::English, false).failure(&TurnFailure::Internal));
    log.push_last(pushed.last().unwrap(), true);
    assert_eq!(log.state().bytes.len(), 0);
    let expected: Vec<_> = (1..).zip(pushed.iter().cloned()).collect();
    assert_eq!(read_all(&mut reader, &pushed), expected);
}

#[test]
fn long_answer_takes_memory_only_for_frames_between_flushes() {
    let log = FrameLog::example();
    let mut reader = log.read_from_start();
    let mut stored = FrameCursor::default();
    for _ in 0..200 {
        for _ in 0..50 {
            log.push(&delta("a few words"));
            assert!(matches!(poll(&mut reader), Poll::Ready(LogRead::Frame(..))));
        }
        stored = log.chunk(stored).unwrap().1;
        log.discard(stored);
    }
    let state = log.state();
    assert_eq!((state.bytes.len(), state.deltas.len(), state.last_number()), (0, 0, 10_000));
    assert!(state.bytes.capacity() <= 16 * 1024, "{} bytes", state.bytes.capacity());
}

#[test]
fn chunk_is_bounded_and_the_next_one_continues() {
    let log = FrameLog::example();
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
    let log = FrameLog::example();
    log.push(&delta(&"x".repeat(CHUNK_BYTES + 1)));
    log.push(&delta("next"));
    let (chunk, end) = log.chunk(FrameCursor::default()).unwrap();
    assert_eq!((chunk.count, end.number), (1, 1));
}

#[tokio::test]
async fn only_a_run_without_a_reader_is_preempted() {
    let log = FrameLog::example();
    let (first, second) = (log.read_from_start(), log.read_from_start());
    drop(first);
    assert!(log.wait_until_unread().now_or_never().is_none(), "the second reader is still there");
    assert!(!log.preempt());
    drop(second);
    log.wait_until_unread().await;
    assert!(log.wait_for_reader_or_preemption().now_or_never().is_none());
    let returned = log.read(0).unwrap();
    assert_eq!(log.wait_for_reader_or_preemption().await, ReaderChange::Came);
    drop(returned);
    assert!(log.preempt() && log.is_preempted());
    assert_eq!(log.wait_for_reader_or_preemption().await, ReaderChange::Preempted);
}

#[tokio::test]
async fn everybody_who_waits_learns_that_the_last_reader_has_left() {
    let log = FrameLog::example();
    let reader = log.read_from_start();
    let mut waiting = [Box::pin(log.wait_until_unread()), Box::pin(log.wait_until_unread())];
    assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
    drop(reader);
    assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_some()));
}

#[test]
fn read_after_a_frame_that_is_still_to_come_is_refused() {
    let log = FrameLog::example();
    log.push(&delta("a"));
    assert!(log.read(1).is_some());
    assert!([2, u32::MAX].iter().all(|after| log.read(*after).is_none()));
}

#[tokio::test]
async fn reader_is_woken_by_the_next_frame() {
    let log = FrameLog::example();
    let mut reader = log.read_from_start();
    let reading = tokio::spawn(async move { std::future::poll_fn(|context| reader.poll_read(context)).await });
    tokio::task::yield_now().await;
    let frame = delta("a");
    log.push(&frame);
    assert_eq!(reading.await.unwrap(), LogRead::Frame(1, frame));
}
