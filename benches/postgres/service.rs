//! The service, on a database behind the counting proxy.

use std::sync::Arc;

use agent_service::{
    composition::App, config::Config, memory::MemoryEngine, postgres::Database,
    proto::agent_v1::agent_service_client::AgentServiceClient, transport::server::Server,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};

use crate::{BenchResult, counting_proxy::CountingProxy};

pub struct BenchService {
    pub engine: Arc<MemoryEngine>,
    channel: Channel,
    serving: JoinHandle<()>,
    stop: DropGuard,
}

impl BenchService {
    pub async fn start(proxy: &CountingProxy, database: &str) -> BenchResult<Self> {
        let url = format!("postgres://postgres@{}/{database}?sslmode=disable", proxy.address);
        let config = Config::read(&|name| {
            Some(match name {
                "DATABASE_URL" => url.clone(),
                "EMBEDDING_PROVIDER" => "hashed".to_owned(),
                "DEMO_MODE" => "on".to_owned(),
                // Turns are learned from after they end, at a time of the queue's own.
                "LEARNING" | "RATE_LIMITS" => "off".to_owned(),
                "GRPC_PORT" | "DEMO_THINKING_DELAY_MS" | "DEMO_CHUNK_DELAY_MS" => "0".to_owned(),
                // A debug build on a busy machine is slow.
                "ADMISSION_TIMEOUT_MS" => "20000".to_owned(),
                _ => return None,
            })
        })?;
        let database = Database::from_config(&config.stores.database)?;
        let opened = database.open(Arc::new(|_| {})).await?;
        let app = App::from_config(&config, database.pools())?;
        let engine = app.engine.clone();
        let server = Server::bind(&config.server, app.apis).await?;
        let address = server.address();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            let (_, is_ready) = watch::channel(true);
            if let Err(error) = server.serve(is_ready, stopped).await {
                eprintln!("the server ended: {error}");
            }
            drop(opened);
        });
        let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
        Ok(Self { engine, channel, serving, stop: stop.drop_guard() })
    }

    pub fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }

    /// Waits for runs that are not yet stored.
    pub async fn stop(self) -> BenchResult<()> {
        let Self { channel, serving, stop, .. } = self;
        drop((channel, stop));
        Ok(serving.await?)
    }
}
