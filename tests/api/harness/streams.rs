//! Chat requests of the user `ann`, and streams of their frames.

use agent_service::proto::agent_v1 as pb;
use tokio::{sync::oneshot, time::timeout};
use tonic::{IntoRequest, Request, Status, Streaming};

use super::{TEST_TIMEOUT, TestServer, assert_contract, frame_kind};
use crate::fake_provider::{Latch, Step, delta, events, finish, partial_answer, stream, stream_head, usage};

pub fn ask(message: &str) -> pb::ChatRequest {
    pb::ChatRequest {
        user_id: "ann".into(),
        input: Some(pb::chat_request::Input::Message(message.into())),
        ..Default::default()
    }
}

pub fn ask_without_retrieval(message: &str) -> Request<pb::ChatRequest> {
    without_retrieval(ask(message))
}

pub fn without_retrieval(request: pb::ChatRequest) -> Request<pb::ChatRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("x-recall", "off".parse().unwrap());
    request
}

pub fn chat_request(id: &str, session: &str, message: &str) -> pb::ChatRequest {
    pb::ChatRequest { request_id: id.into(), session_id: session.into(), ..ask(message) }
}

/// A complete answer, one delta a word.
pub fn complete_answer(text: &str) -> Vec<Step> {
    let mut events: Vec<String> = text.split_inclusive(' ').map(delta).collect();
    events.extend([finish("stop"), usage(20, 2), "[DONE]".to_owned()]);
    stream(&events.iter().map(String::as_str).collect::<Vec<_>>())
}

pub fn endless_answer(text: &str) -> Vec<Step> {
    let mut steps = partial_answer(text);
    steps.push(Step::AwaitDisconnect);
    steps
}

/// "one two three", which pauses after "one " until the latch is released.
pub fn paused_answer(latch: Latch) -> Vec<Step> {
    vec![
        stream_head(),
        events(&[&delta("one ")]),
        Step::AwaitLatch(latch),
        events(&[&delta("two ")]),
        events(&[&delta("three"), &finish("stop"), &usage(3, 4), "[DONE]"]),
    ]
}

/// A latch for [`Step::AwaitLatch`], and its release.
pub fn latch() -> (oneshot::Sender<()>, Latch) {
    let (release, released) = oneshot::channel();
    (release, Latch::new(released))
}

pub async fn open_stream(
    server: &TestServer,
    request: impl IntoRequest<pb::ChatRequest>,
) -> Streaming<pb::ChatResponse> {
    server.agent().stream_chat(request).await.unwrap().into_inner()
}

/// The frames up to and including the first one of a kind.
pub async fn read_until(stream: &mut Streaming<pb::ChatResponse>, kind: &str) -> Vec<pb::ChatResponse> {
    let read = async {
        let mut frames = Vec::new();
        while let Some(frame) = stream.message().await.unwrap() {
            let is_last = frame_kind(&frame) == kind;
            frames.push(frame);
            if is_last {
                break;
            }
        }
        frames
    };
    timeout(TEST_TIMEOUT, read).await.expect("the stream hangs")
}

pub async fn read_to_end(mut stream: Streaming<pb::ChatResponse>) -> Vec<pb::ChatResponse> {
    read_until(&mut stream, "no such kind").await
}

pub async fn run_chat(server: &TestServer, request: impl IntoRequest<pb::ChatRequest>) -> Vec<pb::ChatResponse> {
    let frames = server.chat(request).await.unwrap();
    assert_contract(&frames);
    frames
}

pub async fn run_turn(server: &TestServer) -> Vec<pb::ChatResponse> {
    run_chat(server, ask_without_retrieval("hi")).await
}

pub fn resume_after(request: pb::ChatRequest, last: &pb::ChatResponse) -> Request<pb::ChatRequest> {
    resume_after_id(request, &last.response_id)
}

pub fn resume_after_id(request: pb::ChatRequest, last_response_id: &str) -> Request<pb::ChatRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("x-last-response-id", last_response_id.parse().unwrap());
    request
}

impl TestServer {
    pub async fn chat(&self, request: impl IntoRequest<pb::ChatRequest>) -> Result<Vec<pb::ChatResponse>, Status> {
        let collect = async {
            let mut stream = self.agent().stream_chat(request).await?.into_inner();
            let mut frames = Vec::new();
            while let Some(frame) = stream.message().await? {
                frames.push(frame);
            }
            Ok(frames)
        };
        timeout(TEST_TIMEOUT, collect).await.expect("the stream hangs")
    }

    pub async fn get_session(&self, id: &str) -> Result<pb::GetSessionResponse, Status> {
        let request = pb::GetSessionRequest { user_id: "ann".into(), session_id: id.into(), ..Default::default() };
        self.conversations().get_session(request).await.map(tonic::Response::into_inner)
    }

    pub async fn cancel_turn(&self, session: &str, request: &str) -> pb::CancelTurnResponse {
        let (session_id, request_id) = (session.into(), request.into());
        let request = pb::CancelTurnRequest { user_id: "ann".into(), session_id, request_id };
        self.conversations().cancel_turn(request).await.unwrap().into_inner()
    }
}
