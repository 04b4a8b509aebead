//! Changes memories of one user. The inverted index follows at the commit.

mod delete;
mod document;
mod supersede;
mod update;
mod vectors;

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::types::Json;

pub(crate) use delete::DELETE_BATCH;
pub(crate) use supersede::SupersedeEdge;

use super::{
    column,
    inverted_index::{self, FollowingTurns, LockedUser},
    parts, sql_int,
    write_locks::{WriteLocks, WritePermit},
};
use crate::{
    identity::UserId,
    memory::{MemoryError, Metadata},
    postgres::{RolePool, RoleTransaction},
};

/// Rows of a statement, and their bytes without vectors.
const BATCH: usize = 1_000;
const BATCH_BYTES: usize = 1_000_000;

const UPSERT: &str = include_str!("../sql/upsert_memories.sql");

#[derive(Debug, Clone, Copy)]
pub(crate) struct NewVector<'a> {
    pub(crate) id: &'a str,
    /// SHA-256 of the text that the vector is made from.
    pub(crate) digest: [u8; 32],
    /// `None`: stored already.
    pub(crate) embedding: Option<&'a [f32]>,
}

#[derive(Debug)]
pub(crate) struct NewMemoryRow<'a> {
    pub(crate) id: &'a str,
    pub(crate) content: &'a str,
    pub(crate) source_type: &'a str,
    pub(crate) tags: &'a [String],
    pub(crate) metadata: &'a Metadata,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) location: Option<(&'a str, usize)>,
    pub(crate) vector: NewVector<'a>,
}

impl NewMemoryRow<'_> {
    fn bytes(&self) -> usize {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len());
        self.content.len() + self.tags.iter().map(String::len).chain(metadata).sum::<usize>()
    }
}

/// Dropping it rolls back.
pub(crate) struct MemoryTransaction<'u> {
    transaction: RoleTransaction,
    user: &'u UserId,
    /// `None`: all memories are indexed.
    indexed_to: Option<String>,
    has_half_vectors: bool,
    touched: BTreeSet<String>,
    _permit: WritePermit<'u>,
}

impl<'u> MemoryTransaction<'u> {
    /// Waits until no other writer of the user is active, in this process or another.
    pub(crate) async fn begin(
        pool: &RolePool,
        write_locks: &'u WriteLocks,
        user: &'u UserId,
    ) -> Result<Self, MemoryError> {
        let permit = Box::pin(write_locks.lock(user)).await?;
        Ok(Self::lock_user(pool.begin(user).await?, user, permit).await?)
    }

    /// For maintenance of users that were listed before: `None` if the user was erased meanwhile, of whom nothing may stay.
    pub(crate) async fn begin_existing(
        pool: &RolePool,
        write_locks: &'u WriteLocks,
        user: &'u UserId,
    ) -> Result<Option<Self>, MemoryError> {
        let permit = Box::pin(write_locks.lock(user)).await?;
        let mut transaction = pool.begin(user).await?;
        if !inverted_index::lock_existing(&mut transaction, user).await? {
            return Ok(None);
        }
        Ok(Some(Self::lock_user(transaction, user, permit).await?))
    }

    async fn lock_user(
        mut transaction: RoleTransaction,
        user: &'u UserId,
        permit: WritePermit<'u>,
    ) -> Result<Self, sqlx::Error> {
        let LockedUser { indexed_to, has_half_vectors } = inverted_index::lock(&mut transaction, user).await?;
        Ok(Self { transaction, user, indexed_to, has_half_vectors, touched: BTreeSet::new(), _permit: permit })
    }

    pub(crate) fn has_half_vectors(&self) -> bool {
        self.has_half_vectors
    }

    pub(crate) fn inner(&mut self) -> &mut RoleTransaction {
        &mut self.transaction
    }

    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        if !self.has_half_vectors {
            Box::pin(self.copy_vectors()).await?;
        }
        let is_indexed = |id: &String| self.indexed_to.as_ref().is_none_or(|to| id <= to);
        let (indexed, later): (Vec<String>, Vec<String>) = self.touched.into_iter().partition(is_indexed);
        Box::pin(inverted_index::refresh(&mut self.transaction, self.user, &indexed)).await?;
        // The index build will add these; postings of an older index are wrong until then.
        Box::pin(inverted_index::remove(&mut self.transaction, self.user, &later)).await?;
        self.transaction.commit().await
    }

    /// Marks postings as out of date, also of the turns that follow. Call it before and after turns move.
    async fn touch(&mut self, ids: &[String], following: FollowingTurns) -> Result<(), sqlx::Error> {
        let turns = inverted_index::following_turns(&mut self.transaction, self.user, ids, following).await?;
        self.touched.extend(turns);
        self.touched.extend(ids.iter().cloned());
        Ok(())
    }

    /// Returns the ids that are new or changed.
    pub(crate) async fn upsert(
        &mut self,
        rows: &[NewMemoryRow<'_>],
        document_id: &str,
        model_key: &str,
    ) -> Result<BTreeSet<String>, sqlx::Error> {
        let mut written = BTreeSet::new();
        for rows in parts(rows, BATCH, BATCH_BYTES, NewMemoryRow::bytes) {
            let ids: Vec<String> = rows.iter().map(|row| row.id.to_owned()).collect();
            let indexed = FollowingTurns::Indexed;
            let following = inverted_index::following_turns(&mut self.transaction, self.user, &ids, indexed).await?;
            if !document_id.is_empty() {
                // Ingestion overwrites the updates of chunks.
                self.archive_changed(rows).await?;
            }
            let changed = self.upsert_rows(rows, document_id).await?;
            if !changed.is_empty() {
                self.touched.extend(following);
                self.touch(&changed, indexed).await?;
            }
            written.extend(changed);
            let vectors: Vec<_> = rows.iter().map(|row| row.vector).collect();
            written.extend(self.upsert_vectors(&vectors, model_key).await?);
        }
        Ok(written)
    }

    async fn upsert_rows(&mut self, rows: &[NewMemoryRow<'_>], document_id: &str) -> Result<Vec<String>, sqlx::Error> {
        let query = self
            .transaction
            .query(UPSERT)
            .bind(self.user.as_str())
            .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.content).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.source_type).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| Json(row.tags)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| Json(row.metadata)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.created_at.map(|time| time.to_sqlx())).collect::<Vec<_>>())
            .bind(document_id)
            .bind(rows.iter().map(|row| row.location.map_or("", |(section, _)| section)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.location.map(|(_, index)| sql_int(index))).collect::<Vec<_>>());
        column(&query.fetch_all(&mut *self.transaction).await?, "id")
    }
}
