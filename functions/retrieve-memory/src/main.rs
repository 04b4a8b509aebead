//! Searches the memory. Its login may be one that only reads (`DATABASE_READ_URL`).

use std::process::ExitCode;

use agent_service::{proto::agent_v1::agent_service_server::AgentServiceServer, transport::lambda};

/// The calls that this function answers.
const METHODS: &[&str] = &["RetrieveMemory"];

fn main() -> ExitCode {
    lambda::serve(METHODS, |services| AgentServiceServer::new(services.agent))
}
