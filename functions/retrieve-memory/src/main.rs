//! AWS Lambda function: retrieves memories. A read-only login (`DATABASE_READ_URL`) suffices.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use agent_service::transport::{
    agent_service,
    lambda::{self, Adapter},
};

const METHODS: &[&str] = &["RetrieveMemory"];

fn main() -> ExitCode {
    lambda::serve(|apis| Adapter::new(agent_service(apis.agent), METHODS))
}
