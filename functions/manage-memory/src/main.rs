//! Writes, lists, corrects, exports and forgets memories.

use std::process::ExitCode;

use agent_service::{proto::agent_v1::memory_service_server::MemoryServiceServer, transport::lambda};

/// The calls that this function answers.
const METHODS: &[&str] =
    &["AddMemories", "IngestDocument", "ListMemories", "UpdateMemory", "DeleteMemories", "ExportMemories"];

fn main() -> ExitCode {
    lambda::serve(METHODS, |services| MemoryServiceServer::new(services.memory))
}
