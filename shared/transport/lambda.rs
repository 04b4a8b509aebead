//! AWS Lambda: a service as a function whose answers stream as gRPC-Web, through a Function URL or a REST API.
//!
//! A client that leaves is told to nobody here, and nothing runs after an answer has ended. So a call has a deadline: the
//! function's remaining time, or the client's `grpc-timeout`.

mod answer;
mod call;
mod secrets;

use std::{convert::Infallible, process::ExitCode, time::Duration};

use lambda_http::{Service, service_fn};
use tokio::time::timeout;
use tonic::{body::Body, server::NamedService};
use tonic_web::GrpcWebLayer;
use tower::Layer as _;

use crate::{
    config::{Config, MemoryStoreConfig, Place},
    postgres::Database,
    service::{Drain, Services},
    telemetry,
};

/// Connections of one function, which answers one call at a time.
const MAX_CONNECTIONS: u32 = 2;
/// Longest that connections are opened for before the first call.
const WARM_UP: Duration = Duration::from_secs(2);
/// The exit code of a configuration that can not be used.
const EXIT_USAGE: u8 = 2;

/// Runs a function that answers some calls of a service, until Lambda ends it.
pub fn serve<S>(methods: &'static [&'static str], service: impl FnOnce(Services) -> S) -> ExitCode
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let failed = |error: &dyn std::fmt::Display, code| {
        eprintln!("error: {error}");
        ExitCode::from(code)
    };
    if std::env::var_os("AWS_LAMBDA_RUNTIME_API").is_none() {
        return failed(&"this program is a function of AWS Lambda; `cargo lambda watch` runs it here", EXIT_USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error, 1),
    };
    runtime.block_on(async {
        let services = match start().await {
            Ok(services) => services,
            Err(error) => return failed(&error, EXIT_USAGE),
        };
        let drain = services.drain.clone();
        // Calls begin with warm connections, but none waits for one that can not be had.
        let _ = timeout(WARM_UP, services.warm_up()).await;
        let service = GrpcWebLayer::new().layer(service(services));
        let handler = service_fn(move |event| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(call::answer(service, S::NAME, methods, event).await) }
        });
        let serving = lambda_http::run_with_streaming_response(handler);
        match until_stopped(serving, &drain).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 1),
        }
    })
}

/// What the environment configures, with its secrets.
async fn start() -> Result<Services, Box<dyn std::error::Error>> {
    let secrets = secrets::from_env().await?;
    let source = |name: &str| secrets.get(name).cloned().or_else(|| std::env::var(name).ok());
    let config = Config::read_for(Place::Function, &source)?;
    telemetry::init(config.log_format);
    let database = match &config.stores.memory {
        MemoryStoreConfig::Absent => None,
        stores => Some(Database::from_config(stores)?.roles_with(MAX_CONNECTIONS)),
    };
    Ok(Services::from_config(&config, database)?)
}

/// Serves until it ends. SIGTERM, which Lambda sends where an extension asks for it, ends the stream under way with an error
/// that says that trying again helps.
async fn until_stopped<T>(serving: impl Future<Output = T>, drain: &Drain) -> T {
    let mut serving = std::pin::pin!(serving);
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            ended = &mut serving => return ended,
            _ = terminate.recv() => drain.end(),
        }
    }
    serving.await
}
