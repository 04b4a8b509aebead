//! Logging to standard error. Logs never contain user text, tokens or keys, whatever `RUST_LOG` asks for.

use std::{
    io::{self, IsTerminal as _},
    panic::{self, Location},
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, filter_fn},
    fmt,
    prelude::*,
};

use crate::config::LogFormat;

const DEFAULT_FILTER: &str = "info,sqlx::postgres::notice=warn";

/// Crates that log payloads, headers with tokens or user text below `info`.
const PAYLOAD_LOGGERS: [&str; 14] = [
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

/// Installs the subscriber, and a panic hook that logs the location of a panic without its message, which may quote user text.
///
/// Does nothing if a subscriber is installed already, as in tests. `None` = pretty on a terminal, JSON otherwise.
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
    // Filters of the registry, not of the layer: after `tracing::enabled!`, which sqlx asks for notices, a filter of a layer
    // also drops the thread's next record. Without the hint, disabled records would not be free.
    let payloads = filter_fn(has_no_payload).with_max_level_hint(LevelFilter::TRACE);
    if tracing_subscriber::registry().with(layer).with(filter).with(payloads).try_init().is_ok() {
        panic::set_hook(Box::new(|panic| {
            let location = panic.location().map_or_else(String::new, Location::to_string);
            tracing::error!(location, "panicked; this is a bug");
        }));
    }
}

fn has_no_payload(metadata: &Metadata<'_>) -> bool {
    let crate_name = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !PAYLOAD_LOGGERS.contains(&crate_name)
}
