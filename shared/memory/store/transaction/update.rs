use sqlx::types::Json;

use super::{
    super::{inverted_index::FollowingTurns, memory},
    MemoryTransaction, NewMemoryRow, NewVector,
};
use crate::memory::{Memory, MemoryUpdate};

const ARCHIVE: &str = include_str!("../sql/archive_memory.sql");
const ARCHIVE_CHANGED: &str = include_str!("../sql/archive_changed.sql");
const UPDATE: &str = include_str!("../sql/update_memory.sql");

impl MemoryTransaction<'_> {
    /// Archives the former version, unless nothing differs. `None`: there is no such memory.
    pub(crate) async fn update(
        &mut self,
        update: &MemoryUpdate,
        vector: Option<NewVector<'_>>,
        model_key: &str,
    ) -> Result<Option<Memory>, sqlx::Error> {
        let id = &update.id;
        let Some(before) = memory(&mut self.transaction, self.user, id).await? else { return Ok(None) };
        let is_different = update.content.as_ref().is_some_and(|content| *content != before.content)
            || update.tags.as_ref().is_some_and(|tags| *tags != before.tags)
            || update.metadata.as_ref().is_some_and(|metadata| *metadata != before.metadata);
        if !is_different {
            return Ok(Some(before));
        }
        // The metadata names the session, so an update may move a turn to another one.
        self.touch(std::slice::from_ref(id), FollowingTurns::All).await?;
        let query = self.transaction.query(ARCHIVE).bind(self.user.as_str()).bind(id);
        query.execute(&mut *self.transaction).await?;
        let query = self
            .transaction
            .query(UPDATE)
            .bind(self.user.as_str())
            .bind(id)
            .bind(update.content.as_ref().unwrap_or(&before.content))
            .bind(Json(update.tags.as_ref().unwrap_or(&before.tags)))
            .bind(Json(update.metadata.as_ref().unwrap_or(&before.metadata)));
        query.execute(&mut *self.transaction).await?;
        if let Some(vector) = vector
            && before.superseded_by.is_none()
        {
            self.upsert_vectors(&[vector], model_key).await?;
        }
        self.touch(std::slice::from_ref(id), FollowingTurns::All).await?;
        memory(&mut self.transaction, self.user, id).await
    }

    pub(super) async fn archive_changed(&mut self, rows: &[NewMemoryRow<'_>]) -> Result<(), sqlx::Error> {
        let query = self
            .transaction
            .query(ARCHIVE_CHANGED)
            .bind(self.user.as_str())
            .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.content).collect::<Vec<_>>());
        query.execute(&mut *self.transaction).await?;
        Ok(())
    }
}
