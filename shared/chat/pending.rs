//! Turns suspended until the client has run tools.

use std::borrow::Cow;

use super::{
    assistant::Assistant,
    context::{TurnContext, error_content},
    event::TurnFailure,
    input::ToolResult,
};
use crate::{
    conversation::{CompletedPendingTurn, Lease, PendingTurnId, StoreError, ToolResultOutcome},
    llm::ToolCall,
};

#[derive(Debug)]
pub struct ResumedTurn {
    pub(super) lease: Lease,
    pub(super) context: TurnContext,
    pub(super) id: PendingTurnId,
}

impl ResumedTurn {
    #[must_use]
    pub fn language_tag(&self) -> &str {
        &self.context.language_tag
    }
}

impl Assistant {
    /// After an error the result is not recorded.
    pub async fn record_tool_result(
        &self,
        lease: &Lease,
        result: &ToolResult,
    ) -> Result<ToolResultOutcome<Box<ResumedTurn>>, StoreError> {
        let Some(conversations) = &self.conversations else { return Ok(ToolResultOutcome::UnknownCall) };
        let content = match &result.outcome {
            Ok(content) => Cow::Borrowed(content),
            Err(message) => Cow::Owned(error_content(message)),
        };
        let outcome = conversations.record_tool_result(lease, &result.call_id, content.as_bytes()).await?;
        Ok(outcome.and_then(|CompletedPendingTurn { state, results, id }| {
            match serde_json::from_slice::<TurnContext>(&state) {
                Ok(mut context) => {
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    context.push_tool_results(results.into_iter().map(|(id, bytes)| (id, text(bytes))).collect());
                    ToolResultOutcome::Complete(Box::new(ResumedTurn { lease: lease.clone(), context, id }))
                }
                Err(error) => {
                    tracing::error!(%error, "a pending turn of another version of the service cannot be resumed");
                    ToolResultOutcome::UnknownCall
                }
            }
        }))
    }

    pub(super) async fn store_pending_turn(
        &self,
        lease: Option<&Lease>,
        context: &TurnContext,
        calls: &[ToolCall],
    ) -> Result<(), TurnFailure> {
        // Without a store no client tool is offered.
        let (Some(conversations), Some(lease)) = (&self.conversations, lease) else {
            return Err(TurnFailure::Internal);
        };
        let state = serde_json::to_vec(context).map_err(|_| TurnFailure::Internal)?;
        let call_ids: Vec<&str> = calls.iter().map(|call| call.id.as_str()).collect();
        conversations.store_pending_turn(lease, &state, &call_ids).await.map_err(|error| {
            tracing::warn!(%error, "the pending turn cannot be stored");
            TurnFailure::NotPersisted
        })
    }
}
