//! AWS Lambda: a service as a function whose answers stream as gRPC-Web, through a Function URL or a REST API.
//!
//! A client that leaves is told to nobody here, and nothing runs after an answer has ended. So a call has a deadline: the
//! function's remaining time, or the client's `grpc-timeout`.

mod adapter;
mod event;
#[cfg(feature = "dynamodb")]
mod learn;
mod response_body;
mod secrets;

use std::{convert::Infallible, process::ExitCode, time::Duration};

pub use adapter::{Adapter, GrpcService};
#[cfg(feature = "dynamodb")]
pub use learn::learn;
pub use response_body::ResponseBody;

use lambda_runtime::{LambdaEvent, MetadataPrelude, Runtime, StreamResponse, layers::TracingLayer};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower::util::{MapFutureLayer, service_fn};

use crate::{
    composition::App,
    config::{Config, DatabaseConfig, EntryPoint},
    postgres::{Database, DatabaseError},
    service::{Apis, Drain},
    telemetry,
};

/// Connections of one function, which answers one call at a time.
const MAX_CONNECTIONS: u32 = 2;
/// Longest that connections are opened for before the first call.
const WARM_UP: Duration = Duration::from_secs(2);
/// Longest that an answer under way may take to end after SIGTERM. Lambda itself gives half a second to two seconds.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// The exit code of a configuration that can not be used.
const EXIT_USAGE: u8 = 2;

/// Runs a function that answers some calls of our services, until Lambda ends it.
pub fn serve(adapter: impl FnOnce(Apis) -> Adapter) -> ExitCode {
    run(async |app| {
        let drain = app.apis.drain.clone();
        serve_until_stopped(&adapter(app.apis), &drain).await
    })
}

/// Runs a function that handles events, until Lambda ends it.
fn run(handle: impl AsyncFnOnce(App) -> Result<(), lambda_runtime::Error>) -> ExitCode {
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
        let (app, database) = match start().await {
            Ok(started) => started,
            Err(error) => return failed(&error, EXIT_USAGE),
        };
        // Calls begin with warm connections, but none waits for one that can not be had.
        let ready = async { tokio::join!(check(database.as_ref()), app.warm_up()).0 };
        match timeout(WARM_UP, ready).await {
            Ok(Err(error @ DatabaseError::NotIsolated(_))) => return failed(&error, 1),
            Ok(Err(error)) => tracing::warn!(%error, "the database is not ready"),
            Ok(Ok(())) | Err(_) => {}
        }
        match handle(app).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 1),
        }
    })
}

/// What the environment configures, with its secrets.
async fn start() -> Result<(App, Option<Database>), Box<dyn std::error::Error>> {
    let secrets = secrets::from_env().await?;
    let source = |name: &str| secrets.get(name).cloned().or_else(|| std::env::var(name).ok());
    let config = Config::read_for(EntryPoint::Function, &source)?;
    telemetry::init(config.log_format);
    let database = match &config.stores.database {
        DatabaseConfig::Absent => None,
        stores => Some(Database::from_config(stores)?),
    };
    let roles = database.as_ref().map(|database| database.pools_with_limit(MAX_CONNECTIONS));
    Ok((App::from_config(&config, roles)?, database))
}

/// Whether the database keeps users apart, if there is one.
async fn check(database: Option<&Database>) -> Result<(), DatabaseError> {
    match database {
        Some(database) => database.check().await,
        None => Ok(()),
    }
}

/// Answers events until SIGTERM: then a stream under way ends with an error that says that trying again helps, and this when its
/// last byte has been taken. Lambda sends SIGTERM to a function that has an extension.
async fn serve_until_stopped(adapter: &Adapter, drain: &Drain) -> Result<(), lambda_runtime::Error> {
    let handler = service_fn(move |event: LambdaEvent<Value>| async move {
        let (head, stream) = adapter.handle(event.payload, event.context.deadline).await.into_parts();
        let metadata_prelude = MetadataPrelude { status_code: head.status, headers: head.headers, cookies: Vec::new() };
        Ok::<_, Infallible>(StreamResponse { metadata_prelude, stream })
    });
    let under_way = TaskTracker::new();
    let tracker = under_way.clone();
    let runtime = Runtime::new(handler)
        .layer(TracingLayer::new())
        .layer(MapFutureLayer::new(move |answering| tracker.track_future(answering)));
    let mut serving = std::pin::pin!(runtime.run());
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            ended = &mut serving => return ended,
            _ = terminate.recv() => {}
        }
        drain.cancel_calls();
        under_way.close();
        return tokio::select! {
            ended = serving => ended,
            _ = timeout(LAST_WORDS, under_way.wait()) => Ok(()),
        };
    }
    serving.await
}
