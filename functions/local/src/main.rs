//! `agent-local`: the agent service as one local server, and a command line client for it.

#![forbid(unsafe_code)]

mod banner;
mod client;
mod connection;
mod import;
mod migrate;
mod options;
mod reembed;
mod retry;
mod serve;
mod signals;

use std::{error::Error, process::ExitCode};

use agent_service::config::Config;
use clap::Parser as _;

use crate::options::{Command, Options};

/// Invalid configuration or arguments, as clap has it.
const EXIT_USAGE: u8 = 2;

/// 128 and the number of SIGINT, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

type CommandResult = Result<ExitCode, CommandError>;

/// An error to print; it decides the exit code.
struct CommandError {
    source: Box<dyn Error>,
    exit_code: ExitCode,
}

impl CommandError {
    /// The user has to change the configuration or the command line.
    fn configuration(source: impl Into<Box<dyn Error>>) -> Self {
        Self { source: source.into(), exit_code: ExitCode::from(EXIT_USAGE) }
    }
}

impl<E: Into<Box<dyn Error>>> From<E> for CommandError {
    fn from(source: E) -> Self {
        Self { source: source.into(), exit_code: ExitCode::FAILURE }
    }
}

fn main() -> ExitCode {
    keep_files_private();
    let options = Options::parse();
    let result = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let result = runtime.block_on(execute(options.command.unwrap_or(Command::Serve)));
            // A database start that a signal cut short blocks its thread; the process does not wait for it.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| {
        if is_broken_pipe(error.source.as_ref()) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {}", error.source);
        error.exit_code
    })
}

/// Whatever this process or a child of it creates is for this user only. Files with secrets or user data get their modes
/// explicitly as well.
fn keep_files_private() {
    #[cfg(unix)]
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Whether the reader of the output left first, as `head` does.
fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn execute(command: Command) -> CommandResult {
    match command {
        Command::Serve => Box::pin(serve::run(load_config()?)).await,
        Command::Migrate => Box::pin(migrate::run(load_config()?)).await,
        Command::Reembed(arguments) => Box::pin(reembed::run(load_config()?, arguments)).await,
        Command::Chat(arguments) => Box::pin(client::chat(arguments)).await,
        Command::Remember(arguments) => client::remember(arguments).await,
        Command::Recall(arguments) => client::recall(arguments).await,
        Command::Import(arguments) => Box::pin(import::run(arguments)).await,
    }
}

/// Reads the configuration from the environment and `.env`, and starts logging.
fn load_config() -> Result<Config, CommandError> {
    match dotenvy::dotenv() {
        Ok(_) => {}
        Err(error) if error.not_found() => {}
        // dotenvy's message would quote the line, which may hold a secret.
        Err(dotenvy::Error::LineParse(_, position)) => {
            return Err(CommandError::configuration(format!(
                ".env cannot be read: a line is not of the form NAME=value (at its character {position})"
            )));
        }
        Err(error) => return Err(format!(".env cannot be read: {error}").into()),
    }
    let config = Config::from_env().map_err(CommandError::configuration)?;
    agent_service::telemetry::init(config.log_format);
    Ok(config)
}
