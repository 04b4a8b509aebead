//! AWS Lambda function: learns from finished turns, triggered by the DynamoDB stream of conversations or by a schedule.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use agent_service::transport::lambda;

fn main() -> ExitCode {
    lambda::learn()
}
