//! The service without a network, a database and a provider, so that what it costs is the same in every run.

#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a benchmark fails by a panic")]

#[path = "../../support/budget.rs"]
mod budget;
#[path = "../../support/measurements.rs"]
mod measurements;
mod model;
mod store;

use std::{sync::Arc, time::Duration};

use agent_service::{
    chat::{Assistant, Prompts},
    composition::{build_chat_model, build_embedder},
    config::{Config, LogFormat},
    conversation::{ConversationStore, StoreTimeouts, WithDeadlines},
    identity::Authenticator,
    llm::{ChatModel, Prices},
    memory::MemoryEngine,
    postgres::RolePools,
    proto::agent_v1::{self as pb, agent_service_server::AgentServiceServer},
    service::{AgentApi, ApiParts, Apis},
    telemetry,
    tools::Toolbox,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
};
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::{
    model::{DELTA, DeltasOfNext, SteadyModel},
    store::{DiscardingStore, FINISHED},
};

pub use budget::budget;

const QUESTION: &str = "What is the difference between eigenvalues and eigenvectors?";

/// Whether a turn is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// `CONVERSATIONS=off`: the call runs its turn.
    Direct,
    /// A driver task runs the turn and stores it; the call reads the driver's frames.
    Stored,
}

pub struct BenchService {
    runtime: Runtime,
    service: AgentServiceServer<AgentApi>,
    deltas: Arc<DeltasOfNext>,
}

impl BenchService {
    #[must_use]
    pub fn start(persistence: Persistence) -> Self {
        // A span of a call is only made where it is logged.
        telemetry::init(Some(LogFormat::Json));
        // One thread and no network: tasks run in the same order every time.
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let deltas = Arc::<DeltasOfNext>::default();
        let apis = runtime.block_on(async { apis(persistence, deltas.clone()) });
        Self { runtime, service: AgentServiceServer::new(apis.agent), deltas }
    }

    /// The request of a user's turn, as a transport passes it on.
    #[must_use]
    pub fn request(number: usize) -> Request<Body> {
        request(number, &format!("request-{number}"))
    }

    /// Repeats a request of a user whose answer of 80 kB is stored, and reads its first frames.
    #[must_use]
    pub fn replay(&self, number: usize) -> OpenStream {
        let mut stream = self.admit(request(number, &format!("{FINISHED}-{number}")));
        self.runtime.block_on(stream.next());
        stream
    }

    /// Admits a turn. Its frames are not read.
    #[must_use]
    pub fn admit(&self, request: Request<Body>) -> OpenStream {
        let deltas = self.deltas.create();
        let response = self.runtime.block_on(self.service.clone().oneshot(request)).expect("no error");
        assert!(!response.headers().contains_key("grpc-status"), "refused: {:?}", response.headers());
        OpenStream { response, deltas }
    }

    /// Admits the turn of a user, and reads it up to its eighth delta, when everything that a running turn needs is there.
    #[must_use]
    pub fn open(&self, number: usize) -> OpenStream {
        let mut stream = self.admit(Self::request(number));
        stream.deltas.add_permits(1);
        self.runtime.block_on(async {
            while !stream.next().await.windows(DELTA.len()).any(|part| part == DELTA.as_bytes()) {}
        });
        self.read(&mut stream, 7);
        stream
    }

    /// Reads a stream while its model sends deltas.
    pub fn read(&self, stream: &mut OpenStream, deltas: usize) {
        self.runtime.block_on(async {
            for _ in 0..deltas {
                stream.deltas.add_permits(1);
                let frame = stream.next().await;
                let length = frame.get(1..5).and_then(|length| length.try_into().ok()).map_or(0, u32::from_be_bytes);
                assert_eq!(frame.len(), 5 + length as usize, "one frame at a time");
            }
        });
    }
}

/// Of a user's turn, as a transport passes it on.
fn request(number: usize, id: &str) -> Request<Body> {
    let message = pb::ChatRequest {
        user_id: format!("user-{number}"),
        session_id: format!("session-{number}"),
        request_id: id.to_owned(),
        input: Some(pb::chat_request::Input::Message(QUESTION.to_owned())),
        user_profile: Some(pb::UserProfile { language: "en".to_owned(), ..Default::default() }),
        ..Default::default()
    }
    .encode_to_vec();
    let length = u32::try_from(message.len()).expect("a short message");
    let framed = [&[0], &length.to_be_bytes()[..], &message].concat();
    Request::post("/agent.v1.AgentService/StreamChat")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-recall", "off")
        .body(Body::new(Full::new(Bytes::from(framed))))
        .expect("a valid request")
}

pub struct OpenStream {
    response: Response<Body>,
    deltas: Arc<Semaphore>,
}

impl OpenStream {
    async fn next(&mut self) -> Bytes {
        let part = self.response.frame().await.expect("the stream is open").expect("no error");
        part.into_data().expect("no trailers")
    }
}

fn apis(persistence: Persistence, deltas: Arc<DeltasOfNext>) -> Apis {
    let config = Config::read(&|name| {
        let value = match name {
            "DEMO_MODE" => "on",
            "EMBEDDING_PROVIDER" => "hashed",
            "CONVERSATIONS" => "off",
            // One user opens all streams.
            "RATE_LIMITS" => "concurrent_streams=1000000,requests_per_minute=1000000",
            _ => return None,
        };
        Some(value.to_owned())
    })
    .expect("a valid configuration");
    let embedder = build_embedder(&config.embedding).expect("an embedder");
    let demo = build_chat_model(&config.model).expect("a model");
    let model: Arc<dyn ChatModel> = Arc::new(SteadyModel { named: demo, deltas });
    let store = || -> Arc<dyn ConversationStore> {
        let second = Duration::from_secs(1);
        let timeouts = StoreTimeouts {
            admit: second,
            late_admission: second,
            short: second,
            long: second,
            finish: second,
            delete: second,
        };
        Arc::new(WithDeadlines::new(DiscardingStore::default(), timeouts, 4))
    };
    let assistant = Assistant {
        model,
        memory: Arc::new(MemoryEngine::new(config.memory, RolePools::absent(), embedder)),
        prompts: Prompts::compile().expect("valid prompts"),
        tools: Toolbox::load(None).expect("valid tools"),
        conversations: (persistence == Persistence::Stored).then(store),
        prices: Prices::built_in().expect("valid prices"),
        thinking_delay: Duration::ZERO,
        total_timeout: config.model.total_timeout(),
    };
    Apis::new(ApiParts {
        assistant,
        authenticator: Authenticator::from_config(&config.auth).expect("an authenticator"),
        quotas: config.conversations.quotas,
        resume_grace: config.conversations.resume_grace,
        max_concurrent_streams: config.conversations.max_concurrent_streams,
        refusals: config.chat_refusals,
        status_interval: config.server.status_interval,
    })
}
