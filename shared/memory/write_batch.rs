//! Turns the memories of one write into rows: ids are assigned, repeats merged, supersede cycles resolved.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    AddOutcome, EmbeddingBudget, MemoryEngine, MemoryError, Metadata, NewMemory,
    budget::{MAX_FOLLOWING_BYTES, check_memories},
    digest::digest,
    embedding_budget::Reservation,
    index_input::MAX_BYTES_WITH_PRECEDING_TURNS,
    store::{
        self, MemoryTransaction, NewMemoryRow, NewVector, SessionContent, StoredText, SupersedeEdge, TurnPosition,
        parts,
    },
    supersede,
    timeouts::{BULK_TIMEOUT, with_bulk_timeout},
};
use crate::{
    error::{InvalidArgument, Problem},
    identity::{MAX_ID_BYTES, UserId},
    postgres::RoleTransaction,
};

/// Texts of a statement that looks for stored ones.
const MAX_TEXTS: usize = 1_000;
const MAX_TEXT_BYTES: usize = 1_000_000;

pub(super) struct WriteBatch {
    request_ids: Vec<String>,
    rows: BTreeMap<String, NewMemory>,
    vectors: HashMap<String, Vec<f32>>,
    /// From assigned ids to those under which the same content is stored.
    aliases: HashMap<String, String>,
    supersedes: Vec<SupersedeEdge>,
}

impl MemoryEngine {
    /// Embeds new content. Holds no lock.
    pub(super) async fn prepare_batch(
        &self,
        user: &UserId,
        memories: Vec<NewMemory>,
        budget: EmbeddingBudget,
    ) -> Result<WriteBatch, MemoryError> {
        let mut batch = WriteBatch::from_memories(check_memories(memories).await?);
        let reservation = with_bulk_timeout(self.drop_unchanged(user, &mut batch, budget)).await?;
        let texts: Vec<&str> = batch.rows.values().map(|memory| memory.content.as_str()).collect();
        let vectors = self.embed_reserved(user, &texts, reservation).await?;
        batch.vectors = batch.rows.keys().cloned().zip(vectors).collect();
        Ok(batch)
    }

    /// Reserves the budget for what is left.
    async fn drop_unchanged(
        &self,
        user: &UserId,
        batch: &mut WriteBatch,
        budget: EmbeddingBudget,
    ) -> Result<Reservation, MemoryError> {
        let mut transaction = self.service.with_statement_timeout(BULK_TIMEOUT).begin(user).await?;
        let texts = batch.rows.iter().map(|(id, memory)| StoredText {
            id,
            content: &memory.content,
            digest: digest(&memory.content),
        });
        let texts: Vec<_> = texts.collect();
        let mut unchanged = HashSet::new();
        for texts in parts(&texts, MAX_TEXTS, MAX_TEXT_BYTES, |text| text.content.len()) {
            unchanged.extend(store::unchanged_ids(&mut transaction, user, texts, &self.model_key).await?);
        }
        batch.rows.retain(|id, _| !unchanged.contains(id));
        batch.alias_existing(&mut transaction, user).await?;
        batch.check_following_turns(&mut transaction, user).await?;
        let texts = batch.rows.values().map(|memory| memory.content.as_str());
        let reservation = budget.reserve(&mut transaction, user, texts).await?;
        transaction.commit().await?;
        Ok(reservation)
    }

    /// Returns the number of rows that are new or changed.
    pub(super) async fn write_batch(
        &self,
        user: &UserId,
        transaction: &mut MemoryTransaction<'_>,
        batch: &mut WriteBatch,
    ) -> Result<usize, sqlx::Error> {
        // Another writer may have stored the same content since the batch was prepared.
        batch.alias_existing(transaction.inner(), user).await?;
        let rows: Vec<NewMemoryRow<'_>> = batch.rows.iter().map(|(id, memory)| batch.row(id, memory)).collect();
        let edges = batch.supersede_edges();
        transaction.break_supersede_cycles(&edges).await?;
        let written = transaction.upsert(&rows, "", &self.model_key).await?;
        transaction.supersede(&edges).await?;
        Ok(written.len())
    }
}

impl WriteBatch {
    /// If an id occurs twice, the last memory wins; content without an id is merged within its session.
    fn from_memories(memories: Vec<NewMemory>) -> Self {
        let mut batch = Self {
            request_ids: Vec::with_capacity(memories.len()),
            rows: BTreeMap::new(),
            vectors: HashMap::new(),
            aliases: HashMap::new(),
            supersedes: Vec::new(),
        };
        let mut assigned: HashMap<([u8; 32], String), String> = HashMap::new();
        for mut memory in memories {
            let id = match &memory.id {
                Some(id) => id.clone(),
                None => assigned
                    .entry((digest(&memory.content), session_of(&memory.metadata)))
                    .or_insert_with(|| Uuid::now_v7().to_string())
                    .clone(),
            };
            let edges = std::mem::take(&mut memory.supersedes).into_iter();
            batch.supersedes.extend(edges.map(|old| SupersedeEdge { old, new: id.clone() }));
            batch.request_ids.push(id.clone());
            batch.rows.insert(id, memory);
        }
        batch
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.supersedes.is_empty()
    }

    pub(super) fn outcome(&self, added: usize) -> AddOutcome {
        let ids: Vec<String> = self.request_ids.iter().map(|id| self.stored_id(id).to_owned()).collect();
        AddOutcome { unchanged: ids.len() - added, ids, added }
    }

    /// Few memories cannot affect too much: each has two turns after it, and only short ones are indexed again.
    async fn check_following_turns(&self, transaction: &mut RoleTransaction, user: &UserId) -> Result<(), MemoryError> {
        const ALWAYS_FINE: usize = MAX_FOLLOWING_BYTES / (2 * MAX_BYTES_WITH_PRECEDING_TURNS);
        if self.rows.len() + self.supersedes.len() <= ALWAYS_FINE {
            return Ok(());
        }
        let now = Timestamp::now();
        let positions = self.rows.iter().map(|(id, memory)| TurnPosition {
            session: session_of(&memory.metadata),
            created_at: memory.created_at.unwrap_or(now),
            id,
        });
        let positions: Vec<_> = positions.collect();
        let superseded: Vec<&str> = self.supersedes.iter().map(|edge| edge.old.as_str()).collect();
        let found_bytes = store::following_bytes(transaction, user, &positions, &superseded).await?;
        if found_bytes > MAX_FOLLOWING_BYTES {
            let problem = Problem::TooManyFollowingTurns { found_bytes, limit_bytes: MAX_FOLLOWING_BYTES };
            return Err(InvalidArgument::new("memories", problem).into());
        }
        Ok(())
    }

    /// Drops memories without a client's id whose content is stored, and remembers the stored ids.
    async fn alias_existing(&mut self, transaction: &mut RoleTransaction, user: &UserId) -> Result<(), sqlx::Error> {
        let without_id = self.rows.iter().filter(|(_, memory)| memory.id.is_none());
        let (ids, contents): (Vec<String>, Vec<SessionContent<'_>>) = without_id
            .map(|(id, memory)| {
                let session = session_of(&memory.metadata);
                (id.clone(), SessionContent { content: &memory.content, session })
            })
            .unzip();
        let mut existing = Vec::with_capacity(contents.len());
        for contents in parts(&contents, MAX_TEXTS, MAX_TEXT_BYTES, |content| content.content.len()) {
            existing.extend(store::existing_ids(transaction, user, contents).await?);
        }
        for (id, existing) in ids.into_iter().zip(existing) {
            if let Some(existing) = existing {
                self.rows.remove(&id);
                self.aliases.insert(id, existing);
            }
        }
        Ok(())
    }

    fn stored_id<'a>(&'a self, id: &'a str) -> &'a str {
        self.aliases.get(id).map_or(id, String::as_str)
    }

    fn row<'a>(&'a self, id: &'a str, memory: &'a NewMemory) -> NewMemoryRow<'a> {
        NewMemoryRow {
            id,
            content: &memory.content,
            source_type: &memory.source_type,
            tags: &memory.tags,
            metadata: &memory.metadata,
            created_at: memory.created_at,
            location: None,
            vector: NewVector {
                id,
                digest: digest(&memory.content),
                embedding: self.vectors.get(id).map(Vec::as_slice),
            },
        }
    }

    /// In a cycle, the memory that supersedes last is not superseded itself. Requests with a cycle among the client's
    /// ids are rejected, but assigned ids are known only here.
    fn supersede_edges(&self) -> Vec<SupersedeEdge> {
        let edges = self.supersedes.iter().map(|edge| (edge.old.as_str(), self.stored_id(&edge.new))).enumerate();
        let edges = edges.filter(|(_, (old, new))| old != new);
        let mut by_old: BTreeMap<&str, (usize, &str)> = edges.map(|(order, (old, new))| (old, (order, new))).collect();
        let ids: Vec<&str> = by_old.keys().copied().collect();
        for cycle in supersede::cycles(ids, |id| by_old.get(id).map(|(_, new)| *new)) {
            let last = cycle.into_iter().filter_map(|old| by_old.get(old).copied()).max();
            if let Some((_, new)) = last {
                by_old.remove(new);
            }
        }
        let edge = |(old, (_, new)): (&str, (usize, &str))| SupersedeEdge { old: old.to_owned(), new: new.to_owned() };
        by_old.into_iter().map(edge).collect()
    }
}

/// As the generated column `session_id` reads it; empty for a memory that is no turn.
fn session_of(metadata: &Metadata) -> String {
    let session = metadata.get("session_id").or_else(|| metadata.get("session"));
    session.filter(|session| session.len() <= MAX_ID_BYTES).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(id: &str, content: &str, supersedes: &[&str]) -> NewMemory {
        NewMemory {
            id: (!id.is_empty()).then(|| id.to_owned()),
            content: content.to_owned(),
            source_type: "note".to_owned(),
            tags: Vec::new(),
            created_at: None,
            metadata: Metadata::new(),
            supersedes: supersedes.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    fn edges(batch: &WriteBatch) -> Vec<(String, String)> {
        batch.supersede_edges().into_iter().map(|edge| (edge.old, edge.new)).collect()
    }

    fn edge(old: &str, new: &str) -> (String, String) {
        (old.to_owned(), new.to_owned())
    }

    #[test]
    fn batch_merges_equal_content_without_id() {
        let batch = WriteBatch::from_memories(vec![memory("", "tea", &[]), memory("", "tea", &[])]);
        assert_eq!((batch.rows.len(), batch.outcome(1).unchanged), (1, 1));
        assert_eq!(batch.request_ids[0], batch.request_ids[1]);
    }

    #[test]
    fn supersede_edge_of_a_memory_is_the_last_one() {
        let batch = WriteBatch::from_memories(vec![memory("b", "b", &["a", "b"]), memory("c", "c", &["a"])]);
        assert_eq!(edges(&batch), [edge("a", "c")]);
    }

    #[test]
    fn supersede_cycle_by_alias_spares_the_last_memory() {
        let memories = vec![memory("", "tea", &["coffee"]), memory("coffee", "coffee", &["tea"])];
        let mut batch = WriteBatch::from_memories(memories);
        batch.aliases.insert(batch.request_ids[0].clone(), "tea".to_owned());
        assert_eq!(edges(&batch), [edge("tea", "coffee")]);
    }
}
