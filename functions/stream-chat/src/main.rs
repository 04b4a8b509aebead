//! Streams answers that are grounded in memory.

use std::process::ExitCode;

use agent_service::transport::{
    agent_service,
    lambda::{self, Adapter},
};

/// The calls that this function answers.
const METHODS: &[&str] = &["StreamChat"];

fn main() -> ExitCode {
    lambda::serve(|apis| Adapter::new(agent_service(apis.agent), METHODS))
}
