//! Memories extracted from turns are written at most once a turn, and never after the user was erased.

use jiff::Timestamp;

use super::{
    AddOutcome, EmbeddingBudget, MemoryEngine, MemoryError, NewMemory,
    timeouts::{with_bulk_timeout, with_timeout},
};
use crate::{
    identity::{RequestId, SessionId, UserId},
    turn_ledger,
};

#[derive(Debug, Clone)]
pub struct TurnMemories<'a> {
    pub session: &'a SessionId,
    pub request: &'a RequestId,
    pub turn_ended_at: Timestamp,
    pub memories: Vec<NewMemory>,
    /// The extraction from this turn is complete.
    pub is_final: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnWriteOutcome {
    Added(AddOutcome),
    AlreadyExtracted,
    /// Data of the user was deleted after the turn.
    UserErased,
}

impl MemoryEngine {
    /// Whether to write is decided in the transaction that writes.
    pub async fn add_turn_memories(
        &self,
        user: &UserId,
        turn: TurnMemories<'_>,
    ) -> Result<TurnWriteOutcome, MemoryError> {
        let TurnMemories { session, request, turn_ended_at, memories, is_final } = turn;
        let mut batch = self.prepare_batch(user, memories, EmbeddingBudget::unlimited()).await?;
        let write = async {
            let mut transaction = self.begin_bulk(user).await?;
            let ledger = transaction.inner();
            if turn_ledger::is_erased_since(ledger, user, turn_ended_at).await? {
                // Without a commit the row lock does not stay behind as the user's only row.
                return Ok(TurnWriteOutcome::UserErased);
            }
            if turn_ledger::is_extracted(ledger, user, session, request).await? {
                return Ok(TurnWriteOutcome::AlreadyExtracted);
            }
            if is_final {
                turn_ledger::mark_extracted(ledger, user, session, request).await?;
            }
            let added = self.write_batch(user, &mut transaction, &mut batch).await?;
            transaction.commit().await?;
            Ok(TurnWriteOutcome::Added(batch.outcome(added)))
        };
        with_bulk_timeout(write).await
    }

    /// The extraction is complete, or the user was erased after the turn.
    pub async fn is_turn_settled(
        &self,
        user: &UserId,
        session: &SessionId,
        request: &RequestId,
        turn_ended_at: Timestamp,
    ) -> Result<bool, MemoryError> {
        with_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let is_settled = turn_ledger::is_erased_since(&mut transaction, user, turn_ended_at).await?
                || turn_ledger::is_extracted(&mut transaction, user, session, request).await?;
            transaction.commit().await?;
            Ok(is_settled)
        })
        .await
    }
}
