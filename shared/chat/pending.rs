//! Turns suspended until the client has run tools.

use std::borrow::Cow;

use super::{
    assistant::Assistant,
    context::{ApprovalAnswer, TurnContext, error_content},
    event::TurnFailure,
    input::ToolResult,
};
use crate::conversation::{CompletedPendingTurn, Lease, PendingTurnId, StoreError, ToolResultOutcome};

#[derive(Debug)]
pub struct ResumedTurn {
    pub(super) lease: Lease,
    pub(super) context: TurnContext,
    pub(super) id: PendingTurnId,
    /// To calls of server tools that waited for the client's approval.
    pub(super) approvals: Vec<ApprovalAnswer>,
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
                    let results = results.into_iter().map(|(id, bytes)| (id, text(bytes))).collect();
                    let approvals = context.push_tool_results(results);
                    ToolResultOutcome::Complete(Box::new(ResumedTurn { lease: lease.clone(), context, id, approvals }))
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
        call_ids: &[&str],
    ) -> Result<(), TurnFailure> {
        // Without a store no client tool is offered.
        let (Some(conversations), Some(lease)) = (&self.conversations, lease) else {
            return Err(TurnFailure::Internal);
        };
        let state = serde_json::to_vec(context).map_err(|_| TurnFailure::Internal)?;
        conversations.store_pending_turn(lease, &state, call_ids).await.map_err(|error| {
            tracing::warn!(%error, "the pending turn cannot be stored");
            TurnFailure::NotPersisted
        })
    }
}
