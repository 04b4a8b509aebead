//! AWS Lambda function: writes, lists, updates, exports and deletes memories, and manages conversations.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use agent_service::transport::{
    conversation_service,
    lambda::{self, Adapter},
    memory_service,
};

const MEMORY_METHODS: &[&str] =
    &["AddMemories", "IngestDocument", "ListMemories", "UpdateMemory", "DeleteMemories", "ExportMemories"];
const CONVERSATION_METHODS: &[&str] = &["ListSessions", "GetSession", "RenameSession", "DeleteSessions", "CancelTurn"];

fn main() -> ExitCode {
    lambda::serve(|apis| {
        Adapter::new(memory_service(apis.memory), MEMORY_METHODS)
            .add_service(conversation_service(apis.conversation), CONVERSATION_METHODS)
    })
}
