//! The tool calls of one round: executed by the server, or left to the client.

use std::{collections::BTreeSet, sync::Arc, vec};

use serde_json::Value;
use uuid::Uuid;

use super::{
    assistant::Assistant,
    context::{ApprovalAnswer, error_content},
    deletion::Permission,
    event::{ApprovalRequest, ShownMemory, ToolExecution, TurnEvent},
    profile::time_zone,
    round::RunningTurn,
};
use crate::{
    llm::{Message, ToolCall},
    tools::{ForgetArguments, MemoryTool, ToolContext, ToolFailure, ToolRunner, ValidatedCall},
};

/// In a turn, as many as facts are learned from one.
const MAX_SAVED: usize = 12;

pub(super) struct ToolCalls {
    pub(super) server: vec::IntoIter<ServerCall>,
    pub(super) client: Vec<ClientCall>,
}

pub(super) struct ServerCall {
    call: ToolCall,
    tool: MemoryTool,
    arguments: Value,
    /// By the client, in a resumed turn.
    is_approved: bool,
}

/// A call that the client runs, or one that it has to approve.
pub(super) struct ClientCall {
    call: ToolCall,
    /// The memories that the call forgets.
    approval: Option<Vec<ShownMemory>>,
}

/// Gives each call that may need approval an id of the server's own. Ids of a provider are unique within one answer only, so the
/// approval of one deletion, sent again, could approve another.
pub(super) fn replace_ids_of_deletions(calls: &mut [ToolCall]) {
    for call in calls {
        if matches!(MemoryTool::from_name(&call.name), Some(MemoryTool::Forget)) {
            call.id = format!("call_{}", Uuid::new_v4().simple());
        }
    }
}

impl ToolCalls {
    pub(super) fn new(calls: impl Iterator<Item = (ToolCall, ValidatedCall)>) -> Self {
        let (mut server, mut client) = (Vec::new(), Vec::new());
        for (call, ValidatedCall { runner, arguments }) in calls {
            match runner {
                ToolRunner::Client => client.push(ClientCall { call, approval: None }),
                ToolRunner::Server(tool) => server.push(ServerCall { call, tool, arguments, is_approved: false }),
            }
        }
        Self { server: server.into_iter(), client }
    }

    /// Approved calls of a resumed turn, and the events of the others: the model reads that they were not approved.
    pub(super) fn of_answers(turn: &mut RunningTurn, answers: Vec<ApprovalAnswer>) -> (Self, Vec<TurnEvent>) {
        let (mut server, mut events) = (Vec::new(), Vec::new());
        for ApprovalAnswer { call, is_approved } in answers {
            match turn.offer.validate(&call) {
                Ok(ValidatedCall { runner: ToolRunner::Server(tool), arguments }) if is_approved => {
                    server.push(ServerCall { call, tool, arguments, is_approved });
                }
                _ => events.push(finish(turn, call, Err(ToolFailure::NotApproved))),
            }
        }
        (Self { server: server.into_iter(), client: Vec::new() }, events)
    }
}

impl ClientCall {
    pub(super) fn id(&self) -> &str {
        &self.call.id
    }

    pub(super) fn into_event(self) -> TurnEvent {
        match self.approval {
            None => TurnEvent::ToolCalled(self.call),
            Some(memories) => TurnEvent::ApprovalRequested(ApprovalRequest { call: self.call, memories }),
        }
    }
}

impl ServerCall {
    /// The call is left to the client if it needs approval.
    pub(super) async fn run(self, assistant: &Assistant, turn: &mut RunningTurn) -> Result<TurnEvent, ClientCall> {
        match execute(assistant, turn, &self).await {
            Ok(Execution::Finished(value)) => Ok(finish(turn, self.call, Ok(value))),
            Ok(Execution::NeedsApproval(memories)) => Err(ClientCall { call: self.call, approval: Some(memories) }),
            Err(failure) => Ok(finish(turn, self.call, Err(failure))),
        }
    }
}

enum Execution {
    Finished(Value),
    NeedsApproval(Vec<ShownMemory>),
}

fn finish(turn: &mut RunningTurn, call: ToolCall, outcome: Result<Value, ToolFailure>) -> TurnEvent {
    let content = match &outcome {
        Ok(value) => value.to_string(),
        Err(failure) => error_content(&failure.to_string()),
    };
    turn.context.push(Message::Tool { call_id: call.id.clone(), content });
    TurnEvent::ToolExecuted(ToolExecution { call_id: call.id, name: call.name, outcome })
}

async fn execute(
    assistant: &Assistant,
    turn: &mut RunningTurn,
    ServerCall { tool, arguments, is_approved, .. }: &ServerCall,
) -> Result<Execution, ToolFailure> {
    let mut own_words = Arc::default();
    match tool {
        MemoryTool::Search => {}
        MemoryTool::Save if turn.context.saved >= MAX_SAVED => return Err(ToolFailure::TooManySaved),
        MemoryTool::Save => {
            turn.context.saved += 1;
            own_words = turn.context.own_words();
        }
        MemoryTool::Forget if *is_approved => {}
        MemoryTool::Forget => {
            let ForgetArguments { ids } =
                serde_json::from_value(arguments.clone()).map_err(|_| ToolFailure::InvalidArgument)?;
            let ids: BTreeSet<String> = ids.into_iter().collect();
            if let Permission::NeedsApproval(memories) = assistant.permit_deletion(turn, &ids).await? {
                return Ok(Execution::NeedsApproval(memories));
            }
        }
    }
    let context = ToolContext {
        user: turn.user.clone(),
        time_zone: time_zone(&turn.context.timezone),
        filter: turn.context.memory_filter(),
        session: turn.lease.as_ref().map(|lease| lease.key.session.clone()),
        own_words,
    };
    tool.run(&assistant.memory, &context, arguments.clone()).await.map(Execution::Finished)
}
