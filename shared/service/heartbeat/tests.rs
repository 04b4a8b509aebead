use std::future::poll_fn;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{advance, timeout},
};

use super::*;
use crate::{
    chat::{Stage, TurnEvent},
    identity::{RequestId, SessionId, TraceId},
    language::Language,
    proto::agent_v1::{self as pb, agent_status::State, chat_response::Content},
    service::{
        envelope::Envelope,
        frame::FrameBuilder,
        frame_source::{DirectFrames, FrameSource},
        run::events_or_defect,
    },
};

const INTERVAL: Duration = Duration::from_secs(15);
const GENERATING: Stage = Stage::Generating { recall_failed: false };

/// A stream of frames as a client gets it, and what makes its events.
struct TestStream {
    events: mpsc::UnboundedSender<TurnEvent>,
    source: FrameSource,
    heartbeat: Heartbeat,
    envelope: Envelope,
}

impl TestStream {
    fn new(interval: Option<Duration>, half_close: Option<HalfClose>, start: StreamStart) -> Self {
        let (events, mut received) = mpsc::unbounded_channel();
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let frames = DirectFrames::new(
            events_or_defect(stream::poll_fn(move |context| received.poll_recv(context)).boxed()),
            FrameBuilder::new(Language::English, false),
            permit,
            None,
        );
        let trace = TraceId::from_call(None, None, "");
        Self {
            events,
            source: FrameSource::Direct(frames),
            heartbeat: Heartbeat::new(interval, half_close, start),
            envelope: Envelope::new(SessionId::generate(), &RequestId::generate(), &trace),
        }
    }

    fn send(&self, event: TurnEvent) {
        self.events.send(event).unwrap();
    }

    async fn next(&mut self) -> (FramePosition, pb::ChatResponse) {
        let (position, content) = poll_fn(|context| match self.source.poll_frame(context) {
            Poll::Ready(frame) => {
                let (number, frame) = frame.unwrap().unwrap();
                Poll::Ready((self.heartbeat.record(number, &frame), frame.content))
            }
            Poll::Pending => self.heartbeat.poll(context),
        })
        .await;
        let frame = self.envelope.wrap(position, content);
        let frame = pb::ChatResponse::decode(frame.to_bytes().as_slice()).unwrap();
        assert_eq!(self.envelope.position(&frame.response_id), Some(position));
        (position, frame)
    }

    async fn next_state(&mut self) -> State {
        match self.next().await.1.content {
            Some(Content::StatusUpdate(status)) => status.state(),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is sent in this time, which passes.
    async fn expect_silence(&mut self, time: Duration) {
        let early = timeout(time, self.next()).await;
        assert!(early.is_err(), "{early:?}");
    }
}

fn position(number: u32, repetition: u16) -> FramePosition {
    FramePosition { number, repetition }
}

#[tokio::test(start_paused = true)]
async fn silent_stream_repeats_its_last_status_every_interval() {
    let mut stream = TestStream::new(Some(INTERVAL), None, StreamStart::default());
    stream.send(TurnEvent::StageEntered(Stage::Thinking));
    let (first, original) = stream.next().await;
    assert_eq!(first, position(1, 0));
    for repetition in 1..=4 {
        stream.expect_silence(INTERVAL - Duration::from_millis(1)).await;
        let (at, repeated) = stream.next().await;
        assert_eq!(at, position(1, repetition));
        assert_eq!(repeated.content, original.content);
        assert!(repeated.created_at >= original.created_at && repeated.event_time != original.event_time);
    }
    stream.send(TurnEvent::StageEntered(GENERATING));
    assert_eq!(stream.next().await.0, position(2, 0));
    assert_eq!(stream.next_state().await, State::Generating);
}

#[tokio::test(start_paused = true)]
async fn interval_begins_with_the_last_frame() {
    let mut stream = TestStream::new(Some(INTERVAL), None, StreamStart::default());
    stream.send(TurnEvent::StageEntered(GENERATING));
    stream.next().await;
    // Never silent for a whole interval.
    for _ in 0..10 {
        stream.expect_silence(Duration::from_secs(14)).await;
        stream.send(TurnEvent::Delta("text".into()));
        assert!(matches!(stream.next().await.1.content, Some(Content::Delta(_))));
    }
    stream.expect_silence(INTERVAL - Duration::from_millis(1)).await;
    assert_eq!(stream.next().await.0, position(11, 1), "behind the last delta");
}

#[tokio::test(start_paused = true)]
async fn repetition_follows_the_latest_status() {
    let mut stream = TestStream::new(Some(INTERVAL), None, StreamStart::default());
    for (stage, state) in [
        (Stage::Thinking, State::Thinking),
        (Stage::Searching, State::Searching),
        (GENERATING, State::Generating),
        (Stage::ExecutingTools, State::ExecutingTool),
    ] {
        stream.send(TurnEvent::StageEntered(stage));
        assert_eq!(stream.next_state().await, state);
        assert_eq!(stream.next_state().await, state, "the repetition");
    }
}

#[tokio::test(start_paused = true)]
async fn disabled_heartbeat_repeats_nothing() {
    let mut stream = TestStream::new(None, Some(HalfClose::default()), StreamStart::default());
    stream.send(TurnEvent::StageEntered(Stage::Thinking));
    stream.next().await;
    stream.expect_silence(Duration::from_hours(10)).await;
}

#[tokio::test(start_paused = true)]
async fn resumed_stream_continues_behind_the_repetition_that_the_client_has() {
    let frame = FrameBuilder::new(Language::English, false).build(TurnEvent::StageEntered(GENERATING)).unwrap();
    let start = StreamStart { position: position(7, 3), status: Some(frame.content), notice: None };
    let mut stream = TestStream::new(Some(INTERVAL), None, start);
    let (at, repeated) = stream.next().await;
    assert_eq!(at, position(7, 4));
    assert!(matches!(repeated.content, Some(Content::StatusUpdate(_))));
}

#[tokio::test(start_paused = true)]
async fn ids_are_not_reused_when_repetitions_run_out() {
    let frame = FrameBuilder::new(Language::English, false).build(TurnEvent::StageEntered(GENERATING)).unwrap();
    let start = StreamStart { position: position(7, u16::MAX - 1), status: Some(frame.content), notice: None };
    let mut stream = TestStream::new(Some(INTERVAL), None, start);
    assert_eq!(stream.next().await.0, position(7, u16::MAX));
    stream.expect_silence(Duration::from_hours(10)).await;
}

#[tokio::test(start_paused = true)]
async fn half_closed_client_is_probed_and_then_served_as_usual() {
    let half_close = HalfClose::default();
    let mut stream = TestStream::new(Some(INTERVAL), Some(half_close.clone()), StreamStart::default());
    stream.send(TurnEvent::StageEntered(Stage::Thinking));
    stream.next().await;
    stream.expect_silence(Duration::from_secs(3)).await;
    half_close.set_closed();
    assert_eq!(stream.next().now_or_never().expect("a probe at once").0, position(1, 1));
    for (probe, wait) in [(2, Duration::from_millis(100)), (3, Duration::from_secs(1)), (4, INTERVAL)] {
        let begun = Instant::now();
        assert_eq!(stream.next().await.0, position(1, probe));
        assert_eq!(begun.elapsed(), wait);
    }
}

#[tokio::test(start_paused = true)]
async fn notice_is_sent_once_if_no_frame_comes() {
    let mut builder = FrameBuilder::new(Language::English, false);
    let status = builder.build(TurnEvent::StageEntered(GENERATING)).unwrap().content;
    let start = || StreamStart {
        position: position(0, 0),
        status: Some(status.clone()),
        notice: Some(FrameBuilder::new(Language::English, false).waiting_status(Stage::Thinking).content),
    };
    // Also without heartbeats.
    let mut stream = TestStream::new(None, None, start());
    stream.expect_silence(Duration::from_millis(999)).await;
    let (at, notice) = stream.next().await;
    assert_eq!(at, position(0, 1));
    let Some(Content::StatusUpdate(notice)) = notice.content else { panic!("{notice:?}") };
    assert!(notice.details.starts_with("Waiting"), "{notice:?}");
    stream.expect_silence(Duration::from_hours(1)).await;

    let mut stream = TestStream::new(None, None, start());
    stream.send(TurnEvent::StageEntered(Stage::Thinking));
    stream.next().await;
    stream.expect_silence(Duration::from_hours(1)).await;
}

#[tokio::test(start_paused = true)]
async fn waiting_stream_is_woken_in_whichever_task_polls_it() {
    let mut stream = TestStream::new(Some(INTERVAL), None, StreamStart::default());
    stream.send(TurnEvent::StageEntered(Stage::Thinking));
    stream.next().await;
    // Registers the waker of this task first.
    assert!(stream.next().now_or_never().is_none());
    advance(Duration::from_secs(1)).await;
    let polled_elsewhere = tokio::spawn(async move { stream.next().await.0 });
    assert_eq!(polled_elsewhere.await.unwrap(), position(1, 1));
}
