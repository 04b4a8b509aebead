//! The local server: gRPC and gRPC-Web on one port, for a gateway, browsers and the command line. Reports health and performs the
//! graceful shutdown.

mod accept;
mod answering;
mod body_timeout;
mod connection;
mod cors;
mod descriptors;
mod error;
mod health;
mod lingering_close;
mod listener;
mod message_budget;
mod page;
mod preface;
mod probes;
mod stalled;
mod tls;

use std::{net::SocketAddr, time::Duration};

pub use descriptors::raise_descriptor_limit;
pub use error::ServerError;
pub use listener::{Listener, TlsReload};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::{Routes, RoutesBuilder},
};
use tonic_health::pb::health_server::HealthServer;

use crate::{
    config::ServerConfig,
    proto::{
        DESCRIPTOR,
        agent_v1::{
            agent_service_server::AgentServiceServer, conversation_service_server::ConversationServiceServer,
            memory_service_server::MemoryServiceServer,
        },
    },
    service::{AgentApi, Apis, ConversationApi, Drain, MemoryApi},
    transport::{
        RpcPaths, agent_service, conversation_service, memory_service,
        services::{MAX_SMALL_MESSAGE_BYTES, REQUEST_ENCODING},
    },
};
use health::HealthApi;
use probes::Readiness;

/// For the last frames of cancelled calls, and then for the bytes in the sockets.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Bound, but not serving yet.
pub struct Server {
    listener: Listener,
    config: ServerConfig,
    apis: Apis,
}

impl Server {
    /// See [`Listener::bind`].
    pub async fn bind(config: &ServerConfig, apis: Apis) -> Result<Self, ServerError> {
        Ok(Self { listener: Listener::bind(config).await?, config: config.clone(), apis })
    }

    /// With the real port if the configured one is 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// See [`TlsReload`].
    #[must_use]
    pub fn tls_reload(&self) -> TlsReload {
        self.listener.tls_reload()
    }

    /// Serves until `stop` is cancelled, then shuts down gracefully: reports unhealthy, accepts no more connections, drains open
    /// calls for the configured grace period, and ends the others with an error frame. `ready` = the database is usable.
    pub async fn serve(self, ready: watch::Receiver<bool>, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { listener, config, apis } = self;
        let drain = apis.drain.clone();
        let health = HealthReport::new(listener.readiness());
        let (routes, paths) = routes(apis, &config, &health)?;

        let mut serving = std::pin::pin!(listener.serve(routes, paths, stop.clone()));
        tokio::select! {
            () = &mut serving => return Ok(()),
            () = drain_after(&stop, &health, &drain, config.shutdown_grace) => {}
            () = report_readiness(&health, ready, &stop) => {}
        }
        // The last frames are still on their way to the sockets. The timeout is for idle health watchers, which never leave.
        let _ = timeout(FLUSH_TIMEOUT, serving).await;
        Ok(())
    }
}

fn routes(apis: Apis, config: &ServerConfig, health: &HealthReport) -> Result<(Routes, RpcPaths), ServerError> {
    let mut routes = Routes::builder();
    routes
        .add_service(agent_service(apis.agent))
        .add_service(memory_service(apis.memory))
        .add_service(conversation_service(apis.conversation));
    let mut files = vec![DESCRIPTOR];
    if config.health {
        let health = HealthServer::new(health.api()).max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES);
        routes.add_service(health.accept_compressed(REQUEST_ENCODING));
        files.push(tonic_health::pb::FILE_DESCRIPTOR_SET);
    }
    if config.reflection {
        files.extend([
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ]);
        add_reflection(&mut routes, &files)?;
    }
    Ok((routes.routes(), RpcPaths::from_descriptors(&files)?))
}

fn add_reflection(routes: &mut RoutesBuilder, files: &[&'static [u8]]) -> Result<(), ServerError> {
    let builder = || {
        files.iter().fold(tonic_reflection::server::Builder::configure(), |builder, file| {
            builder.register_encoded_file_descriptor_set(file)
        })
    };
    let v1 = builder().build_v1()?.max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES);
    let v1alpha = builder().build_v1alpha()?.max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES);
    routes.add_service(v1.accept_compressed(REQUEST_ENCODING)).add_service(v1alpha.accept_compressed(REQUEST_ENCODING));
    Ok(())
}

/// Health by gRPC and by HTTP.
struct HealthReport {
    is_serving: watch::Sender<bool>,
    readiness: Readiness,
}

impl HealthReport {
    fn new(readiness: Readiness) -> Self {
        Self { is_serving: watch::Sender::new(false), readiness }
    }

    fn api(&self) -> HealthApi {
        let services = vec![
            AgentServiceServer::<AgentApi>::NAME,
            ConversationServiceServer::<ConversationApi>::NAME,
            MemoryServiceServer::<MemoryApi>::NAME,
        ];
        HealthApi { services, is_serving: self.is_serving.subscribe() }
    }

    fn set(&self, is_serving: bool) {
        self.is_serving.send_replace(is_serving);
        self.readiness.set(is_serving);
    }
}

/// Waits for `stop`, then until no call is open. Calls that exceed the grace period are cancelled, which ends their streams with
/// an error frame.
async fn drain_after(stop: &CancellationToken, health: &HealthReport, drain: &Drain, grace: Duration) {
    stop.cancelled().await;
    health.set(false);
    let grace_end = Instant::now() + grace;
    tokio::select! {
        () = drain.wait_until_idle() => {}
        () = sleep_until(grace_end) => {
            drain.cancel_calls();
            // A client that does not read its last frame in time loses it.
            let _ = timeout(FLUSH_TIMEOUT, drain.wait_until_idle()).await;
        }
    }
}

/// Never returns.
async fn report_readiness(health: &HealthReport, mut ready: watch::Receiver<bool>, stop: &CancellationToken) {
    loop {
        // A database that becomes ready during the shutdown does not make the server healthy again.
        let is_ready = *ready.borrow_and_update() && !stop.is_cancelled();
        health.set(is_ready);
        if ready.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
