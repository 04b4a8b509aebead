//! Clients that leave at any moment: no run stays without a driver, and no request is both stored and repeatable.
//!
//! Each test runs against Postgres and, with the emulator of `infra/dynamodb.sh`, against DynamoDB.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use agent_service::{
    composition::App,
    postgres::Database,
    proto::agent_v1::{self as pb, agent_service_server::AgentService as _},
};
use prost::Message as _;
use serde_json::json;
use sqlx::Row as _;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tonic::{Code, Request};
use uuid::Uuid;

use crate::{
    fake_provider::{FakeProvider, Step, stream_head},
    harness::{
        TEST_TIMEOUT, TestServer, assert_contract, chat_request, complete_answer, config, endless_answer, error_of,
        grpc_frame, joined_deltas, latch, open_stream, outline, paused_answer, read_to_end, read_until, resume_after,
        resume_after_id,
    },
    tools::{tool_call_answer, tool_result},
};

/// Two instances on one store, and a user of their own.
pub struct Instances {
    pub store: &'static str,
    pub user: String,
    pub first: TestServer,
    pub second: TestServer,
}

impl Instances {
    /// One pair for each store.
    pub async fn start_all(provider: &FakeProvider, variables: &[(&str, &str)]) -> Vec<Self> {
        let mut stores = vec!["postgres"];
        if std::env::var_os("TEST_DYNAMODB_URL").is_some() {
            stores.push("dynamodb://agent-conversations");
        }
        let mut all = Vec::new();
        for store in stores {
            let mut with_store = provider.variables();
            with_store.push(("CONVERSATIONS", store));
            with_store.extend(variables.iter().copied());
            let first = TestServer::start(&with_store).await;
            let second = first.start_second(&with_store).await;
            let user = format!("ann-{}", Uuid::now_v7().simple());
            all.push(Self { store, user, first, second });
        }
        all
    }

    pub fn question(&self, id: &str, message: &str) -> pb::ChatRequest {
        pb::ChatRequest { user_id: self.user.clone(), ..chat_request(id, "s", message) }
    }

    pub async fn turns(&self) -> Vec<pb::Turn> {
        let request =
            pb::GetSessionRequest { user_id: self.user.clone(), session_id: "s".into(), ..Default::default() };
        match self.first.conversations().get_session(request).await {
            Ok(session) => session.into_inner().turns,
            Err(status) if status.code() == Code::NotFound => Vec::new(),
            Err(status) => panic!("{status:?}"),
        }
    }

    /// Sends the request until it is answered: the run of an earlier call may still be ending.
    async fn repeat(&self, request: &pb::ChatRequest) -> Vec<pb::ChatResponse> {
        let repeat = async {
            loop {
                let frames = self.second.chat(request.clone()).await.unwrap();
                if frames.last().unwrap().finish_reason() != pb::FinishReason::Error {
                    return frames;
                }
            }
        };
        timeout(TEST_TIMEOUT, repeat).await.expect("the request is not repeatable")
    }
}

fn questions(turns: &[pb::Turn]) -> Vec<&str> {
    let messages = turns.iter().flat_map(|turn| &turn.messages);
    messages.filter(|message| message.role == "user").map(|message| message.content.as_str()).collect()
}

#[tokio::test]
async fn request_abandoned_before_its_first_delta_is_not_stored() {
    let mut provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[("RESUME_GRACE_SECONDS", "0")]).await {
        provider.script(vec![stream_head(), Step::AwaitDisconnect]).await;
        let question = instances.question("r", "only once");
        let mut stream = open_stream(&instances.first, question.clone()).await;
        read_until(&mut stream, "GENERATING").await;
        drop(stream);
        timeout(TEST_TIMEOUT, provider.disconnects.recv()).await.expect("the turn was not stopped").unwrap();
        provider.take_requests();
        provider.script(complete_answer("here it is")).await;
        assert_eq!(joined_deltas(&instances.repeat(&question).await), "here it is", "{}", instances.store);
        assert_eq!(questions(&instances.turns().await), ["only once"], "{}", instances.store);
        let asked = provider.take_requests().pop().unwrap().body.to_string();
        assert_eq!(asked.matches("only once").count(), 1, "{}: {asked}", instances.store);
    }
}

#[tokio::test]
async fn request_that_a_shutdown_ends_before_the_model_is_not_stored() {
    let provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[]).await {
        let variables = [
            ("CONVERSATIONS", instances.store),
            ("DEMO_THINKING_DELAY_MS", "3600000"),
            ("SHUTDOWN_GRACE_SECONDS", "0.05"),
        ];
        let stopping = instances.first.start_second(&variables).await;
        let question = instances.question("r", "only once");
        let mut stream = open_stream(&stopping, question.clone()).await;
        let mut frames = read_until(&mut stream, "THINKING").await;
        stopping.stop.cancel();
        frames.extend(read_to_end(stream).await);
        assert_contract(&frames);
        assert_eq!(error_of(&frames).code, "SERVER_SHUTTING_DOWN");
        assert_eq!(questions(&instances.turns().await), Vec::<&str>::new(), "{}", instances.store);
        provider.script(complete_answer("here it is")).await;
        assert_eq!(joined_deltas(&instances.second.chat(question).await.unwrap()), "here it is");
        assert_eq!(questions(&instances.turns().await), ["only once"], "{}", instances.store);
    }
}

#[tokio::test]
async fn partial_answer_is_stored_and_not_repeatable() {
    let mut provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[("RESUME_GRACE_SECONDS", "0")]).await {
        provider.script(endless_answer("half")).await;
        let question = instances.question("r", "only once");
        let mut stream = open_stream(&instances.first, question.clone()).await;
        read_until(&mut stream, "delta").await;
        drop(stream);
        timeout(TEST_TIMEOUT, provider.disconnects.recv()).await.expect("the turn was not stopped").unwrap();
        let replayed = instances.second.chat(question).await.unwrap();
        assert_eq!((error_of(&replayed).code.as_str(), joined_deltas(&replayed).as_str()), ("ABANDONED", "half"));
        let turns = instances.turns().await;
        assert!(turns.len() == 1 && turns[0].interrupted, "{}: {turns:?}", instances.store);
    }
}

#[tokio::test]
async fn resume_behind_the_last_frame_gets_it_again() {
    let mut provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[]).await {
        provider.script(complete_answer("one two")).await;
        provider.respond(400, "{}").await;
        for (id, finish_reason) in [("answered", pb::FinishReason::Stop), ("failed", pb::FinishReason::Error)] {
            let frames = instances.first.chat(instances.question(id, "hi")).await.unwrap();
            let last = frames.last().unwrap();
            assert_eq!(last.finish_reason(), finish_reason);
            for server in [&instances.first, &instances.second] {
                let resumed = open_stream(server, resume_after(instances.question(id, "hi"), last)).await;
                assert_eq!(read_to_end(resumed).await, std::slice::from_ref(last), "{}, {id}", instances.store);
            }
        }
        assert_eq!(provider.take_requests().len(), 2, "{}", instances.store);
    }
}

/// Reads the answer up to its first delta, and leaves.
async fn leave_midway(instances: &Instances, id: &str) {
    let mut stream = open_stream(&instances.first, instances.question(id, id)).await;
    read_until(&mut stream, "delta").await;
}

#[tokio::test]
async fn new_request_preempts_a_run_without_a_reader() {
    let mut provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[("RESUME_GRACE_SECONDS", "3600")]).await {
        for (number, server) in [&instances.first, &instances.second].into_iter().enumerate() {
            provider.script(endless_answer("half")).await;
            provider.script(complete_answer("whole")).await;
            let (left, next) = (format!("left{number}"), format!("next{number}"));
            leave_midway(&instances, &left).await;
            let frames = server.chat(instances.question(&next, "again")).await.unwrap();
            assert_eq!(joined_deltas(&frames), "whole", "{}, {number}", instances.store);
            timeout(TEST_TIMEOUT, provider.disconnects.recv()).await.expect("the turn was not stopped").unwrap();
            let turns = instances.turns().await;
            assert_eq!(turns.iter().map(|turn| turn.interrupted).collect::<Vec<_>>()[..2], [false, true]);
            assert_eq!(turns[1].messages[1].content, "half", "{}", instances.store);
            let replayed = server.chat(instances.question(&left, &left)).await.unwrap();
            assert_eq!((error_of(&replayed).code.as_str(), error_of(&replayed).retryable), ("PREEMPTED", false));
        }
    }
}

#[tokio::test]
async fn run_preempted_before_its_first_delta_is_not_stored() {
    let provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[("RESUME_GRACE_SECONDS", "3600")]).await {
        provider.script(vec![stream_head(), Step::AwaitDisconnect]).await;
        provider.script(complete_answer("whole")).await;
        let mut stream = open_stream(&instances.first, instances.question("left", "only once")).await;
        read_until(&mut stream, "GENERATING").await;
        drop(stream);
        let frames = instances.second.chat(instances.question("next", "only once")).await.unwrap();
        assert_eq!(joined_deltas(&frames), "whole");
        assert_eq!(questions(&instances.turns().await), ["only once"], "{}", instances.store);
    }
}

#[tokio::test]
async fn run_that_somebody_reads_is_not_preempted() {
    let provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[("RESUME_GRACE_SECONDS", "3600")]).await {
        let (release, latch) = latch();
        provider.script(paused_answer(latch)).await;
        let mut first = open_stream(&instances.first, instances.question("r", "hi")).await;
        let frames = read_until(&mut first, "delta").await;
        let mut second = open_stream(&instances.second, instances.question("r", "hi")).await;
        read_until(&mut second, "delta").await;
        // Only the reader in the other process is left.
        drop(first);
        for server in [&instances.first, &instances.second] {
            let busy = server.chat(instances.question("next", "hi")).await.unwrap_err();
            assert_eq!(busy.code(), Code::Aborted, "{}: {busy:?}", instances.store);
        }
        // A reader that comes back counts again.
        let third =
            open_stream(&instances.first, resume_after(instances.question("r", "hi"), frames.last().unwrap())).await;
        drop(second);
        for server in [&instances.first, &instances.second] {
            let busy = server.chat(instances.question("next", "hi")).await.unwrap_err();
            assert_eq!(busy.code(), Code::Aborted, "{}: {busy:?}", instances.store);
        }
        release.send(()).unwrap();
        assert_eq!(joined_deltas(&read_to_end(third).await), "two three");
    }
}

#[tokio::test]
async fn run_is_preempted_after_its_reader_in_another_process_left() {
    let provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[("RESUME_GRACE_SECONDS", "3600")]).await {
        provider.script(endless_answer("half")).await;
        provider.script(complete_answer("whole")).await;
        leave_midway(&instances, "left").await;
        let mut resumed = open_stream(&instances.second, instances.question("left", "left")).await;
        read_until(&mut resumed, "delta").await;
        drop(resumed);
        let frames = instances.second.chat(instances.question("next", "again")).await.unwrap();
        assert_eq!(joined_deltas(&frames), "whole", "{}", instances.store);
    }
}

#[tokio::test]
async fn refused_resume_does_not_count_as_a_reader() {
    let provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[("RESUME_GRACE_SECONDS", "3600")]).await {
        provider.script(endless_answer("half")).await;
        provider.script(complete_answer("whole")).await;
        leave_midway(&instances, "left").await;
        // The id is that of another stream, which only the store tells.
        let call = resume_after_id(instances.question("left", "left"), "0000000000000000000000000000000000000001");
        let refused = instances.second.agent().stream_chat(call).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{}: {refused:?}", instances.store);
        let frames = instances.second.chat(instances.question("next", "again")).await.unwrap();
        assert_eq!(joined_deltas(&frames), "whole", "{}", instances.store);
    }
}

fn forged(id: &str, number: u32) -> String {
    format!("{}{number:08x}0000", &id[..id.len() - 12])
}

#[tokio::test]
async fn forged_last_response_id_is_rejected() {
    let provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[]).await {
        provider.script(complete_answer("one two")).await;
        let frames = instances.first.chat(instances.question("r", "hi")).await.unwrap();
        let (last, count) = (&frames.last().unwrap().response_id, u32::try_from(frames.len()).unwrap());
        let beyond = [0, count + 1, count + 2, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
        for server in [&instances.first, &instances.second] {
            for number in beyond {
                let call = resume_after_id(instances.question("r", "hi"), &forged(last, number));
                let rejected = server.agent().stream_chat(call).await.unwrap_err();
                assert_eq!(rejected.code(), Code::InvalidArgument, "{}, {number:x}: {rejected:?}", instances.store);
                assert!(rejected.message().contains("x-last-response-id"));
            }
        }
    }
}

#[tokio::test]
async fn forged_last_response_id_of_running_answer_ends_without_a_panic() {
    let provider = FakeProvider::start().await;
    for instances in Instances::start_all(&provider, &[]).await {
        let (release, latch) = latch();
        provider.script(paused_answer(latch)).await;
        let mut stream = open_stream(&instances.first, instances.question("r", "hi")).await;
        let frames = read_until(&mut stream, "delta").await;
        let last = &frames.last().unwrap().response_id;
        for number in [0, 0xffff, u32::MAX - 1, u32::MAX] {
            let call = resume_after_id(instances.question("r", "hi"), &forged(last, number));
            let rejected = instances.first.agent().stream_chat(call).await.unwrap_err();
            assert_eq!(rejected.code(), Code::InvalidArgument, "{}, {number:x}", instances.store);
        }
        for number in [0, u32::MAX - 1, u32::MAX] {
            let call = resume_after_id(instances.question("r", "hi"), &forged(last, number));
            let rejected = instances.second.agent().stream_chat(call).await.unwrap_err();
            assert_eq!(rejected.code(), Code::InvalidArgument, "{}, {number:x}", instances.store);
        }
        // The store may lag behind the client, so only the end of the run shows that the frame does not exist.
        let call = resume_after_id(instances.question("r", "hi"), &forged(last, 0xffff));
        let waiting = open_stream(&instances.second, call).await;
        release.send(()).unwrap();
        assert_eq!(error_of(&read_to_end(waiting).await).code, "REPLAY_UNAVAILABLE", "{}", instances.store);
        assert_eq!(read_to_end(stream).await.last().unwrap().finish_reason(), pb::FinishReason::Stop);
    }
}

/// Polls a future at most `polls` times, then drops it. `None` if it was dropped.
async fn drop_after_polls<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match work.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Without a poll left it is dropped at once, not with the next wake-up.
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Waits until no run is left that has not ended; a run without a driver never ends.
async fn wait_until_no_run_is_left(server: &TestServer) {
    let mut owner = server.connect_as_owner().await;
    let wait = async {
        loop {
            let running = "select count(*) as runs from runs where ended_at is null";
            let row = sqlx::query(running).persistent(false).fetch_one(&mut owner).await.unwrap();
            if row.get::<i64, _>("runs") == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT / 2, wait).await.expect("a run has no driver");
}

fn in_process(server: &TestServer, variables: &[(&str, &str)]) -> App {
    let url = server.database().service_url();
    let mut all = vec![
        ("DATABASE_URL", url.as_str()),
        ("EMBEDDING_PROVIDER", "hashed"),
        ("ADMISSION_TIMEOUT_MS", "20000"),
        ("RATE_LIMITS", "off"),
        ("RESUME_GRACE_SECONDS", "0"),
    ];
    all.extend(variables);
    let config = config(&all);
    let database = Database::from_config(&config.stores.database).unwrap();
    App::from_config(&config, database.pools()).unwrap()
}

#[tokio::test]
async fn handler_dropped_at_any_poll_leaves_no_run() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.variables()).await;
    provider.script_all(vec![stream_head(), Step::AwaitDisconnect]).await;
    let agent = in_process(&server, &provider.variables()).apis.agent;
    for polls in 1.. {
        let request = Request::new(chat_request(&format!("r{polls}"), &format!("s{polls}"), "hi"));
        let has_answered =
            drop_after_polls(polls, agent.stream_chat(request)).await.is_some_and(|answer| answer.is_ok());
        wait_until_no_run_is_left(&server).await;
        if has_answered {
            break;
        }
    }
}

#[tokio::test]
async fn tool_result_dropped_at_any_poll_can_be_given_again() {
    let (provider, server) = crate::tools::start_with_tools().await;
    let tools = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(tools.path(), r#"[{"type": "function", "function": {"name": "now"}}]"#).unwrap();
    let mut variables = provider.variables();
    variables.push(("TOOLS_FILE", tools.path().to_str().unwrap()));
    let agent = in_process(&server, &variables).apis.agent;
    for polls in 1.. {
        provider.script(tool_call_answer("c", "now", &json!({}))).await;
        server.chat(crate::tools::question("time?")).await.unwrap();
        provider.script_all(vec![stream_head(), Step::AwaitDisconnect]).await;
        let answered = drop_after_polls(polls, agent.stream_chat(Request::new(tool_result("c", "12")))).await;
        let has_answered = answered.is_some();
        drop(answered);
        wait_until_no_run_is_left(&server).await;
        provider.script(complete_answer("noon")).await;
        let frames = server.chat(tool_result("c", "12")).await.unwrap();
        assert_eq!(joined_deltas(&frames), "noon", "after {polls} polls: {:?}", outline(&frames));
        if has_answered {
            break;
        }
    }
}

#[tokio::test]
async fn tool_result_preempts_a_run_without_a_reader() {
    let (provider, server) = crate::tools::start_with_tools().await;
    provider.script(tool_call_answer("c", "now", &json!({}))).await;
    server.chat(crate::tools::question("time?")).await.unwrap();
    provider.script(endless_answer("half")).await;
    provider.script(complete_answer("noon")).await;
    let mut stream = open_stream(&server, chat_request("left", "s", "meanwhile")).await;
    read_until(&mut stream, "delta").await;
    drop(stream);
    assert_eq!(joined_deltas(&server.chat(tool_result("c", "12")).await.unwrap()), "noon");
}

/// A gRPC-Web call over HTTP/1.1.
fn http1_call(request: &pb::ChatRequest) -> Vec<u8> {
    let body = grpc_frame(&request.encode_to_vec());
    let head = format!(
        "POST /agent.v1.AgentService/StreamChat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc-web\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_cut_after_its_request_leaves_no_run() {
    let provider = FakeProvider::start().await;
    let mut variables = provider.variables();
    variables.push(("RESUME_GRACE_SECONDS", "0"));
    let server = TestServer::start(&variables).await;
    provider.script_all(vec![stream_head(), Step::AwaitDisconnect]).await;
    for cut in 0..200_u64 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        let call = http1_call(&chat_request(&format!("r{cut}"), &format!("s{cut}"), "hi"));
        socket.write_all(&call).await.unwrap();
        // Different moments of the call, not a wait for any of them.
        tokio::time::sleep(Duration::from_micros(cut % 50 * 250)).await;
        if cut % 2 == 0 {
            // RST instead of FIN.
            socket.set_zero_linger().unwrap();
        }
        drop(socket);
    }
    wait_until_no_run_is_left(&server).await;
}
