//! `agent-local`: the agent service as one local server, and a command line client for it.

mod client;
mod connection;
mod import;
mod options;
mod reembed;
mod serve;

use std::process::ExitCode;

use agent_service::config::Config;
use clap::Parser as _;

use crate::options::{Command, Options};

/// The exit code of a configuration that can not be used, as for wrong arguments.
const EXIT_USAGE: u8 = 2;

/// The exit code of a program that a signal ended: 128 and the number of SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let done = runtime.block_on(async {
        match options.command {
            None | Some(Command::Serve) => with_config(serve::run).await,
            Some(Command::Migrate) => with_config(serve::migrate).await,
            Some(Command::Reembed(arguments)) => with_config(|config| reembed::run(config, arguments)).await,
            Some(Command::Chat(arguments)) => client::chat(arguments).await,
            Some(Command::Remember(arguments)) => client::remember(arguments).await,
            Some(Command::Recall(arguments)) => client::recall(arguments).await,
            Some(Command::Import(arguments)) => import::run(arguments).await,
        }
    });
    // A start of the database that a signal cut short would hold up the end. It ends with the process.
    runtime.shutdown_background();
    done.unwrap_or_else(|error| failed(&*error))
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// What a command comes to; an error is one sentence for the user.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

/// Reads the configuration from the environment and a `.env` file, and runs a command with it.
async fn with_config<F: Future<Output = Outcome>>(run: impl FnOnce(Config) -> F) -> Outcome {
    match dotenvy::dotenv() {
        Ok(_) => {}
        Err(error) if error.not_found() => {}
        // Half a configuration is worse than none. The error itself would quote the line, which may be a secret.
        Err(dotenvy::Error::LineParse(_, position)) => {
            eprintln!("error: .env can not be read: a line is not NAME=value (problem at its character {position})");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        Err(error) => return Err(format!(".env can not be read: {error}").into()),
    }
    match Config::from_env() {
        Ok(config) => {
            agent_service::telemetry::init(config.log_format);
            run(config).await
        }
        Err(mistakes) => Ok(misconfigured(&mistakes)),
    }
}

/// Says what is wrong with the configuration.
fn misconfigured(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(EXIT_USAGE)
}
