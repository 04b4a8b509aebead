//! One server per test, on a free port and with a database of its own.

mod frames;
mod memories;
mod streams;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use agent_service::{
    composition::App,
    learning::ExtractionWorker,
    memory::MemoryEngine,
    postgres::Database,
    proto::agent_v1::{
        agent_service_client::AgentServiceClient, conversation_service_client::ConversationServiceClient,
        memory_service_client::MemoryServiceClient,
    },
    transport::server::Server,
};
use sqlx::PgConnection;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::fake_provider::FakeProvider;
pub use crate::postgres::{TestDatabase, config, pooled_url};

pub use self::{frames::*, memories::*, streams::*};

/// Ends a test that hangs. No assertion depends on its length.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections are refused: no process listens on a port below the ephemeral range.
pub const CLOSED_ADDRESS: &str = "127.0.0.1:1";

pub const UNREACHABLE_DATABASE: &str = "postgres://nobody@127.0.0.1:1/none";

pub struct TestServer {
    pub address: SocketAddr,
    /// The readiness of the database, as the server sees it.
    pub ready: watch::Sender<bool>,
    pub stop: CancellationToken,
    pub serving: Option<JoinHandle<()>>,
    pub channel: Channel,
    pub engine: Arc<MemoryEngine>,
    worker: Option<Arc<ExtractionWorker>>,
    pub database: Option<TestDatabase>,
}

impl TestServer {
    /// A server in demo mode without delays, with a database of its own; `variables` take precedence.
    pub async fn start(variables: &[(&str, &str)]) -> Self {
        let database = TestDatabase::create().await;
        let mut server = Self::start_on(&database.service_url(), variables).await;
        server.database = Some(database);
        server
    }

    pub async fn start_with_provider() -> (FakeProvider, Self) {
        let provider = FakeProvider::start().await;
        let server = Self::start(&provider.variables()).await;
        (provider, server)
    }

    pub async fn start_with_embedder() -> (FakeProvider, Self) {
        let provider = FakeProvider::start().await;
        let server = Self::start(&provider.embedding_variables()).await;
        (provider, server)
    }

    /// For tests whose calls need no database.
    pub async fn start_without_database(variables: &[(&str, &str)]) -> Self {
        Self::start_on(UNREACHABLE_DATABASE, variables).await
    }

    pub async fn start_second(&self, variables: &[(&str, &str)]) -> Self {
        Self::start_on(&self.database().service_url(), variables).await
    }

    pub async fn start_on(database_url: &str, variables: &[(&str, &str)]) -> Self {
        let mut all = vec![
            ("GRPC_PORT", "0"),
            ("DATABASE_URL", database_url),
            ("EMBEDDING_PROVIDER", "hashed"),
            // Test machines are slower than production, and tests send more requests than a person.
            ("ADMISSION_TIMEOUT_MS", "20000"),
            ("RATE_LIMITS", "off"),
            ("DEMO_THINKING_DELAY_MS", "0"),
            ("DEMO_CHUNK_DELAY_MS", "0"),
        ];
        all.extend(variables);
        let config = config(&all);
        let database = Database::from_config(&config.stores.database).unwrap();
        let app = App::from_config(&config, database.pools()).unwrap();
        let (engine, worker) = (app.engine.clone(), app.extraction_worker.clone());
        let server = Server::bind(&config.server, app.apis).await.unwrap();
        let address = server.address();
        let (ready, is_ready) = watch::channel(true);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let serving = tokio::spawn(async move { server.serve(is_ready, stopped).await.unwrap() });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { address, ready, stop, serving: Some(serving), channel, engine, worker, database: None }
    }

    pub fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
            .max_encoding_message_size(100 << 20)
            .max_decoding_message_size(100 << 20)
    }

    pub fn memory(&self) -> MemoryServiceClient<Channel> {
        MemoryServiceClient::new(self.channel.clone()).max_encoding_message_size(100 << 20)
    }

    pub fn conversations(&self) -> ConversationServiceClient<Channel> {
        ConversationServiceClient::new(self.channel.clone())
    }

    pub fn database(&self) -> &TestDatabase {
        self.database.as_ref().expect("this server was started without a database of its own")
    }

    /// Learns from every turn that has ended; the server itself does not.
    pub async fn learn(&self) {
        let worker = self.worker.as_ref().expect("the server stores no conversations");
        worker.run_until_idle(Instant::now() + TEST_TIMEOUT).await.unwrap();
    }

    /// A connection to its database as the owner, to whom row-level security does not apply.
    pub async fn connect_as_owner(&self) -> PgConnection {
        self.database().connect().await
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

/// An HTTP client for requests that no gRPC client sends.
pub fn http() -> reqwest::ClientBuilder {
    // Fails if another test has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// A length-prefixed message: compression flag, length, bytes.
pub fn grpc_frame(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// A call over plain HTTP/2; the message may be malformed.
pub async fn raw_call(server: &TestServer, method: &str, message: &[u8], timeout: &str) -> reqwest::Response {
    let client = http().http2_prior_knowledge().build().unwrap();
    let call =
        client.post(format!("http://{}/agent.v1.AgentService/{method}", server.address)).body(grpc_frame(message));
    let call = call.header("content-type", "application/grpc").header("te", "trailers").header("grpc-timeout", timeout);
    call.send().await.unwrap()
}
