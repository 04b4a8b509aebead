//! Reading memories as they are kept.

use std::collections::{HashMap, HashSet};

use jiff_sqlx::ToSqlx as _;
use sqlx::{FromRow as _, Row as _, postgres::PgRow};

use super::{PageToken, bind_filter, column, columns, matches_filter, sql_int, with_documents};
use crate::{
    identity::UserId,
    memory::{Filter, Memory, MemoryPage, MemoryVersion},
    postgres::RoleTransaction,
};

/// Most bytes of a page, by an estimate: clients read no more than 4 MB of one message by default.
const MAX_PAGE_BYTES: i64 = 3_500_000;

/// The newest rows, and no more of them than one that begins beyond $10 bytes, by an estimate of their sizes.
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

/// One page of a listing.
pub(in crate::memory) async fn page(
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
    // A row more than asked, or one that is too much, tells that there is a next page.
    let mut memories = Vec::with_capacity(rows.len());
    for row in &rows {
        let bytes: i64 = row.try_get("bytes")?;
        if memories.len() == size || (bytes > MAX_PAGE_BYTES && !memories.is_empty()) {
            break;
        }
        memories.push(Memory::from_row(row)?);
    }
    let more = memories.len() < rows.len();
    let last = memories.last().filter(|_| more);
    let next = last.map(|memory| PageToken { created_at: memory.created_at, id: memory.id.clone() });
    Ok(MemoryPage { memories, next })
}

/// Those of some memories that were corrected.
pub(in crate::memory) async fn ids_with_history(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[&str],
) -> Result<HashSet<String>, sqlx::Error> {
    let query =
        transaction.query("select distinct memory_id from memory_history where user_id = $1 and memory_id = any($2)");
    let rows = query.bind(user.as_str()).bind(ids).fetch_all(&mut **transaction).await?;
    Ok(column(&rows, "memory_id")?.into_iter().collect())
}

/// What a memory was before corrections after the first so many, oldest first: as much as fits into a message beside the
/// memory itself, and after which version it goes on; `None` = that is all.
pub(in crate::memory) async fn history(
    transaction: &mut RoleTransaction,
    user: &UserId,
    id: &str,
    after: i32,
) -> Result<(Vec<MemoryVersion>, Option<i32>), sqlx::Error> {
    const MOST: usize = 100;
    const MAX_BYTES: i64 = 3_000_000;
    let query = transaction
        .query(
            "select * from (
                 select *, sum(size) over (order by version) as bytes
                 from (select version, content, tags, metadata, replaced_at,
                              octet_length(content) + octet_length(metadata::text) + octet_length(tags::text) + 50 as size
                       from memory_history where user_id = $1 and memory_id = $2 and version > $3
                       order by version limit $4) as next
             ) as part
             where bytes <= $5 or bytes = size
             order by version",
        )
        .bind(user.as_str())
        .bind(id)
        .bind(after)
        .bind(sql_int(MOST))
        .bind(MAX_BYTES);
    let rows = query.fetch_all(&mut **transaction).await?;
    let history = rows.iter().map(MemoryVersion::from_row).collect::<Result<Vec<_>, _>>()?;
    let Some(last) = rows.last() else { return Ok((history, None)) };
    let last: i32 = last.try_get("version")?;
    let more = "select exists (select from memory_history
                               where user_id = $1 and memory_id = $2 and version > $3) as more";
    let query = transaction.query(more).bind(user.as_str()).bind(id).bind(last);
    let more: bool = query.fetch_one(&mut **transaction).await?.try_get("more")?;
    Ok((history, more.then_some(last)))
}

/// The ids of those memories that are kept with the same content and a vector of the same text by the model.
pub(in crate::memory) async fn unchanged_ids(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[&str],
    contents: &[&str],
    digests: &[[u8; 32]],
    model: &str,
) -> Result<HashSet<String>, sqlx::Error> {
    let query = transaction.query(
        "select memories.id
         from unnest($2::text[], $3::text[], $4::bytea[]) as given (id, content, digest)
              join memories on memories.user_id = $1 and memories.id = given.id and memories.content = given.content
              join memory_vectors vectors on vectors.user_id = $1 and vectors.model = $5
                   and vectors.memory_id = given.id and vectors.digest = given.digest
         where memories.document_id = ''",
    );
    let digests: Vec<&[u8]> = digests.iter().map(<[u8; 32]>::as_slice).collect();
    let query = query.bind(user.as_str()).bind(ids).bind(contents).bind(digests).bind(model);
    let rows = query.fetch_all(&mut **transaction).await?;
    Ok(column(&rows, "id")?.into_iter().collect())
}

/// The id that each of some contents has already in its conversation, by its place; chunks and replaced memories are none.
pub(in crate::memory) async fn existing_ids(
    transaction: &mut RoleTransaction,
    user: &UserId,
    (contents, sessions): (&[&str], &[String]),
) -> Result<Vec<Option<String>>, sqlx::Error> {
    let mut found = vec![None; contents.len()];
    if contents.is_empty() {
        return Ok(found);
    }
    let query = transaction.query(
        "select distinct on (place) place, memories.id
         from unnest($2::text[], $3::text[]) with ordinality as given (content, session_id, place)
              join memories on memories.user_id = $1
                   and memories.content_digest = sha256(convert_to(given.content, 'UTF8'))
                   and memories.content = given.content
                   and memories.session_id = given.session_id
         where memories.document_id = '' and memories.superseded_by is null
         order by place, memories.created_at, memories.id",
    );
    for row in query.bind(user.as_str()).bind(contents).bind(sessions).fetch_all(&mut **transaction).await? {
        let place: i64 = row.try_get("place")?;
        if let Some(slot) = usize::try_from(place - 1).ok().and_then(|place| found.get_mut(place)) {
            *slot = Some(row.try_get("id")?);
        }
    }
    Ok(found)
}

/// The digests of the texts that the vectors of a document's chunks were made of, by the chunks' ids.
pub(in crate::memory) async fn vector_digests(
    transaction: &mut RoleTransaction,
    user: &UserId,
    document: &str,
    model: &str,
) -> Result<HashMap<String, Vec<u8>>, sqlx::Error> {
    let query = transaction.query(
        "select memory_id, digest
         from memories join memory_vectors vectors on vectors.user_id = $1 and vectors.model = $3 and memory_id = id
         where memories.user_id = $1 and document_id = $2",
    );
    let rows = query.bind(user.as_str()).bind(document).bind(model).fetch_all(&mut **transaction).await?;
    rows.iter().map(|row| Ok((row.try_get("memory_id")?, row.try_get("digest")?))).collect()
}

/// One memory.
pub(in crate::memory) async fn memory(
    transaction: &mut RoleTransaction,
    user: &UserId,
    id: &str,
) -> Result<Option<Memory>, sqlx::Error> {
    const MEMORY: &str = concat!(
        "select ",
        columns!(),
        " from ",
        with_documents!("memories"),
        " where memories.user_id = $1 and memories.id = $2"
    );
    let query = transaction.query(MEMORY).bind(user.as_str()).bind(id);
    let row = query.fetch_optional(&mut **transaction).await?;
    row.map(|row| Memory::from_row(&row)).transpose()
}

/// The text of a memory that can be found, with the headings above it.
#[derive(Debug)]
pub(in crate::memory) struct EmbeddingSource {
    pub(in crate::memory) id: String,
    pub(in crate::memory) title: String,
    pub(in crate::memory) section: String,
    pub(in crate::memory) content: String,
}

/// The texts of some memories.
pub(in crate::memory) async fn embedding_sources(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[&str],
) -> Result<Vec<EmbeddingSource>, sqlx::Error> {
    const TEXTS: &str = concat!(
        "select memories.id, coalesce(documents.title, '') as title, section_title, content from ",
        with_documents!("memories"),
        " where memories.user_id = $1 and memories.id = any($2) and superseded_by is null"
    );
    let query = transaction.query(TEXTS).bind(user.as_str()).bind(ids);
    let rows = query.fetch_all(&mut **transaction).await?;
    let text = |row: &PgRow| {
        Ok(EmbeddingSource {
            id: row.try_get("id")?,
            title: row.try_get("title")?,
            section: row.try_get("section_title")?,
            content: row.try_get("content")?,
        })
    };
    rows.iter().map(text).collect()
}
