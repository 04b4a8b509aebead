//! Heartbeats: a silent stream repeats its last status.

use agent_service::proto::agent_v1 as pb;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    fake_provider::{FakeProvider, Latch, Step, delta, events, finish, stream_head, usage},
    harness::{
        TEST_TIMEOUT, TestServer, assert_contract, chat_request, frame_kind, grpc_frame, joined_deltas, latch,
        open_stream, outline, read_to_end, read_until, resume_after, run_chat,
    },
};

/// Short, so that tests need not wait; their outcome does not depend on it.
const SHORT_INTERVAL: (&str, &str) = ("STATUS_INTERVAL_SECONDS", "0.02");

/// "one two", with a silence before each word.
fn silent_answer(first: Latch, second: Latch) -> Vec<Step> {
    vec![
        stream_head(),
        Step::AwaitLatch(first),
        events(&[&delta("one ")]),
        Step::AwaitLatch(second),
        events(&[&delta("two"), &finish("stop"), &usage(3, 4), "[DONE]"]),
    ]
}

/// Reads this many frames of one kind in a row.
async fn read_repeated(
    stream: &mut tonic::Streaming<pb::ChatResponse>,
    kind: &str,
    count: usize,
) -> Vec<pb::ChatResponse> {
    let mut frames = read_until(stream, kind).await;
    for _ in 1..count {
        let next = timeout(TEST_TIMEOUT, stream.message()).await.expect("the stream is silent").unwrap();
        let frame = next.unwrap_or_else(|| panic!("the stream ended: {:?}", frames.last()));
        assert_eq!(frame_kind(&frame), kind);
        frames.push(frame);
    }
    frames
}

#[tokio::test]
async fn silent_chat_repeats_its_last_status_with_and_without_store() {
    let provider = FakeProvider::start().await;
    for store in [&[][..], &[("CONVERSATIONS", "off")]] {
        let server = TestServer::start(&[&provider.variables()[..], &[SHORT_INTERVAL], store].concat()).await;
        let ((first, first_latch), (second, second_latch)) = (latch(), latch());
        provider.script(silent_answer(first_latch, second_latch)).await;
        let mut stream = open_stream(&server, chat_request("r", "s", "question")).await;
        let mut frames = read_repeated(&mut stream, "GENERATING", 4).await;
        first.send(()).unwrap();
        frames.extend(read_until(&mut stream, "delta").await);
        frames.extend(read_repeated(&mut stream, "GENERATING", 3).await);
        second.send(()).unwrap();
        frames.extend(read_to_end(stream).await);
        assert_eq!(joined_deltas(&frames), "one two");
        let ids: std::collections::BTreeSet<_> = frames.iter().map(|frame| &frame.response_id).collect();
        assert_eq!(ids.len(), frames.len(), "ids are unique");
        for pair in frames.windows(2) {
            assert!(
                pair[0].response_id < pair[1].response_id && pair[0].response_id.len() == pair[1].response_id.len()
            );
            assert_eq!((&pair[0].session_id, &pair[0].trace_id), (&pair[1].session_id, &pair[1].trace_id));
            assert!(pair[1].created_at >= pair[0].created_at && pair[1].event_time.is_some());
        }
    }
}

#[tokio::test]
async fn stream_resumes_behind_a_repeated_status_on_any_instance() {
    let provider = FakeProvider::start().await;
    let variables = [&provider.variables()[..], &[SHORT_INTERVAL]].concat();
    let one = TestServer::start(&variables).await;
    let two = one.start_second(&variables).await;
    let ((first, first_latch), (second, second_latch)) = (latch(), latch());
    provider.script(silent_answer(first_latch, second_latch)).await;
    let question = || chat_request("r", "s", "question");
    let mut frames = read_repeated(&mut open_stream(&one, question()).await, "GENERATING", 3).await;
    // The status before the resumed frame is repeated, by each instance, under an id of its own.
    for server in [&two, &one] {
        let mut stream = open_stream(server, resume_after(question(), frames.last().unwrap())).await;
        frames.extend(read_repeated(&mut stream, "GENERATING", 2).await);
    }
    first.send(()).unwrap();
    let mut stream = open_stream(&two, resume_after(question(), frames.last().unwrap())).await;
    frames.extend(read_until(&mut stream, "delta").await);
    frames.extend(read_repeated(&mut stream, "GENERATING", 2).await);
    second.send(()).unwrap();
    frames.extend(read_to_end(open_stream(&one, resume_after(question(), frames.last().unwrap())).await).await);
    assert_eq!(joined_deltas(&frames), "one two");
    assert!(frames.windows(2).all(|pair| pair[0].response_id < pair[1].response_id), "ids ascend over all connections");

    let replay = run_chat(&two, question()).await;
    assert_contract(&replay);
    assert_eq!(
        replay.len(),
        outline(&replay).len() + 1,
        "only the two deltas are adjacent: repetitions are not stored"
    );
}

#[tokio::test]
async fn disabled_heartbeat_sends_each_status_once() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&[&provider.variables()[..], &[("STATUS_INTERVAL_SECONDS", "0")]].concat()).await;
    let ((first, first_latch), (second, second_latch)) = (latch(), latch());
    provider.script(silent_answer(first_latch, second_latch)).await;
    first.send(()).unwrap();
    second.send(()).unwrap();
    let frames = run_chat(&server, chat_request("r", "s", "question")).await;
    assert_eq!(outline(&frames), ["THINKING", "SEARCHING", "GENERATING", "delta", "usage", "full_text"]);
}

#[tokio::test]
async fn grpc_web_stream_over_http1_repeats_its_status() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&[&provider.variables()[..], &[SHORT_INTERVAL]].concat()).await;
    let ((first, first_latch), (second, second_latch)) = (latch(), latch());
    provider.script(silent_answer(first_latch, second_latch)).await;
    let body = grpc_frame(&chat_request("r", "s", "question").encode_to_vec());
    let head = format!(
        "POST /agent.v1.AgentService/StreamChat HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web+proto\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let mut received = String::new();
    let repeated = async {
        while received.matches("Writing the answer").count() < 4 {
            let mut bytes = [0; 4096];
            let read = socket.read(&mut bytes).await.unwrap();
            assert!(read > 0, "{received:?}");
            received.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    };
    timeout(TEST_TIMEOUT, repeated).await.expect("the stream is silent");
    first.send(()).unwrap();
    second.send(()).unwrap();
    let mut rest = Vec::new();
    timeout(TEST_TIMEOUT, socket.read_to_end(&mut rest)).await.expect("the stream does not end").unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("grpc-status:0"));
}
