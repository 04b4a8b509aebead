//! Keeping what was learned from turns of conversations: once each, and never after the user had everything forgotten.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    Added, MemoryEngine, MemoryError, NewMemory,
    engine::{Batch, MANY_ROWS_TIMEOUT, in_time, within},
    store::learned,
};
use crate::identity::{RequestId, SessionId, UserId};

/// What is learned from a turn.
#[derive(Debug, Clone)]
pub struct Lesson<'a> {
    /// The conversation of the turn.
    pub session: &'a SessionId,
    /// The request that ended the turn.
    pub request: &'a RequestId,
    /// When the turn was over.
    pub said_at: Timestamp,
    /// What is to be kept.
    pub memories: Vec<NewMemory>,
    /// Whether nothing more is to be learned from the turn.
    pub is_last: bool,
}

/// What became of a lesson.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// Its memories are kept.
    Added(Added),
    /// Everything was learned from the turn before; nothing has changed.
    LearnedBefore,
    /// The user had everything forgotten since the turn; nothing is kept.
    Forgotten,
}

impl MemoryEngine {
    /// Keeps what was learned from a turn, unless all was learned from it before or the user had everything forgotten since.
    /// That is decided in the transaction that writes.
    ///
    /// # Errors
    /// The embedder or the database failed; then nothing is kept.
    pub async fn learn(&self, user: &UserId, lesson: Lesson<'_>) -> Result<Kept, MemoryError> {
        let Lesson { session, request, said_at, memories, is_last } = lesson;
        let count = memories.len();
        let mut batch = Batch::of(memories);
        within(MANY_ROWS_TIMEOUT, self.leave_out_known(user, &mut batch)).await?;
        let texts: Vec<&str> = batch.texts().collect();
        let vectors = self.embed(&texts).await?;
        let vectors: HashMap<String, Vec<f32>> = batch.row_ids().cloned().zip(vectors).collect();
        let write = async {
            let mut change = self.change_many(user).await?;
            let transaction = change.transaction();
            if learned::is_forgotten(transaction, user, said_at).await? {
                // Not even the lock is to stay, which would be the only row of the user.
                return Ok(Kept::Forgotten);
            }
            if learned::was_learned(transaction, user, session, request).await? {
                return Ok(Kept::LearnedBefore);
            }
            if is_last {
                learned::mark(transaction, user, session, request).await?;
            }
            let added = self.write_in(user, &mut change, &mut batch, &vectors).await?;
            change.commit().await?;
            Ok(Kept::Added(Added { ids: batch.ids(), added, unchanged: count - added }))
        };
        within(MANY_ROWS_TIMEOUT, write).await
    }

    /// Whether everything was learned from a turn already, or the user had everything forgotten since: then there is nothing
    /// to do.
    ///
    /// # Errors
    /// The database failed.
    pub async fn is_settled(
        &self,
        user: &UserId,
        session: &SessionId,
        request: &RequestId,
        said_at: Timestamp,
    ) -> Result<bool, MemoryError> {
        in_time(async {
            let mut transaction = self.service.begin(user).await?;
            let settled = learned::is_forgotten(&mut transaction, user, said_at).await?
                || learned::was_learned(&mut transaction, user, session, request).await?;
            transaction.commit().await?;
            Ok(settled)
        })
        .await
    }
}
