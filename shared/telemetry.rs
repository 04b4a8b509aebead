//! Logs: pretty on a terminal, JSON elsewhere. They never hold a user's text, tokens or keys.

use std::{
    io::{self, IsTerminal as _},
    panic::{self, Location},
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    fmt,
    prelude::*,
};

use crate::config::LogFormat;

/// What is logged where `RUST_LOG` is not set.
const DEFAULT_FILTER: &str = "info,sqlx::postgres::notice=warn";

/// Crates whose records below `info` quote what they carry: events, headers with tokens, texts of users.
const CARRIERS: [&str; 14] = [
    "aws_sdk_dynamodb",
    "aws_sigv4",
    "aws_smithy_http_client",
    "aws_smithy_runtime",
    "aws_smithy_runtime_api",
    "h2",
    "hyper",
    "hyper_util",
    "lambda_runtime",
    "lambda_runtime_api_client",
    "reqwest",
    "rustls",
    "tonic",
    "tonic_web",
];

/// Sends the process's logs to standard error, and with them the place of a panic but not its message, which may quote the
/// text that caused it.
///
/// Does nothing where a subscriber is installed already, as in tests.
pub fn init(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let format = format.unwrap_or(if io::stderr().is_terminal() { LogFormat::Pretty } else { LogFormat::Json });
    let layer = match format {
        LogFormat::Pretty => fmt::layer()
            .with_writer(io::stderr)
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .compact()
            .boxed(),
        LogFormat::Json => {
            fmt::layer().with_writer(io::stderr).json().flatten_event(true).with_span_list(false).boxed()
        }
    };
    // Whatever is asked for. Without a hint of its own it would take away that of the first, by which records that nobody wants
    // cost nothing, and are no reason to drop the next.
    let filter = filter.and(filter_fn(quotes_nothing).with_max_level_hint(LevelFilter::TRACE));
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        panic::set_hook(Box::new(|panic| {
            let location = panic.location().map_or_else(String::new, Location::to_string);
            tracing::error!(location, "a defect: the program panicked");
        }));
    }
}

fn quotes_nothing(metadata: &Metadata<'_>) -> bool {
    let of = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !CARRIERS.contains(&of)
}
