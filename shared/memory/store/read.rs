use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{FromRow as _, Row as _};

use super::{bind_filter, column, columns, matches_filter, sql_int, with_documents};
use crate::{
    identity::UserId,
    memory::{Filter, Memory, MemoryPage, MemoryVersion, PageToken, index_input::MAX_BYTES_WITH_PRECEDING_TURNS},
    postgres::RoleTransaction,
};

/// gRPC clients accept messages of 4 MB by default; sizes are estimates.
const MAX_PAGE_BYTES: i64 = 3_500_000;
/// The rest is for the memory that comes with its history.
const MAX_HISTORY_BYTES: i64 = 3_000_000;
const MAX_HISTORY_VERSIONS: usize = 100;

/// Rows up to and including the first that begins beyond $10 bytes.
const PAGE: &str = concat!(
    "select * from (
         select *, sum(size) over (order by created_at desc, id desc) as bytes
         from (
             select ",
    columns!(),
    ",              octet_length(memories.content) + octet_length(memories.metadata::text)
                    + octet_length(memories.tags::text) + 300 as size
             from ",
    with_documents!("memories"),
    "        where ",
    matches_filter!(),
    "            and ($7::timestamptz is null or (memories.created_at, memories.id) < ($7, $8))
             order by memories.created_at desc, memories.id desc limit $9
         ) as newest
     ) as page
     where bytes - size <= $10
     order by created_at desc, id desc"
);

const MEMORY: &str = concat!(
    "select ",
    columns!(),
    " from ",
    with_documents!("memories"),
    " where memories.user_id = $1 and memories.id = $2"
);

const EMBEDDING_SOURCES: &str = concat!(
    "select memories.id, coalesce(documents.title, '') as title, section_title, content from ",
    with_documents!("memories"),
    " where memories.user_id = $1 and memories.id = any($2) and superseded_by is null"
);

const HISTORY: &str = include_str!("sql/history.sql");
const FOLLOWING_BYTES: &str = include_str!("sql/following_bytes.sql");
const UNCHANGED_IDS: &str = include_str!("sql/unchanged_ids.sql");
const EXISTING_IDS: &str = include_str!("sql/existing_ids.sql");

pub(crate) async fn page(
    transaction: &mut RoleTransaction,
    user: &UserId,
    filter: &Filter,
    size: usize,
    after: Option<&PageToken>,
) -> Result<MemoryPage, sqlx::Error> {
    let query = bind_filter(transaction.query(PAGE), user, filter)
        .bind(after.map(|token| token.created_at.to_sqlx()))
        .bind(after.map(|token| token.id.as_str()))
        .bind(sql_int(size + 1))
        .bind(MAX_PAGE_BYTES);
    let rows = query.fetch_all(&mut **transaction).await?;
    // A row beyond the size or the bytes shows that there is a next page.
    let mut memories = Vec::with_capacity(rows.len());
    for row in &rows {
        let bytes: i64 = row.try_get("bytes")?;
        if memories.len() == size || (bytes > MAX_PAGE_BYTES && !memories.is_empty()) {
            break;
        }
        memories.push(Memory::from_row(row)?);
    }
    let has_next = memories.len() < rows.len();
    let last = memories.last().filter(|_| has_next);
    let next = last.map(|memory| PageToken { created_at: memory.created_at, id: memory.id.clone() });
    Ok(MemoryPage { memories, next })
}

pub(crate) async fn ids_with_history(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[&str],
) -> Result<HashSet<String>, sqlx::Error> {
    let query =
        transaction.query("select distinct memory_id from memory_history where user_id = $1 and memory_id = any($2)");
    let rows = query.bind(user.as_str()).bind(ids).fetch_all(&mut **transaction).await?;
    Ok(column(&rows, "memory_id")?.into_iter().collect())
}

/// Oldest first, as many as fit into a message.
pub(crate) struct HistoryPart {
    pub(crate) versions: Vec<MemoryVersion>,
    /// `None` on the last part.
    pub(crate) next_after: Option<i32>,
}

pub(crate) async fn history(
    transaction: &mut RoleTransaction,
    user: &UserId,
    id: &str,
    after_version: i32,
) -> Result<HistoryPart, sqlx::Error> {
    let query = transaction
        .query(HISTORY)
        .bind(user.as_str())
        .bind(id)
        .bind(after_version)
        .bind(sql_int(MAX_HISTORY_VERSIONS))
        .bind(MAX_HISTORY_BYTES);
    let rows = query.fetch_all(&mut **transaction).await?;
    let versions = rows.iter().map(MemoryVersion::from_row).collect::<Result<Vec<_>, _>>()?;
    let Some(last) = rows.last() else { return Ok(HistoryPart { versions, next_after: None }) };
    let last: i32 = last.try_get("version")?;
    let has_more = "select exists (select from memory_history
                                   where user_id = $1 and memory_id = $2 and version > $3) as has_more";
    let query = transaction.query(has_more).bind(user.as_str()).bind(id).bind(last);
    let has_more: bool = query.fetch_one(&mut **transaction).await?.try_get("has_more")?;
    Ok(HistoryPart { versions, next_after: has_more.then_some(last) })
}

/// Of a turn that is to be written.
pub(crate) struct TurnPosition<'a> {
    pub(crate) session: String,
    pub(crate) created_at: Timestamp,
    pub(crate) id: &'a str,
}

/// Bytes of the stored turns that a write indexes again, beside its own memories.
pub(crate) async fn following_bytes(
    transaction: &mut RoleTransaction,
    user: &UserId,
    positions: &[TurnPosition<'_>],
    superseded: &[&str],
) -> Result<usize, sqlx::Error> {
    let query = transaction
        .query(FOLLOWING_BYTES)
        .bind(user.as_str())
        .bind(positions.iter().map(|position| position.session.as_str()).collect::<Vec<_>>())
        .bind(positions.iter().map(|position| position.created_at.to_sqlx()).collect::<Vec<_>>())
        .bind(positions.iter().map(|position| position.id).collect::<Vec<_>>())
        .bind(superseded)
        .bind(sql_int(MAX_BYTES_WITH_PRECEDING_TURNS));
    let bytes: i64 = query.fetch_one(&mut **transaction).await?.try_get("bytes")?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}

pub(crate) struct StoredText<'a> {
    pub(crate) id: &'a str,
    pub(crate) content: &'a str,
    pub(crate) digest: [u8; 32],
}

/// Stored with the same content and a vector of the same text by the model.
pub(crate) async fn unchanged_ids(
    transaction: &mut RoleTransaction,
    user: &UserId,
    texts: &[StoredText<'_>],
    model_key: &str,
) -> Result<HashSet<String>, sqlx::Error> {
    let query = transaction
        .query(UNCHANGED_IDS)
        .bind(user.as_str())
        .bind(texts.iter().map(|text| text.id).collect::<Vec<_>>())
        .bind(texts.iter().map(|text| text.content).collect::<Vec<_>>())
        .bind(texts.iter().map(|text| text.digest.as_slice()).collect::<Vec<_>>())
        .bind(model_key);
    let rows = query.fetch_all(&mut **transaction).await?;
    Ok(column(&rows, "id")?.into_iter().collect())
}

pub(crate) struct SessionContent<'a> {
    pub(crate) content: &'a str,
    pub(crate) session: String,
}

/// Chunks and superseded memories do not count.
pub(crate) async fn existing_ids(
    transaction: &mut RoleTransaction,
    user: &UserId,
    contents: &[SessionContent<'_>],
) -> Result<Vec<Option<String>>, sqlx::Error> {
    let mut ids = vec![None; contents.len()];
    if contents.is_empty() {
        return Ok(ids);
    }
    let query = transaction
        .query(EXISTING_IDS)
        .bind(user.as_str())
        .bind(contents.iter().map(|content| content.content).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.session.as_str()).collect::<Vec<_>>());
    for row in query.fetch_all(&mut **transaction).await? {
        let ordinal: i64 = row.try_get("ordinal")?;
        if let Some(slot) = usize::try_from(ordinal - 1).ok().and_then(|index| ids.get_mut(index)) {
            *slot = Some(row.try_get("id")?);
        }
    }
    Ok(ids)
}

/// Digests by chunk id.
pub(crate) async fn vector_digests(
    transaction: &mut RoleTransaction,
    user: &UserId,
    document_id: &str,
    model_key: &str,
) -> Result<HashMap<String, Vec<u8>>, sqlx::Error> {
    let query = transaction.query(
        "select memory_id, digest
         from memories join memory_vectors vectors on vectors.user_id = $1 and vectors.model = $3 and memory_id = id
         where memories.user_id = $1 and document_id = $2",
    );
    let rows = query.bind(user.as_str()).bind(document_id).bind(model_key).fetch_all(&mut **transaction).await?;
    rows.iter().map(|row| Ok((row.try_get("memory_id")?, row.try_get("digest")?))).collect()
}

pub(crate) async fn memory(
    transaction: &mut RoleTransaction,
    user: &UserId,
    id: &str,
) -> Result<Option<Memory>, sqlx::Error> {
    let query = transaction.query(MEMORY).bind(user.as_str()).bind(id);
    let row = query.fetch_optional(&mut **transaction).await?;
    row.map(|row| Memory::from_row(&row)).transpose()
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct EmbeddingSource {
    pub(crate) id: String,
    pub(crate) title: String,
    #[sqlx(rename = "section_title")]
    pub(crate) section: String,
    pub(crate) content: String,
}

/// Superseded memories are skipped.
pub(crate) async fn embedding_sources(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[&str],
) -> Result<Vec<EmbeddingSource>, sqlx::Error> {
    let query = transaction.query(EMBEDDING_SOURCES).bind(user.as_str()).bind(ids);
    query.fetch_all(&mut **transaction).await?.iter().map(EmbeddingSource::from_row).collect()
}
