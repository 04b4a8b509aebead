//! Starts a function, hands its events to a handler, and shuts it down gracefully.

use std::{convert::Infallible, fmt::Display, process::ExitCode, time::Duration};

use lambda_runtime::{LambdaEvent, MetadataPrelude, Runtime, StreamResponse, layers::TracingLayer};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower::util::{MapFutureLayer, service_fn};

use super::{adapter::Adapter, secrets};
use crate::{
    composition::App,
    config::{Config, DatabaseConfig, EntryPoint},
    postgres::{Database, DatabaseError},
    service::{Apis, Drain},
    telemetry,
};

/// Per function instance, which handles one call at a time.
const MAX_CONNECTIONS: u32 = 2;
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// After SIGTERM. Lambda kills the process 0.5 to 2 seconds later.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(1500);
const EXIT_FAILURE: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Runs a function that serves RPCs, until Lambda ends it.
pub fn serve(adapter: impl FnOnce(Apis) -> Adapter) -> ExitCode {
    run(async |app| {
        let drain = app.apis.drain.clone();
        serve_until_terminated(&adapter(app.apis), &drain).await
    })
}

pub(super) fn run(handle: impl AsyncFnOnce(App) -> Result<(), lambda_runtime::Error>) -> ExitCode {
    if std::env::var_os("AWS_LAMBDA_RUNTIME_API").is_none() {
        return fail(&"this program is an AWS Lambda function; run it locally with `cargo lambda watch`", EXIT_USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, EXIT_FAILURE),
    };
    runtime.block_on(Box::pin(async {
        let (app, database) = match start().await {
            Ok(started) => started,
            Err(error) => return fail(&error, EXIT_USAGE),
        };
        // Opens connections before the first call, but does not delay it for a store that is slow or down.
        let warm_up = async { tokio::join!(check_database(database.as_ref()), app.warm_up()).0 };
        match timeout(WARM_UP_TIMEOUT, Box::pin(warm_up)).await {
            Ok(Err(error @ DatabaseError::NotIsolated(_))) => return fail(&error, EXIT_FAILURE),
            Ok(Err(error)) => tracing::warn!(%error, "the database is not ready"),
            Ok(Ok(())) | Err(_) => {}
        }
        match handle(app).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, EXIT_FAILURE),
        }
    }))
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}

async fn start() -> Result<(App, Option<Database>), Box<dyn std::error::Error>> {
    let secrets = secrets::resolve_env().await?;
    let source = |name: &str| secrets.get(name).cloned().or_else(|| std::env::var(name).ok());
    let config = Config::read_for(EntryPoint::Function, &source)?;
    telemetry::init(config.log_format);
    let database = match &config.stores.database {
        DatabaseConfig::Absent => None,
        database => Some(Database::from_config(database)?),
    };
    let pools = database.as_ref().map(|database| database.pools_with_limit(MAX_CONNECTIONS));
    Ok((App::from_config(&config, pools)?, database))
}

/// Includes the check that row-level security isolates users.
async fn check_database(database: Option<&Database>) -> Result<(), DatabaseError> {
    match database {
        Some(database) => database.check().await,
        None => Ok(()),
    }
}

/// On SIGTERM, which Lambda sends to functions with an extension, cancels the running call: its stream ends with a retryable
/// error. Returns when the runtime has taken the last byte.
async fn serve_until_terminated(adapter: &Adapter, drain: &Drain) -> Result<(), lambda_runtime::Error> {
    let handler = service_fn(move |event: LambdaEvent<Value>| async move {
        let (head, stream) = adapter.handle(event.payload, event.context.deadline).await.into_parts();
        let metadata_prelude = MetadataPrelude { status_code: head.status, headers: head.headers, cookies: Vec::new() };
        Ok::<_, Infallible>(StreamResponse { metadata_prelude, stream })
    });
    let running = TaskTracker::new();
    let tracker = running.clone();
    let runtime = Runtime::new(handler)
        .layer(TracingLayer::new())
        .layer(MapFutureLayer::new(move |invocation| tracker.track_future(invocation)));
    let mut serving = std::pin::pin!(runtime.run());
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            result = &mut serving => return result,
            _ = terminate.recv() => {}
        }
        drain.cancel_calls();
        running.close();
        return tokio::select! {
            result = serving => result,
            _ = timeout(DRAIN_TIMEOUT, running.wait()) => Ok(()),
        };
    }
    serving.await
}
