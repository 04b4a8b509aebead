//! Writes, lists, corrects, exports and forgets memories, and the same of conversations.

use std::process::ExitCode;

use agent_service::transport::{
    conversation_service,
    lambda::{self, Adapter},
    memory_service,
};

/// The calls that this function answers.
const MEMORY: &[&str] =
    &["AddMemories", "IngestDocument", "ListMemories", "UpdateMemory", "DeleteMemories", "ExportMemories"];
const CONVERSATION: &[&str] = &["ListSessions", "GetSession", "RenameSession", "DeleteSessions", "CancelTurn"];

fn main() -> ExitCode {
    lambda::serve(|apis| {
        Adapter::new(memory_service(apis.memory), MEMORY)
            .add_service(conversation_service(apis.conversation), CONVERSATION)
    })
}
