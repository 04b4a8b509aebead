//! Writes, lists, corrects, exports and forgets memories.

use std::process::ExitCode;

use agent_service::transport::{lambda, memory_service};

/// The calls that this function answers.
const METHODS: &[&str] =
    &["AddMemories", "IngestDocument", "ListMemories", "UpdateMemory", "DeleteMemories", "ExportMemories"];

fn main() -> ExitCode {
    lambda::serve(METHODS, |services| memory_service(services.memory))
}
