use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row as _;

use super::{super::inverted_index::FollowingTurns, MemoryTransaction, column};
use crate::memory::supersede::cycles;

const SUPERSEDE_CHAINS: &str = include_str!("../sql/supersede_chains.sql");
const SUPERSEDE: &str = include_str!("../sql/supersede.sql");

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SupersedeEdge {
    pub(crate) old: String,
    pub(crate) new: String,
}

impl MemoryTransaction<'_> {
    /// Restores memories that are about to supersede, directly or not, what supersedes them. New edges replace the
    /// stored edge of the same memory. Call it before vectors are written: superseded memories get none.
    pub(crate) async fn break_supersede_cycles(&mut self, edges: &[SupersedeEdge]) -> Result<(), sqlx::Error> {
        if edges.is_empty() {
            return Ok(());
        }
        let new_ids: BTreeSet<&str> = edges.iter().map(|edge| edge.new.as_str()).collect();
        let query = self.transaction.query(SUPERSEDE_CHAINS).bind(self.user.as_str());
        let rows = query.bind(new_ids.iter().copied().collect::<Vec<_>>()).fetch_all(&mut *self.transaction).await?;
        let stored = rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("superseded_by")?)));
        let stored: BTreeMap<String, String> = stored.collect::<Result<_, sqlx::Error>>()?;
        let edges: BTreeMap<&str, &str> = edges.iter().map(|edge| (edge.old.as_str(), edge.new.as_str())).collect();
        let superseded_by = |id: &str| edges.get(id).copied().or_else(|| stored.get(id).map(String::as_str));
        let restored: BTreeSet<&str> = cycles(edges.keys().copied(), superseded_by)
            .iter()
            .flatten()
            .filter_map(|old| edges.get(old).copied())
            .collect();
        let restored: Vec<&str> = restored.into_iter().collect();
        let query = self.transaction.query(
            "update memories set superseded_by = null, updated_at = now()
             where user_id = $1 and id = any($2) and superseded_by is not null returning id",
        );
        let query = query.bind(self.user.as_str()).bind(restored);
        let restored: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "id")?;
        self.touch(&restored, FollowingTurns::Indexed).await
    }

    /// Deletes the vectors of superseded memories. Unknown ids are ignored.
    pub(crate) async fn supersede(&mut self, edges: &[SupersedeEdge]) -> Result<(), sqlx::Error> {
        if edges.is_empty() {
            return Ok(());
        }
        let (old, new): (Vec<String>, Vec<&str>) =
            edges.iter().map(|edge| (edge.old.clone(), edge.new.as_str())).unzip();
        self.touch(&old, FollowingTurns::Indexed).await?;
        let query = self.transaction.query(SUPERSEDE).bind(self.user.as_str()).bind(&old).bind(new);
        let superseded: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "id")?;
        let query = self.transaction.query("delete from memory_vectors where user_id = $1 and memory_id = any($2)");
        query.bind(self.user.as_str()).bind(superseded).execute(&mut *self.transaction).await?;
        Ok(())
    }
}
