//! Running the server.

use std::{
    io::{IsTerminal as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use agent_service::{
    config::{AuthMode, Config, DatabaseConfig, DemoReason, EmbeddingConfig, ModelConfig},
    embedding::EmbedderSetupError,
    llm::ModelSetupError,
    memory::MemoryEngine,
    postgres::{Database, DatabaseError, StartupStep},
    service::{Services, SetupError},
    transport::server::{Server, ServerError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{EXIT_INTERRUPTED, Outcome, misconfigured, options};

/// Runs the server until a signal stops it.
pub async fn run(config: Config) -> Outcome {
    let mut signals = Signals::install()?;
    let database = match Database::from_config(&config.stores.database) {
        Err(error @ DatabaseError::InvalidUrl { .. }) => return Ok(misconfigured(&error)),
        database => database?,
    };
    let services = match Services::from_config(&config, database.pools()) {
        Err(
            error @ (SetupError::Model(ModelSetupError::Responses(_))
            | SetupError::Embedder(EmbedderSetupError::Model(_))
            | SetupError::Prices(_)
            | SetupError::Conversations(_)
            | SetupError::Tools(_)),
        ) => return Ok(misconfigured(&error)),
        services => services?,
    };
    let (engine, learning) = (services.engine.clone(), services.extraction_worker.clone());
    let server = match Server::bind(&config.server, services).await {
        Err(error @ (ServerError::TlsFile { .. } | ServerError::Tls(_))) => return Ok(misconfigured(&error)),
        server => server?,
    };
    print_banner(&config, server.address());

    let (ready, is_ready) = watch::channel(false);
    let stop = CancellationToken::new();
    // What is being learned is put back before the database goes.
    let learning = async {
        if let Some(learning) = learning {
            learning.run(ready.subscribe(), stop.clone()).await;
        }
    };
    let serving = async {
        let serve = async {
            let result = server.serve(is_ready, stop.clone()).await;
            stop.cancel();
            result
        };
        tokio::join!(serve, learning).0
    };
    let stopping = async {
        signals.next().await;
        tracing::info!(
            grace_seconds = config.server.shutdown_grace.as_secs_f64(),
            "stopping; a second signal ends at once"
        );
        stop.cancel();
        signals.next().await;
    };
    let code = tokio::select! {
        result = serving => {
            result?;
            ExitCode::SUCCESS
        }
        // The database is kept until the last stream has ended.
        result = database.supervise(&ready, progress()) => {
            result?;
            ExitCode::FAILURE
        }
        () = keep_index(&engine, &database, ready.subscribe()) => ExitCode::FAILURE,
        () = stopping => ExitCode::from(EXIT_INTERRUPTED),
    };
    tracing::info!("stopped");
    Ok(code)
}

/// Sees to it that users with very many memories have an index of vectors. It never ends.
async fn keep_index(engine: &MemoryEngine, database: &Database, mut ready: watch::Receiver<bool>) {
    const INTERVAL: Duration = Duration::from_mins(10);
    loop {
        // The sender lives as long as this.
        if ready.wait_for(|ready| *ready).await.is_ok()
            && let Err(error) = engine.build_vector_index(database).await
        {
            tracing::warn!(%error, "the index of vectors can not be built; large searches are slow without it");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Brings the tables up to date.
pub async fn migrate(config: Config) -> Outcome {
    if matches!(config.stores.database, DatabaseConfig::Embedded { .. }) {
        return Err(
            "there is nothing to migrate: without DATABASE_URL the server keeps its own Postgres up to date".into()
        );
    }
    Database::from_config(&config.stores.database)?.migrate().await?;
    println!("The tables are up to date.");
    Ok(ExitCode::SUCCESS)
}

/// Signals that ask the program to stop.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn install() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Signals that ask the program to stop.
#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn install() -> std::io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Tells people what the first start is busy with.
fn progress() -> Arc<dyn Fn(StartupStep) + Send + Sync> {
    Arc::new(|step| match step {
        StartupStep::Unpacking => say("Unpacking the embedded Postgres (only once) …"),
        StartupStep::Initialising => say("Making an empty database (only once) …"),
        StartupStep::Starting => say("Starting the database …"),
        StartupStep::Ready => say("Ready."),
    })
}

/// Says where the server is, how it answers and how to try it.
fn print_banner(config: &Config, address: SocketAddr) {
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let mode = match &config.model {
        ModelConfig::Demo(demo) => match demo.reason {
            DemoReason::Chosen => "demo: canned answers, no model is asked (DEMO_MODE)".to_owned(),
            DemoReason::NoKey => {
                "DEMO: canned answers, because no key is set; set LLM_API_KEY for a real model".to_owned()
            }
        },
        ModelConfig::Provider(config) => {
            let primary = &config.primary;
            let fallbacks: Vec<_> = config.fallbacks.iter().map(|fallback| fallback.model.as_str()).collect();
            let then = if fallbacks.is_empty() { String::new() } else { format!(", else {}", fallbacks.join(", ")) };
            format!("{} by {} at {}{then}", primary.model, primary.provider.name(), primary.base_url)
        }
    };
    let memory = match &config.stores.database {
        DatabaseConfig::Embedded { data_dir } => format!("embedded Postgres in {}", data_dir.display()),
        DatabaseConfig::Postgres { .. } => "Postgres at DATABASE_URL".to_owned(),
        DatabaseConfig::Absent => "none".to_owned(),
    };
    let embedding = match &config.embedding {
        EmbeddingConfig::Hashed => "hashed n-grams (spelling, not meaning)".to_owned(),
        EmbeddingConfig::Local { model_dir } => format!("the model in {}", model_dir.display()),
        EmbeddingConfig::OpenAi { model, dimension, .. } => format!("{model}, {dimension} dimensions"),
    };
    let callers = match config.auth.mode {
        AuthMode::None => "not authenticated: only this machine can reach the port",
        AuthMode::Jwt => "by bearer tokens (AUTH=jwt)",
        AuthMode::Gateway => "authenticated by the gateway (AUTH=gateway): nobody else may reach the port",
    };
    // Whoever listens on all addresses is reached on this one as well.
    let reachable = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    };
    let page = if config.server.web_page { format!("\n  page       {scheme}://{reachable}/") } else { String::new() };
    // Where nobody watches, cargo is no part of the command.
    let program = if std::io::stdout().is_terminal() { "cargo run --" } else { "agent-local" };
    let mut other = match format!("{scheme}://{reachable}") {
        default if default == options::DEFAULT_ADDR => String::new(),
        url => format!(" --addr {url}"),
    };
    if config.server.tls.is_some() {
        other.push_str(" --ca-file FILE");
    }
    say(&format!(
        "agent-local {version}
  address    {scheme}://{address} (gRPC and gRPC-Web){page}
  answers    {mode}
  memory     {memory}
  embedding  {embedding}
  callers    {callers}

Try it in a second terminal:
  {program} chat{other} \"帮我制定高数复习计划\"
  {program} remember{other} \"I mix up eigenvalues and eigenvectors\"
  {program} recall{other} \"what do I find hard in linear algebra?\"
",
        version = env!("CARGO_PKG_VERSION"),
    ));
}

/// Prints lines for people. Whoever read them may have gone, as `head` does, and the server goes on without them.
fn say(lines: &str) {
    let _ = writeln!(std::io::stdout(), "{lines}");
}
