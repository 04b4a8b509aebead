//! Clients that open streams and do not read them: what they hold is bounded, and given back after a timeout.

use agent_service::proto::agent_v1::{self as pb, agent_service_client::AgentServiceClient};
use prost::Message as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tonic::{Code, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::{
    fake_provider::{FakeProvider, Step, delta, events, finish, stream_head, usage},
    harness::{
        TEST_TIMEOUT, TestServer, ask, ask_without_retrieval, chat_request, complete_answer, error_of, grpc_frame,
        joined_deltas, latch, open_stream, paused_answer, read_to_end, read_until, resume_after, without_retrieval,
    },
};

/// More than the buffers of a connection take, and the system's.
fn endless_text() -> Vec<Step> {
    let event = format!("data: {}\n\n", delta(&"x".repeat(8_000)));
    vec![stream_head(), Step::Repeat(event.into_bytes(), 100_000)]
}

/// An answer of 80 kB in short deltas.
fn long_answer() -> Vec<Step> {
    let deltas: Vec<String> = (0..4_000).map(|number| delta(&format!(", some {number:05} words, "))).collect();
    let mut all: Vec<&str> = deltas.iter().map(String::as_str).collect();
    let (finish, usage) = (finish("stop"), usage(3, 4_000));
    all.extend([finish.as_str(), usage.as_str(), "[DONE]"]);
    vec![stream_head(), events(&all)]
}

/// A client whose windows are as small as HTTP/2 allows, so that the server has to wait for it to read.
async fn small_client(server: &TestServer) -> AgentServiceClient<tonic::transport::Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(16 << 20);
    AgentServiceClient::new(endpoint.connect().await.unwrap())
}

/// A gRPC-Web call over HTTP/1.1 of a client that does not read the answer.
async fn unread_web_call(server: &TestServer, request: &pb::ChatRequest) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    let body = grpc_frame(&request.encode_to_vec());
    let head = format!(
        "POST /agent.v1.AgentService/StreamChat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc-web\r\nx-recall: off\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    stream
}

/// Calls until it is not refused with this code.
async fn call_until_admitted(server: &TestServer, request: &pb::ChatRequest, refused: Code) -> Vec<pb::ChatResponse> {
    let calling = async {
        loop {
            match server.chat(without_retrieval(request.clone())).await {
                Ok(frames) => return frames,
                Err(status) => assert_eq!(status.code(), refused, "{status:?}"),
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(TEST_TIMEOUT, calling).await.expect("the unread streams hold their places for ever")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_streams_give_back_their_permits() {
    let mut provider = FakeProvider::start().await;
    let variables = [("CONVERSATIONS", "off"), ("MAX_CONCURRENT_STREAMS", "1"), ("LLM_TOTAL_TIMEOUT_SECONDS", "1")];
    for is_web in [false, true] {
        let server = TestServer::start_without_database(&[&provider.variables()[..], &variables].concat()).await;
        provider.script_all(endless_text()).await;
        let (mut grpc, unread) = (small_client(&server).await, ask_without_retrieval("one"));
        let _unread = match is_web {
            true => (None, Some(unread_web_call(&server, unread.get_ref()).await)),
            false => (Some(grpc.stream_chat(unread).await.unwrap()), None),
        };
        timeout(TEST_TIMEOUT, provider.requests.recv()).await.expect("the first turn does not begin").unwrap();
        provider.script_all(complete_answer("at last")).await;
        let frames = call_until_admitted(&server, &ask("two"), Code::Unavailable).await;
        assert_eq!(joined_deltas(&frames), "at last", "over gRPC-Web: {is_web}");
        provider.take_requests();
    }
}

#[tokio::test]
async fn stream_that_waits_for_its_provider_is_not_unread() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    // The stall timeout of the second server is over many times while the run of the first one waits.
    let variables = [&provider.variables()[..], &[("LLM_TOTAL_TIMEOUT_SECONDS", "0.05")]].concat();
    let reading = server.start_second(&variables).await;
    let (release, latch) = latch();
    provider.script(paused_answer(latch)).await;
    let mut first = open_stream(&server, chat_request("r", "s", "hi")).await;
    read_until(&mut first, "delta").await;
    let mut second = open_stream(&reading, chat_request("r", "s", "hi")).await;
    let mut frames = read_until(&mut second, "delta").await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    release.send(()).unwrap();
    frames.extend(read_to_end(second).await);
    assert_eq!(joined_deltas(&frames), "one two three");
}

#[tokio::test]
async fn readers_of_a_user_are_bounded_until_they_have_read() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let question = chat_request("r", "s", "hi");
    provider.script(long_answer()).await;
    let answer = server.chat(question.clone()).await.unwrap();
    assert_eq!(joined_deltas(&answer).len(), 80_000);
    let mut client = small_client(&server).await;
    let mut unread = Vec::new();
    for _ in 0..32 {
        unread.push(client.stream_chat(question.clone()).await.unwrap().into_inner());
    }
    for refused in [question.clone(), chat_request("new", "t", "hi")] {
        let refused = client.stream_chat(refused).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
        let details = refused.get_error_details();
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, "open_streams");
    }
    let bob = pb::ChatRequest { user_id: "bob".into(), ..chat_request("r", "s", "hi") };
    provider.script(complete_answer("hello")).await;
    assert_eq!(joined_deltas(&server.chat(bob).await.unwrap()), "hello", "another user");
    assert_eq!(read_to_end(unread.pop().unwrap()).await, answer);
    assert_eq!(call_until_admitted(&server, &question, Code::ResourceExhausted).await, answer);
}

#[tokio::test]
async fn oldest_waiting_reader_gives_way_to_a_new_one_of_its_request() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let (release, latch) = latch();
    provider.script(paused_answer(latch)).await;
    let question = chat_request("r", "s", "hi");
    let mut started = open_stream(&server, question.clone()).await;
    read_until(&mut started, "delta").await;
    let mut readers = Vec::new();
    for _ in 0..33 {
        let mut reader = open_stream(&server, question.clone()).await;
        read_until(&mut reader, "delta").await;
        readers.push(reader);
    }
    let replaced =
        timeout(TEST_TIMEOUT, readers[0].message()).await.expect("the oldest reader stays").unwrap().unwrap();
    assert_eq!(error_of(std::slice::from_ref(&replaced)).code, "READER_REPLACED");
    assert_eq!(replaced.finish_reason(), pb::FinishReason::Error);
    assert_eq!(readers[0].message().await.unwrap(), None, "the call ends with OK");
    release.send(()).unwrap();
    assert_eq!(joined_deltas(&read_to_end(started).await), "two three");
    for reader in readers.into_iter().skip(1) {
        assert_eq!(joined_deltas(&read_to_end(reader).await), "two three");
    }
}

/// The server waits for its open calls, and the grace period is longer than the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_streams_of_stored_runs_end() {
    let provider = FakeProvider::start().await;
    let variables = [("LLM_TOTAL_TIMEOUT_SECONDS", "1"), ("SHUTDOWN_GRACE_SECONDS", "3600")];
    let mut server = TestServer::start(&[&provider.variables()[..], &variables].concat()).await;
    let question = chat_request("r", "s", "hi");
    provider.script(long_answer()).await;
    let mut client = small_client(&server).await;
    let _live = client.stream_chat(question.clone()).await.unwrap();
    let answer = server.chat(question.clone()).await.unwrap();
    let _replay = client.stream_chat(question.clone()).await.unwrap();
    let _web_replay = unread_web_call(&server, &question).await;
    server.stop.cancel();
    timeout(TEST_TIMEOUT, server.serving.take().unwrap()).await.expect("the unread streams stay open").unwrap();
    assert_eq!(joined_deltas(&answer).len(), 80_000);
}

#[tokio::test]
async fn reader_that_starts_to_read_late_gets_every_frame() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.script(long_answer()).await;
    let mut client = small_client(&server).await;
    // Of the run itself, which ends meanwhile, and of another call that attaches to it.
    let first = client.stream_chat(chat_request("r", "s", "hi")).await.unwrap().into_inner();
    let second = client.stream_chat(chat_request("r", "s", "hi")).await.unwrap().into_inner();
    let answer = server.chat(chat_request("r", "s", "hi")).await.unwrap();
    assert_eq!(joined_deltas(&answer).len(), 80_000);
    assert_eq!(read_to_end(first).await, answer);
    assert_eq!(read_to_end(second).await, answer);
    for after in [1, 2_000, answer.len() - 2] {
        let resumed = open_stream(&server, resume_after(chat_request("r", "s", "hi"), &answer[after])).await;
        assert_eq!(read_to_end(resumed).await, answer[after + 1..], "{after}");
    }
}

#[tokio::test]
async fn replay_that_a_shutdown_cuts_ends_with_an_error_frame_and_resumes() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    let variables = [&provider.variables()[..], &[("SHUTDOWN_GRACE_SECONDS", "0.05")]].concat();
    let stopping = server.start_second(&variables).await;
    let (release, latch) = latch();
    provider.script(paused_answer(latch)).await;
    let mut first = open_stream(&server, chat_request("r", "s", "hi")).await;
    read_until(&mut first, "delta").await;
    let mut replay = open_stream(&stopping, chat_request("r", "s", "hi")).await;
    let mut frames = read_until(&mut replay, "delta").await;
    stopping.stop.cancel();
    frames.extend(timeout(TEST_TIMEOUT, read_to_end(replay)).await.expect("the replay does not end"));
    let error = error_of(&frames);
    assert_eq!((error.code.as_str(), error.error_code()), ("SERVER_SHUTTING_DOWN", pb::ErrorCode::Unavailable));
    assert!(error.retryable);
    let ends = frames.iter().filter(|frame| frame.finish_reason() != pb::FinishReason::Null);
    assert_eq!(ends.count(), 1, "{frames:?}");
    let resumed = open_stream(&server, resume_after(chat_request("r", "s", "hi"), frames.last().unwrap())).await;
    release.send(()).unwrap();
    frames.extend(read_to_end(resumed).await);
    assert_eq!(joined_deltas(&frames), "one two three");
}
