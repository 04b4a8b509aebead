//! Learns from turns that are over, as the stream of the table of conversations tells of them.

use std::process::ExitCode;

use agent_service::transport::lambda;

fn main() -> ExitCode {
    lambda::learn()
}
