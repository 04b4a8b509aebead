//! The SQL of the memory. Every statement names the user, although row-level security hides the rows of all others.
//!
//! Locks of a write, in the order that [`postgres`](crate::postgres) documents. All writers and the index build take:
//! 1. the user's mutex of [`WriteLocks`], then a slot of it, before a connection is taken from the pool;
//! 2. the user's row in `memory_users`, which serializes writers of different processes;
//! 3. rows of `documents`, `memories` and their vectors, in any order, because of 2;
//! 4. rows of the inverted index, once, when the transaction commits.

mod inverted_index;
pub(super) mod knn;
mod parts;
mod read;
pub(super) mod search;
mod search_statement;
mod transaction;
mod write_locks;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{
    FromRow, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
    types::Json,
};

pub(super) use inverted_index::{IndexAdvance, advance as advance_index};
pub(super) use parts::parts;
pub(super) use read::{
    EmbeddingSource, HistoryPart, SessionContent, StoredText, TurnPosition, embedding_sources, existing_ids,
    following_bytes, history, ids_with_history, memory, page, unchanged_ids, vector_digests,
};
pub(super) use transaction::{DELETE_BATCH, MemoryTransaction, NewMemoryRow, NewVector, SupersedeEdge};
pub(super) use write_locks::WriteLocks;

use super::{ChunkLocation, Filter, Memory, MemoryVersion, Metadata};
use crate::{embedding::EmbeddingModel, identity::UserId};

macro_rules! columns {
    () => {
        "memories.id, memories.content, memories.source_type, memories.tags, memories.metadata, memories.created_at,
         memories.updated_at, memories.superseded_by, memories.document_id, memories.section_title,
         memories.chunk_index, documents.title, documents.url"
    };
}

macro_rules! with_documents {
    ($memories:expr) => {
        concat!($memories, " left join documents on documents.user_id = $1 and documents.id = memories.document_id")
    };
}

/// Binds $1 to $6, with [`bind_filter`].
macro_rules! matches_filter {
    () => {
        "memories.user_id = $1
         and ($2::text[] is null or memories.tags @> $2)
         and ($3::timestamptz is null or memories.created_at >= $3)
         and ($4::timestamptz is null or memories.created_at < $4)
         and ($5::text[] is null or memories.source_type = any($5))
         and ($6::text[] is null or memories.document_id = any($6))"
    };
}

use columns;
use matches_filter;
use with_documents;

type SqlQuery<'q> = Query<'q, Postgres, PgArguments>;

fn bind_filter<'q>(query: SqlQuery<'q>, user: &'q UserId, filter: &'q Filter) -> SqlQuery<'q> {
    let unless_empty = |values: &'q Vec<String>| (!values.is_empty()).then_some(values);
    query
        .bind(user.as_str())
        .bind(unless_empty(&filter.tags))
        .bind(filter.from.map(|time| time.to_sqlx()))
        .bind(filter.before.map(|time| time.to_sqlx()))
        .bind(unless_empty(&filter.source_types))
        .bind(unless_empty(&filter.document_ids))
}

/// Only vectors of one model and dimension are compared.
pub(super) fn model_key(model: &EmbeddingModel) -> String {
    format!("{}/{}", model.name, model.dimension)
}

/// Dimensions and limits are far below the maximum.
pub(super) fn sql_int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

pub(super) fn column<'r, T>(rows: &'r [PgRow], name: &str) -> Result<Vec<T>, sqlx::Error>
where
    T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    rows.iter().map(|row| row.try_get(name)).collect()
}

fn timestamp(row: &PgRow, name: &str) -> Result<Timestamp, sqlx::Error> {
    Ok(row.try_get::<jiff_sqlx::Timestamp, _>(name)?.to_jiff())
}

impl FromRow<'_, PgRow> for Memory {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let Json(metadata): Json<Metadata> = row.try_get("metadata")?;
        Ok(Self {
            id: row.try_get("id")?,
            content: row.try_get("content")?,
            source_type: row.try_get("source_type")?,
            tags: row.try_get("tags")?,
            metadata,
            created_at: timestamp(row, "created_at")?,
            updated_at: timestamp(row, "updated_at")?,
            superseded_by: row.try_get("superseded_by")?,
            location: location(row)?,
        })
    }
}

fn location(row: &PgRow) -> Result<Option<ChunkLocation>, sqlx::Error> {
    let document_id: String = row.try_get("document_id")?;
    if document_id.is_empty() {
        return Ok(None);
    }
    let text = |name| Ok::<_, sqlx::Error>(row.try_get::<Option<String>, _>(name)?.unwrap_or_default());
    let chunk_index: i32 = row.try_get::<Option<i32>, _>("chunk_index")?.unwrap_or_default();
    Ok(Some(ChunkLocation {
        document_id,
        title: text("title")?,
        url: text("url")?,
        section: row.try_get("section_title")?,
        chunk_index: u32::try_from(chunk_index).unwrap_or_default(),
    }))
}

impl FromRow<'_, PgRow> for MemoryVersion {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let Json(metadata): Json<Metadata> = row.try_get("metadata")?;
        Ok(Self {
            content: row.try_get("content")?,
            tags: row.try_get("tags")?,
            metadata,
            replaced_at: timestamp(row, "replaced_at")?,
        })
    }
}
