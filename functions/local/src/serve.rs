//! `agent-local serve`: builds the server, runs it beside its background tasks, and shuts it down.

use std::{process::ExitCode, sync::Arc, time::Duration};

use agent_service::{
    composition::{App, SetupError},
    config::Config,
    learning::ExtractionWorker,
    memory::MemoryEngine,
    postgres::{Database, DatabaseError, StartupProgress, StartupStep},
    retention::RetentionSweep,
    transport::server::{Server, ServerError, TlsReload, raise_descriptor_limit},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    CommandError, CommandResult, EXIT_INTERRUPTED,
    banner::{print_banner, print_line},
    signals::{ReloadSignals, ShutdownSignals},
};

/// Pause between two checks whether users have so many memories that their vectors need an ANN index.
const INDEX_INTERVAL: Duration = Duration::from_mins(10);

/// Pause between two rounds of the retention sweep, and while users are left that are due.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);
const PARTIAL_SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Graceful shutdown: the first signal cancels `stop`, upon which open streams have `SHUTDOWN_GRACE_SECONDS` to end; a
/// second signal ends the process at once. The database outlives the last stream and the extraction worker.
pub async fn run(config: Config) -> CommandResult {
    raise_descriptor_limit();
    let mut signals = ShutdownSignals::install()?;
    let mut reload_signals = ReloadSignals::install()?;
    let database = Database::from_config(&config.stores.database).map_err(database_error)?;
    let started = tokio::select! {
        started = Box::pin(start(&config, &database)) => started?,
        // There is nothing to end yet.
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let Started { engine, server, retention, extraction_worker } = started;
    let tls = server.tls_reload();
    print_banner(&config, server.address());

    let (ready_sender, ready) = watch::channel(false);
    let stop = CancellationToken::new();
    let mut supervision = Box::pin(database.supervise(&ready_sender, progress_printer()));
    let code = tokio::select! {
        served = serve_and_learn(server, extraction_worker, ready.clone(), stop.clone()) => {
            served?;
            ExitCode::SUCCESS
        }
        supervised = &mut supervision => {
            supervised?;
            ExitCode::FAILURE
        }
        () = maintain_vectors(&engine, &database, ready.clone()) => ExitCode::FAILURE,
        () = delete_expired_rows(&retention, ready) => ExitCode::FAILURE,
        () = reload_on_signal(&mut reload_signals, &tls) => ExitCode::FAILURE,
        () = wait_for_forced_stop(&mut signals, &stop, config.server.shutdown_grace) => ExitCode::from(EXIT_INTERRUPTED),
    };
    // Postgres stops only after the other branches are dropped: it would wait for a connection that one of them has begun.
    drop(supervision);
    tracing::info!("stopped");
    Ok(code)
}

struct Started {
    engine: Arc<MemoryEngine>,
    server: Server,
    retention: RetentionSweep,
    extraction_worker: Option<Arc<ExtractionWorker>>,
}

/// May wait for the services that give credentials.
async fn start(config: &Config, database: &Database) -> Result<Started, CommandError> {
    let App { engine, apis, retention, extraction_worker, .. } =
        App::for_server(config, database.pools()).await.map_err(setup_error)?;
    let server = Server::bind(&config.server, apis).await.map_err(server_error)?;
    Ok(Started { engine, server, retention, extraction_worker })
}

/// Returns when both the server and the extraction worker have stopped; a server that fails stops the worker.
async fn serve_and_learn(
    server: Server,
    worker: Option<Arc<ExtractionWorker>>,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let learn = async {
        if let Some(worker) = worker {
            worker.run(ready.clone(), stop.clone()).await;
        }
    };
    let serve = async {
        let served = Box::pin(server.serve(ready.clone(), stop.clone())).await;
        stop.cancel();
        served
    };
    tokio::join!(serve, Box::pin(learn)).0
}

/// Completes copies of vectors from before there were any, and builds ANN indexes as users cross the threshold. It never
/// returns.
async fn maintain_vectors(engine: &MemoryEngine, database: &Database, mut ready: watch::Receiver<bool>) {
    loop {
        // `wait_for` fails only after the sender is dropped, which outlives this future.
        if ready.wait_for(|ready| *ready).await.is_ok() {
            if let Err(error) = engine.copy_half_vectors().await {
                tracing::warn!(%error, "failed to copy vectors in half precision; searches are slower without them");
            }
            if let Err(error) = engine.build_vector_index(database).await {
                tracing::warn!(%error, "failed to build the vector index; large searches are slow without it");
            }
        }
        tokio::time::sleep(INDEX_INTERVAL).await;
    }
}

/// Never returns. Several servers may do it at once.
async fn delete_expired_rows(retention: &RetentionSweep, mut ready: watch::Receiver<bool>) {
    loop {
        let mut pause = SWEEP_INTERVAL;
        // As above, it does not fail.
        if ready.wait_for(|ready| *ready).await.is_ok() {
            match retention.sweep().await {
                Ok(swept) => {
                    tracing::debug!(rows = swept.rows, "deleted expired rows");
                    if swept.is_partial {
                        pause = PARTIAL_SWEEP_INTERVAL;
                    }
                }
                Err(error) => tracing::warn!(%error, "failed to delete expired rows; trying again later"),
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Never returns.
async fn reload_on_signal(signals: &mut ReloadSignals, tls: &TlsReload) {
    loop {
        signals.next().await;
        tls.reload();
    }
}

/// Starts the graceful shutdown on the first signal and returns on the second.
async fn wait_for_forced_stop(signals: &mut ShutdownSignals, stop: &CancellationToken, grace: Duration) {
    signals.next().await;
    tracing::info!(grace_seconds = grace.as_secs_f64(), "stopping; a second signal ends at once");
    stop.cancel();
    signals.next().await;
}

fn progress_printer() -> StartupProgress {
    Arc::new(|step| match step {
        StartupStep::Unpacking => print_line("Unpacking the embedded Postgres (first start only) …"),
        StartupStep::Initializing => print_line("Creating an empty database (first start only) …"),
        StartupStep::Starting => print_line("Starting the database …"),
        StartupStep::Ready => print_line("Ready."),
    })
}

fn database_error(error: DatabaseError) -> CommandError {
    match error {
        DatabaseError::InvalidUrl { .. } => CommandError::configuration(error),
        error => error.into(),
    }
}

fn setup_error(error: SetupError) -> CommandError {
    if error.is_configuration_error() { CommandError::configuration(error) } else { error.into() }
}

fn server_error(error: ServerError) -> CommandError {
    match error {
        ServerError::TlsFile { .. } | ServerError::Tls(_) => CommandError::configuration(error),
        error => error.into(),
    }
}
