//! The service with synthetic vectors, called over a socket.

use std::sync::Arc;

use agent_service::{
    composition::{App, build_embedder},
    config::Config,
    embedding::Embedder,
    memory::MemoryEngine,
    postgres::{self, DatabaseGuard},
    proto::agent_v1::{agent_service_client::AgentServiceClient, memory_service_client::MemoryServiceClient},
    transport::server::Server,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{BenchResult, store::Database};

pub struct BenchServer {
    pub engine: Arc<MemoryEngine>,
    pub database: postgres::Database,
    channel: Channel,
    serving: JoinHandle<()>,
    _opened: DatabaseGuard,
}

impl BenchServer {
    pub async fn start(
        database: &Database,
        embedder: Arc<dyn Embedder>,
        variables: &[(&str, &str)],
    ) -> BenchResult<Self> {
        Self::serve(&database.config(variables)?, embedder).await
    }

    pub async fn configured(database: &Database, variables: &[(&str, &str)]) -> BenchResult<Self> {
        let config = database.config(variables)?;
        Self::serve(&config, build_embedder(&config.embedding)?).await
    }

    async fn serve(config: &Config, embedder: Arc<dyn Embedder>) -> BenchResult<Self> {
        let database = postgres::Database::from_config(&config.stores.database)?;
        let opened = database.open(Arc::new(|_| {})).await?;
        let app = App::with_embedder(config, database.pools(), embedder)?;
        let engine = app.engine.clone();
        let server = Server::bind(&config.server, app.apis).await?;
        let address = server.address();
        // The database is ready from the start.
        let (_, is_ready) = watch::channel(true);
        let serving = tokio::spawn(async move {
            if let Err(error) = server.serve(is_ready, CancellationToken::new()).await {
                eprintln!("the server ended: {error}");
            }
        });
        let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
        Ok(Self { engine, database, channel, serving, _opened: opened })
    }

    pub fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }

    pub fn memory(&self) -> MemoryServiceClient<Channel> {
        MemoryServiceClient::new(self.channel.clone())
    }
}

impl Drop for BenchServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
