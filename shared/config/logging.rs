use tracing_subscriber::EnvFilter;

use super::EnvReader;

pub(super) const RUST_LOG: &str = "RUST_LOG";
pub(super) const LOG_FORMAT: &str = "LOG_FORMAT";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Pretty,
    Json,
}

impl LogFormat {
    /// `None` = pretty on a terminal, JSON otherwise. `RUST_LOG` is only validated: the subscriber reads it itself.
    pub(super) fn read(reader: &mut EnvReader<'_>) -> Option<Self> {
        if reader.text(RUST_LOG).is_some_and(|filter| EnvFilter::try_new(filter).is_err()) {
            reader.report(RUST_LOG, "is not a list of tracing directives", "info,agent_service=debug");
        }
        reader.choice(LOG_FORMAT, &[("pretty", Self::Pretty), ("json", Self::Json)])
    }
}
