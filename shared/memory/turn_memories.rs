//! Keeping what was learned from turns of conversations: once each, and never after the user had everything forgotten.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    AddOutcome, MemoryEngine, MemoryError, NewMemory,
    engine::{BULK_TIMEOUT, WriteBatch, within, within_timeout},
};
use crate::{
    identity::{RequestId, SessionId, UserId},
    turn_ledger,
};

/// What is learned from a turn.
#[derive(Debug, Clone)]
pub struct TurnMemories<'a> {
    /// The conversation of the turn.
    pub session: &'a SessionId,
    /// The request that ended the turn.
    pub request: &'a RequestId,
    /// When the turn was over.
    pub turn_ended_at: Timestamp,
    /// What is to be kept.
    pub memories: Vec<NewMemory>,
    /// Whether nothing more is to be learned from the turn.
    pub is_final: bool,
}

/// What became of a lesson.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnWriteOutcome {
    /// Its memories are kept.
    Added(AddOutcome),
    /// Everything was learned from the turn before; nothing has changed.
    AlreadyExtracted,
    /// The user had everything forgotten since the turn; nothing is kept.
    UserErased,
}

impl MemoryEngine {
    /// Keeps what was learned from a turn, unless all was learned from it before or the user had everything forgotten since.
    /// That is decided in the transaction that writes.
    ///
    /// # Errors
    /// The embedder or the database failed; then nothing is kept.
    pub async fn add_turn_memories(
        &self,
        user: &UserId,
        lesson: TurnMemories<'_>,
    ) -> Result<TurnWriteOutcome, MemoryError> {
        let TurnMemories { session, request, turn_ended_at: said_at, memories, is_final: is_last } = lesson;
        let count = memories.len();
        let mut batch = WriteBatch::from_memories(memories);
        within(BULK_TIMEOUT, self.drop_unchanged(user, &mut batch)).await?;
        let texts: Vec<&str> = batch.texts().collect();
        let vectors = self.embed(&texts).await?;
        let vectors: HashMap<String, Vec<f32>> = batch.row_ids().cloned().zip(vectors).collect();
        let write = async {
            let mut change = self.begin_bulk(user).await?;
            let transaction = change.inner();
            if turn_ledger::is_erased_since(transaction, user, said_at).await? {
                // Not even the lock is to stay, which would be the only row of the user.
                return Ok(TurnWriteOutcome::UserErased);
            }
            if turn_ledger::is_extracted(transaction, user, session, request).await? {
                return Ok(TurnWriteOutcome::AlreadyExtracted);
            }
            if is_last {
                turn_ledger::mark_extracted(transaction, user, session, request).await?;
            }
            let added = self.write_batch(user, &mut change, &mut batch, &vectors).await?;
            change.commit().await?;
            Ok(TurnWriteOutcome::Added(AddOutcome { ids: batch.ids(), added, unchanged: count - added }))
        };
        within(BULK_TIMEOUT, write).await
    }

    /// Whether everything was learned from a turn already, or the user had everything forgotten since: then there is nothing
    /// to do.
    ///
    /// # Errors
    /// The database failed.
    pub async fn is_turn_settled(
        &self,
        user: &UserId,
        session: &SessionId,
        request: &RequestId,
        said_at: Timestamp,
    ) -> Result<bool, MemoryError> {
        within_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let settled = turn_ledger::is_erased_since(&mut transaction, user, said_at).await?
                || turn_ledger::is_extracted(&mut transaction, user, session, request).await?;
            transaction.commit().await?;
            Ok(settled)
        })
        .await
    }
}
