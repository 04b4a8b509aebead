//! A running server and its clients.

use agent_service::proto::agent_v1::{
    self as pb, agent_service_client::AgentServiceClient, chat_response::Content,
    memory_service_client::MemoryServiceClient,
};
use tokio::process::Command;
use tonic::{
    IntoRequest, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::process::{Process, within_timeout};

pub struct Server {
    pub process: Process,
    pub url: String,
}

impl Server {
    pub async fn start(command: Command) -> Self {
        let process = Process::start(command);
        let line = process.stdout.line("  address  ").await;
        let url = line.split_whitespace().nth(1).unwrap().to_owned();
        // The last line of the banner, which is printed line by line.
        process.stdout.line(" recall ").await;
        Self { process, url }
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub async fn channel(&self) -> Channel {
        within_timeout("a connection", Endpoint::from_shared(self.url.clone()).unwrap().connect()).await.unwrap()
    }

    pub async fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel().await)
    }

    pub async fn memory(&self) -> MemoryServiceClient<Channel> {
        MemoryServiceClient::new(self.channel().await)
    }

    pub async fn health(&self) -> HealthWatch {
        let mut client = HealthClient::new(self.channel().await);
        let watching = client.watch(HealthCheckRequest::default());
        HealthWatch { reports: within_timeout("health", watching).await.unwrap().into_inner() }
    }

    pub async fn chat(&self, request: impl IntoRequest<pb::ChatRequest>) -> ChatStream {
        let mut client = self.agent().await;
        ChatStream::new(within_timeout("an answer", client.stream_chat(request)).await.unwrap())
    }

    pub async fn remember(&self, content: &str) -> String {
        let mut client = self.memory().await;
        let added = within_timeout("a memory", client.add_memories(memories(&[content]))).await.unwrap().into_inner();
        added.ids.concat()
    }

    pub async fn remembered(&self) -> Vec<String> {
        let request = pb::ListMemoriesRequest { user_id: USER.to_owned(), page_size: 1_000, ..Default::default() };
        let mut client = self.memory().await;
        let listed = within_timeout("a list", client.list_memories(request)).await.unwrap().into_inner();
        let mut contents: Vec<_> = listed.memories.into_iter().map(|memory| memory.content).collect();
        contents.sort();
        contents
    }
}

pub struct HealthWatch {
    reports: Streaming<HealthCheckResponse>,
}

impl HealthWatch {
    pub async fn wait_for_status(&mut self, wanted: ServingStatus) {
        while self.next().await.unwrap() != wanted {}
    }

    pub async fn next(&mut self) -> Option<ServingStatus> {
        let report = within_timeout("a report of the health", self.reports.message()).await;
        report.ok().flatten().map(|report| report.status())
    }
}

pub struct ChatStream {
    frames: Streaming<pb::ChatResponse>,
}

impl ChatStream {
    pub fn new(response: tonic::Response<Streaming<pb::ChatResponse>>) -> Self {
        Self { frames: response.into_inner() }
    }

    pub async fn until(&mut self, until: impl Fn(&pb::ChatResponse) -> bool) -> Vec<pb::ChatResponse> {
        let mut frames = Vec::new();
        while !frames.last().is_some_and(&until) {
            let frame = within_timeout("a frame", self.frames.message()).await.unwrap();
            frames.push(frame.unwrap_or_else(|| panic!("the answer ended after {frames:?}")));
        }
        frames
    }

    /// The remaining frames; the status of the call must be OK.
    pub async fn rest(mut self) -> Result<Vec<pb::ChatResponse>, Status> {
        let mut frames = Vec::new();
        while let Some(frame) = within_timeout("a frame", self.frames.message()).await? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

pub const USER: &str = "somebody";

pub fn question(message: &str) -> pb::ChatRequest {
    pb::ChatRequest {
        user_id: USER.to_owned(),
        input: Some(pb::chat_request::Input::Message(message.to_owned())),
        ..Default::default()
    }
}

pub fn question_without_memory(message: &str) -> Request<pb::ChatRequest> {
    let mut request = Request::new(question(message));
    request.metadata_mut().insert("x-recall", "off".parse().unwrap());
    request
}

pub fn query(text: &str) -> pb::MemoryQuery {
    pb::MemoryQuery { user_id: USER.to_owned(), query_text: text.to_owned(), ..Default::default() }
}

pub fn memories(contents: &[&str]) -> pb::AddMemoriesRequest {
    let memory = |content: &&str| pb::MemoryInput { content: (*content).to_owned(), ..Default::default() };
    pb::AddMemoriesRequest { user_id: USER.to_owned(), memories: contents.iter().map(memory).collect() }
}

pub fn is_delta(frame: &pb::ChatResponse) -> bool {
    matches!(frame.content, Some(Content::Delta(_)))
}

pub fn joined_deltas(frames: &[pb::ChatResponse]) -> String {
    let delta = |frame: &pb::ChatResponse| match &frame.content {
        Some(Content::Delta(delta)) => Some(delta.clone()),
        _ => None,
    };
    frames.iter().filter_map(delta).collect()
}

pub fn full_text(frames: &[pb::ChatResponse]) -> &str {
    match frames.last().map(|frame| &frame.content) {
        Some(Some(Content::FullText(text))) => text,
        last => panic!("the last frame has no text: {last:?}"),
    }
}
