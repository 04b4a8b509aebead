//! The local server: gRPC and gRPC-Web on one port, for a gateway, browsers and the command line. Reports health and performs the
//! graceful shutdown.

mod cors;
mod error;
mod lingering_close;
mod listener;
mod page;

use std::{net::SocketAddr, time::Duration};

pub use error::ServerError;
pub use listener::Listener;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::{Routes, RoutesBuilder},
};
use tonic_health::{ServingStatus, server::HealthReporter};

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
    transport::{agent_service, conversation_service, memory_service},
};

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

    /// Serves until `stop` is cancelled, then shuts down gracefully: reports unhealthy, accepts no more connections, drains open
    /// calls for the configured grace period, and ends the others with an error frame. `ready` = the database is usable.
    pub async fn serve(self, ready: watch::Receiver<bool>, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { listener, config, apis } = self;
        let drain = apis.drain.clone();
        let (reporter, health) = tonic_health::server::health_reporter();
        set_health(&reporter, false).await;

        let mut routes = Routes::builder();
        routes
            .add_service(agent_service(apis.agent))
            .add_service(memory_service(apis.memory))
            .add_service(conversation_service(apis.conversation));
        if config.health {
            routes.add_service(health);
        }
        if config.reflection {
            add_reflection(&mut routes, config.health)?;
        }

        let mut serving = std::pin::pin!(listener.serve(routes.routes(), stop.clone()));
        tokio::select! {
            result = &mut serving => return result,
            () = drain_after(&stop, &reporter, &drain, config.shutdown_grace) => {}
            () = report_readiness(&reporter, ready, &stop) => {}
        }
        // The last frames are still on their way to the sockets. The timeout is for idle health watchers, which never leave.
        timeout(FLUSH_TIMEOUT, serving).await.unwrap_or(Ok(()))
    }
}

fn add_reflection(routes: &mut RoutesBuilder, has_health: bool) -> Result<(), ServerError> {
    let mut files = vec![DESCRIPTOR, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET];
    if has_health {
        files.push(tonic_health::pb::FILE_DESCRIPTOR_SET);
    }
    let builder = || {
        files.iter().fold(tonic_reflection::server::Builder::configure(), |builder, file| {
            builder.register_encoded_file_descriptor_set(file)
        })
    };
    routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?);
    Ok(())
}

/// Waits for `stop`, then until no call is open. Calls that exceed the grace period are cancelled, which ends their streams with
/// an error frame.
async fn drain_after(stop: &CancellationToken, reporter: &HealthReporter, drain: &Drain, grace: Duration) {
    stop.cancelled().await;
    set_health(reporter, false).await;
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
async fn report_readiness(reporter: &HealthReporter, mut ready: watch::Receiver<bool>, stop: &CancellationToken) {
    loop {
        // A database that becomes ready during the shutdown does not make the server healthy again.
        let is_ready = *ready.borrow_and_update() && !stop.is_cancelled();
        set_health(reporter, is_ready).await;
        if ready.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Of each service, and of the server as a whole (the empty name).
async fn set_health(reporter: &HealthReporter, is_ready: bool) {
    let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    let names = [
        "",
        AgentServiceServer::<AgentApi>::NAME,
        ConversationServiceServer::<ConversationApi>::NAME,
        MemoryServiceServer::<MemoryApi>::NAME,
    ];
    for service in names {
        reporter.set_service_status(service, status).await;
    }
}
