//! A server of our own in each test: a free port, a database of its own.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use agent_service::{
    memory::MemoryEngine,
    postgres::Database,
    proto::agent_v1::{
        self as pb, agent_service_client::AgentServiceClient, chat_response::Content,
        memory_service_client::MemoryServiceClient,
    },
    service::Services,
    transport::server::Server,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

pub use crate::postgres::{TestDatabase, by_pooler, config};

/// Ends a test that would hang. No assertion depends on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub struct TestServer {
    pub address: SocketAddr,
    /// Tells the server whether its database is ready.
    pub ready: watch::Sender<bool>,
    pub stop: CancellationToken,
    pub serving: Option<JoinHandle<()>>,
    pub channel: Channel,
    pub engine: Arc<MemoryEngine>,
    /// The database, unless the test has none.
    pub database: Option<TestDatabase>,
}

impl TestServer {
    /// A server in demo mode without delays, changed by variables, with a database of its own.
    pub async fn start(variables: &[(&str, &str)]) -> Self {
        let database = TestDatabase::create().await;
        let mut server = Self::start_on(&database.service_url(), variables).await;
        server.database = Some(database);
        server
    }

    /// A server on a database that may be out of reach.
    pub async fn start_on(database_url: &str, variables: &[(&str, &str)]) -> Self {
        let mut all = vec![
            ("GRPC_PORT", "0"),
            ("DATABASE_URL", database_url),
            ("EMBEDDING_PROVIDER", "hashed"),
            // A test machine may be slower than a real one, and a test may ask more than a person.
            ("ADMISSION_TIMEOUT_MS", "20000"),
            ("RATE_LIMITS", "off"),
            ("DEMO_THINKING_DELAY_MS", "0"),
            ("DEMO_CHUNK_DELAY_MS", "0"),
        ];
        all.extend(variables);
        let config = config(&all);
        let database = Database::from_config(&config.stores.database).unwrap();
        let services = Services::from_config(&config, database.pools()).unwrap();
        let engine = services.engine.clone();
        let server = Server::bind(&config.server, services).await.unwrap();
        let address = server.address();
        let (ready, is_ready) = watch::channel(true);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let serving = tokio::spawn(async move { server.serve(is_ready, stopped).await.unwrap() });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { address, ready, stop, serving: Some(serving), channel, engine, database: None }
    }

    pub fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
            .max_encoding_message_size(100 << 20)
            .max_decoding_message_size(100 << 20)
    }

    pub fn memory(&self) -> MemoryServiceClient<Channel> {
        MemoryServiceClient::new(self.channel.clone()).max_encoding_message_size(100 << 20)
    }

    /// All frames of a chat.
    pub async fn chat(&self, request: pb::ChatRequest) -> Result<Vec<pb::ChatResponse>, Status> {
        let collect = async {
            let mut stream = self.agent().stream_chat(request).await?.into_inner();
            let mut frames = Vec::new();
            while let Some(frame) = stream.message().await? {
                frames.push(frame);
            }
            Ok(frames)
        };
        tokio::time::timeout(PATIENCE, collect).await.expect("the stream hangs")
    }

    /// Stores memories of a user, each a text.
    pub async fn remember(&self, user: &str, texts: &[&str]) -> Vec<String> {
        let memories = texts.iter().map(|text| pb::MemoryInput { content: (*text).into(), ..Default::default() });
        let request = pb::AddMemoriesRequest { user_id: user.into(), memories: memories.collect() };
        self.memory().add_memories(request).await.unwrap().into_inner().ids
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// An HTTP client for what no gRPC client would send.
pub fn http() -> reqwest::ClientBuilder {
    // An error means that another test has done so.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// A message as it travels: a flag, its length, its bytes.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// A call in plain HTTP/2 of a message that may be none.
pub async fn raw_call(server: &TestServer, method: &str, message: &[u8], timeout: &str) -> reqwest::Response {
    let client = http().http2_prior_knowledge().build().unwrap();
    let call = client.post(format!("http://{}/agent.v1.AgentService/{method}", server.address)).body(framed(message));
    let call = call.header("content-type", "application/grpc").header("te", "trailers").header("grpc-timeout", timeout);
    call.send().await.unwrap()
}

/// A chat request of the user `ann`.
pub fn ask(message: &str) -> pb::ChatRequest {
    pb::ChatRequest {
        user_id: "ann".into(),
        input: Some(pb::chat_request::Input::Message(message.into())),
        ..Default::default()
    }
}

/// What a frame is, in a word.
pub fn kind(frame: &pb::ChatResponse) -> &'static str {
    match frame.content.as_ref() {
        Some(Content::StatusUpdate(status)) => status.state().as_str_name(),
        Some(Content::Delta(_)) => "delta",
        Some(Content::ToolCall(_)) => "tool_call",
        Some(Content::FullText(_)) => "full_text",
        Some(Content::Error(_)) => "error",
        Some(Content::Usage(_)) => "usage",
        Some(Content::Citations(_)) => "citations",
        Some(Content::ToolResult(_)) => "tool_result",
        None => "nothing",
    }
}

/// The kinds of frames in order, repeated deltas as one.
pub fn outline(frames: &[pb::ChatResponse]) -> Vec<&'static str> {
    let mut kinds: Vec<_> = frames.iter().map(kind).collect();
    kinds.dedup();
    kinds
}

pub fn joined_deltas(frames: &[pb::ChatResponse]) -> String {
    frames
        .iter()
        .filter_map(|frame| match &frame.content {
            Some(Content::Delta(delta)) => Some(delta.as_str()),
            _ => None,
        })
        .collect()
}

pub fn error_of(frames: &[pb::ChatResponse]) -> &pb::Error {
    match frames.last().and_then(|frame| frame.content.as_ref()) {
        Some(Content::Error(error)) => error,
        other => panic!("the last frame is {other:?}"),
    }
}

pub fn usage_of(frames: &[pb::ChatResponse]) -> (&pb::Usage, &BTreeMap<String, String>) {
    let usage = frames.iter().find_map(|frame| match &frame.content {
        Some(Content::Usage(usage)) => Some((usage, &frame.metadata)),
        _ => None,
    });
    usage.expect("no usage frame")
}

/// Everything that the contract says of every stream of frames.
pub fn check_contract(frames: &[pb::ChatResponse]) {
    let kinds: Vec<_> = frames.iter().map(kind).collect();
    let last = frames.last().expect("no frame at all");
    assert_eq!(kinds[0], "THINKING", "{kinds:?}");
    let (finished, open): (Vec<_>, Vec<_>) =
        frames.iter().partition(|frame| frame.finish_reason() != pb::FinishReason::Null);
    assert_eq!((finished.len(), open.len()), (1, frames.len() - 1), "exactly one frame ends the stream");
    assert_eq!(finished[0].response_id, last.response_id, "and it is the last");

    // The grammar: THINKING [SEARCHING [citations]] (GENERATING delta* [EXECUTING_TOOL tool_result*])* then the end.
    let mut rest = &kinds[1..];
    let mut skip = |kind: &str| {
        let found = rest.first() == Some(&kind);
        if found {
            rest = &rest[1..];
        }
        found
    };
    if skip("SEARCHING") {
        skip("citations");
    }
    let mut called = false;
    while skip("GENERATING") {
        while skip("delta") {}
        if skip("EXECUTING_TOOL") {
            while skip("tool_result") {}
            while skip("tool_call") {
                called = true;
            }
        }
    }
    let spent = skip("usage");
    if skip("nothing") {
        assert!(called == spent, "calls tell their usage: {kinds:?}");
        let expected = if called { pb::FinishReason::ToolCalls } else { pb::FinishReason::Continue };
        assert_eq!(last.finish_reason(), expected);
    } else if skip("full_text") {
        assert!(spent, "an answer tells its usage: {kinds:?}");
        match &last.content {
            Some(Content::FullText(text)) => assert_eq!(*text, joined_deltas(frames)),
            other => panic!("{other:?}"),
        }
    } else {
        assert!(skip("error"), "{kinds:?}");
        assert_eq!(last.finish_reason(), pb::FinishReason::Error);
    }
    assert!(rest.is_empty(), "{kinds:?}");

    for pair in frames.windows(2) {
        assert_eq!(pair[0].response_id.len(), pair[1].response_id.len(), "of fixed width");
        assert!(pair[0].response_id < pair[1].response_id, "bytewise ascending");
    }
    for frame in frames {
        assert!(frame.created_at > 1_700_000_000 && frame.event_time.is_some());
        for id in [&frame.response_id, &frame.request_id, &frame.session_id, &frame.trace_id, &frame.prompt_version] {
            assert!(!id.is_empty(), "{frame:?}");
        }
        assert_eq!((&frame.request_id, &frame.session_id), (&last.request_id, &last.session_id));
    }
}
