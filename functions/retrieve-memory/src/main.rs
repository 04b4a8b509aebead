//! Searches the memory. Its login may be one that only reads (`DATABASE_READ_URL`).

use std::process::ExitCode;

use agent_service::transport::{
    agent_service,
    lambda::{self, Adapter},
};

/// The calls that this function answers.
const METHODS: &[&str] = &["RetrieveMemory"];

fn main() -> ExitCode {
    lambda::serve(|apis| Adapter::new(agent_service(apis.agent), METHODS))
}
