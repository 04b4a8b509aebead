//! Logs: pretty on a terminal, JSON elsewhere. They never hold a user's text, tokens or keys.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::Reader;

pub(crate) const RUST_LOG: &str = "RUST_LOG";
pub(crate) const LOG_FORMAT: &str = "LOG_FORMAT";

/// What is logged where `RUST_LOG` is not set.
const DEFAULT_FILTER: &str = "info";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        if reader.text(RUST_LOG).is_some_and(|filter| EnvFilter::try_new(filter).is_err()) {
            reader.mistake(RUST_LOG, "is not a list of directives", "info,agent_service=debug");
        }
        reader.choice(LOG_FORMAT, &[("pretty", Self::Pretty), ("json", Self::Json)])
    }
}

/// Sends the process's logs to standard error.
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
    let _already_installed = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
