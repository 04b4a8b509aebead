//! Searches the memory. Its login may be one that only reads (`DATABASE_READ_URL`).

use std::process::ExitCode;

use agent_service::transport::{agent_service, lambda};

/// The calls that this function answers.
const METHODS: &[&str] = &["RetrieveMemory"];

fn main() -> ExitCode {
    lambda::serve(METHODS, |services| agent_service(services.agent))
}
