//! The SQL of the memory. Every statement names the user, although the database would show no other's rows.

mod inverted_index;
pub(super) mod knn;
mod read;
pub(super) mod search;
mod transaction;
mod write_locks;

use std::str::FromStr;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{
    FromRow, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query as SqlQuery,
    types::Json,
};

pub(super) use inverted_index::{IndexAdvance, advance as advance_index};
pub(super) use read::{
    EmbeddingSource, embedding_sources, existing_ids, history, ids_with_history, memory, page, unchanged_ids,
    vector_digests,
};
pub(super) use transaction::{MemoryTransaction, NewMemoryRow, NewVector};
pub(super) use write_locks::WriteLocks;

use super::{ChunkLocation, Filter, Memory, MemoryVersion, Metadata};
use crate::{embedding::EmbeddingModel, identity::UserId};

/// What makes up a [`Memory`], of `memories` with its `documents`.
macro_rules! columns {
    () => {
        "memories.id, memories.content, memories.source_type, memories.tags, memories.metadata, memories.created_at,
         memories.updated_at, memories.superseded_by, memories.document_id, memories.section_title,
         memories.chunk_index, documents.title, documents.url"
    };
}

/// Memories with the documents that they are chunks of.
macro_rules! with_documents {
    ($memories:expr) => {
        concat!($memories, " left join documents on documents.user_id = $1 and documents.id = memories.document_id")
    };
}

/// The rows of one user that match a filter; it takes the parameters $1 to $6, bound by [`matching`].
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

type Bound<'q> = SqlQuery<'q, Postgres, PgArguments>;

fn bind_filter<'q>(query: Bound<'q>, user: &'q UserId, filter: &'q Filter) -> Bound<'q> {
    let set = |values: &'q Vec<String>| (!values.is_empty()).then_some(values);
    query
        .bind(user.as_str())
        .bind(set(&filter.tags))
        .bind(filter.from.map(|time| time.to_sqlx()))
        .bind(filter.before.map(|time| time.to_sqlx()))
        .bind(set(&filter.source_types))
        .bind(set(&filter.document_ids))
}

/// What vectors are kept under: only those of one model and dimension are compared.
pub(super) fn model_key(model: &EmbeddingModel) -> String {
    format!("{}/{}", model.name, model.dimension)
}

/// A dimension or a limit as Postgres counts; both are far below the bound.
pub(super) fn sql_int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// One column of some rows.
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
        let document: String = row.try_get("document_id")?;
        let place = if document.is_empty() {
            None
        } else {
            let text = |name| Ok::<_, sqlx::Error>(row.try_get::<Option<String>, _>(name)?.unwrap_or_default());
            let chunk: i32 = row.try_get::<Option<i32>, _>("chunk_index")?.unwrap_or_default();
            Some(ChunkLocation {
                document_id: document,
                title: text("title")?,
                url: text("url")?,
                section: row.try_get("section_title")?,
                chunk_index: u32::try_from(chunk).unwrap_or_default(),
            })
        };
        Ok(Self {
            id: row.try_get("id")?,
            content: row.try_get("content")?,
            source_type: row.try_get("source_type")?,
            tags: row.try_get("tags")?,
            metadata,
            created_at: timestamp(row, "created_at")?,
            updated_at: timestamp(row, "updated_at")?,
            superseded_by: row.try_get("superseded_by")?,
            location: place,
        })
    }
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

/// Where a page begins: after this memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken {
    created_at: Timestamp,
    id: String,
}

impl std::fmt::Display for PageToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.created_at.as_microsecond(), self.id)
    }
}

impl FromStr for PageToken {
    type Err = ();

    fn from_str(token: &str) -> Result<Self, ()> {
        let (micros, id) = token.split_once('.').ok_or(())?;
        let created_at = Timestamp::from_microsecond(micros.parse().map_err(|_| ())?).map_err(|_| ())?;
        crate::error::check_text("page_token", id, crate::identity::MAX_ID_BYTES).map_err(|_| ())?;
        Ok(Self { created_at, id: id.to_owned() })
    }
}
