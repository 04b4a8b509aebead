//! AWS Lambda function: streams answers grounded in memory.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use agent_service::transport::{
    agent_service,
    lambda::{self, Adapter},
};

const METHODS: &[&str] = &["StreamChat"];

fn main() -> ExitCode {
    lambda::serve(|apis| Adapter::new(agent_service(apis.agent), METHODS))
}
