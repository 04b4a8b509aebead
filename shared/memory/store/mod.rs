//! The SQL of the memory. Every statement names the user first.

pub(super) mod index;
pub(super) mod search;

use std::{
    collections::{BTreeMap, HashSet},
    str::FromStr,
};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use pgvector::Vector;
use sqlx::{
    FromRow, PgPool, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query as SqlQuery,
    types::Json,
};

use super::{Filter, Memory, Metadata, NewMemory, Page, Selection};
use crate::{embedding::EmbeddingModel, identity::UserId};

/// What makes up a [`Memory`]; not the vector, which is large and stays where it is.
macro_rules! columns {
    () => {
        "memories.id, content, source_type, tags, metadata, document_id, created_at, updated_at"
    };
}

/// The rows of one user that match a filter; it takes the parameters $1 to $6, bound by [`matching`].
macro_rules! matches_filter {
    () => {
        "user_id = $1
         and ($2::text[] is null or tags @> $2)
         and ($3::timestamptz is null or created_at >= $3)
         and ($4::timestamptz is null or created_at < $4)
         and ($5::text[] is null or source_type = any($5))
         and ($6::text[] is null or document_id = any($6))"
    };
}

use columns;
use matches_filter;

/// The newest rows, and no more of them than one that begins beyond $10 bytes, by an estimate of their sizes.
const PAGE: &str = concat!(
    "select * from (
         select *, sum(size) over (order by created_at desc, id desc) as bytes
         from (
             select ",
    columns!(),
    ",              octet_length(content) + octet_length(metadata::text) + octet_length(tags::text) + 300 as size
             from memories where ",
    matches_filter!(),
    "            and ($7::timestamptz is null or (created_at, id) < ($7, $8))
             order by created_at desc, id desc limit $9
         ) as newest
     ) as page
     where bytes - size <= $10
     order by created_at desc, id desc"
);

/// Deletes the rows of a condition, which are locked in the order of their ids, as writers do: so that no two wait for each
/// other.
macro_rules! delete_where {
    ($($condition:expr),+) => {
        concat!(
            "delete from memories using (select id from memories where ",
            $($condition,)+
            " order by id for update) as doomed
             where memories.user_id = $1 and memories.id = doomed.id
             returning memories.id"
        )
    };
}

const UPSERT: &str = "
    insert into memories (user_id, id, content, source_type, tags, metadata, created_at,
                          embedding_model, embedding_dim, embedding)
    select $1, id, content, source_type, array(select jsonb_array_elements_text(tags)), metadata,
           coalesce(created_at, now()), $8, $9, embedding
    from unnest($2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[], $7::timestamptz[], $10::vector[])
         as new (id, content, source_type, tags, metadata, created_at, embedding)
    order by id collate \"C\"
    on conflict (user_id, id) do update
    set content = excluded.content, source_type = excluded.source_type, tags = excluded.tags,
        metadata = excluded.metadata, created_at = excluded.created_at, updated_at = now(),
        embedding_model = excluded.embedding_model, embedding_dim = excluded.embedding_dim,
        embedding = excluded.embedding
    where (memories.content, memories.embedding_model, memories.embedding_dim)
          is distinct from (excluded.content, excluded.embedding_model, excluded.embedding_dim)
    returning id";

const UNCHANGED: &str = "
    select id
    from memories join unnest($2::text[], $3::text[]) as given (id, content) using (id, content)
    where user_id = $1 and embedding_model = $4 and embedding_dim = $5";

/// Most bytes of a page, by an estimate: clients read no more than 4 MB of one message by default.
const MAX_PAGE_BYTES: i64 = 3_500_000;

type Bound<'q> = SqlQuery<'q, Postgres, PgArguments>;

fn matching<'q>(query: Bound<'q>, user: &'q UserId, filter: &'q Filter) -> Bound<'q> {
    let set = |values: &'q Vec<String>| (!values.is_empty()).then_some(values);
    query
        .bind(user.as_str())
        .bind(set(&filter.tags))
        .bind(filter.from.map(|time| time.to_sqlx()))
        .bind(filter.before.map(|time| time.to_sqlx()))
        .bind(set(&filter.source_types))
        .bind(set(&filter.documents))
}

/// A dimension or a limit as Postgres counts; both are far below the bound.
fn sql_int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The ids of those rows that are stored with the same content and a vector of this model.
pub(super) async fn unchanged(
    pool: &PgPool,
    user: &UserId,
    rows: &BTreeMap<String, NewMemory>,
    model: &EmbeddingModel,
) -> Result<HashSet<String>, sqlx::Error> {
    let ids: Vec<&str> = rows.keys().map(String::as_str).collect();
    let contents: Vec<&str> = rows.values().map(|row| row.content.as_str()).collect();
    let known = sqlx::query_scalar(UNCHANGED)
        .bind(user.as_str())
        .bind(ids)
        .bind(contents)
        .bind(&model.name)
        .bind(sql_int(model.dimension))
        .fetch_all(pool)
        .await?;
    Ok(known.into_iter().collect())
}

/// Writes rows and their index entries, and says how many were new or different.
pub(super) async fn upsert(
    pool: &PgPool,
    user: &UserId,
    rows: &BTreeMap<String, NewMemory>,
    vectors: Vec<Vec<f32>>,
    model: &EmbeddingModel,
) -> Result<usize, sqlx::Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    let mut transaction = pool.begin().await?;
    index::lock(&mut transaction, user).await?;
    let column = |field: fn(&NewMemory) -> &String| rows.values().map(field).collect::<Vec<_>>();
    let written = sqlx::query(UPSERT)
        .bind(user.as_str())
        .bind(rows.keys().collect::<Vec<_>>())
        .bind(column(|row| &row.content))
        .bind(column(|row| &row.source_type))
        .bind(rows.values().map(|row| Json(&row.tags)).collect::<Vec<_>>())
        .bind(rows.values().map(|row| Json(&row.metadata)).collect::<Vec<_>>())
        .bind(rows.values().map(|row| row.created_at.map(|time| time.to_sqlx())).collect::<Vec<_>>())
        .bind(&model.name)
        .bind(sql_int(model.dimension))
        .bind(vectors.into_iter().map(Vector::from).collect::<Vec<_>>())
        .fetch_all(&mut *transaction)
        .await?;
    let written: Vec<String> = written.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
    index::remove(&mut transaction, user, &written).await?;
    let entries = written.iter().filter_map(|id| Some(index::Entry::new(id, &rows.get(id)?.content)));
    index::add(&mut transaction, user, &entries.collect::<Vec<_>>()).await?;
    transaction.commit().await?;
    Ok(written.len())
}

/// One page of a listing.
pub(super) async fn page(
    pool: &PgPool,
    user: &UserId,
    filter: &Filter,
    size: usize,
    after: Option<&PageToken>,
) -> Result<Page, sqlx::Error> {
    let rows = matching(sqlx::query(PAGE), user, filter)
        .bind(after.map(|token| token.created_at.to_sqlx()))
        .bind(after.map(|token| token.id.as_str()))
        .bind(sql_int(size + 1))
        .bind(MAX_PAGE_BYTES)
        .fetch_all(pool)
        .await?;
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
    Ok(Page { memories, next })
}

/// Makes the index of a user who has memories and no index yet, or one of another tokeniser.
pub(super) async fn ensure_index(pool: &PgPool, user: &UserId) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let has_memories = sqlx::query("select from memories where user_id = $1 limit 1").bind(user.as_str());
    if has_memories.fetch_optional(&mut *transaction).await?.is_some() {
        index::lock(&mut transaction, user).await?;
        transaction.commit().await?;
    }
    Ok(())
}

/// Deletes a selection and says how many rows there were.
pub(super) async fn delete(pool: &PgPool, user: &UserId, selection: &Selection) -> Result<u64, sqlx::Error> {
    let user_id = user.as_str();
    let mut transaction = pool.begin().await?;
    index::lock(&mut transaction, user).await?;
    let query = match selection {
        Selection::Ids(ids) => sqlx::query(delete_where!("user_id = $1 and id = any($2)")).bind(user_id).bind(ids),
        Selection::Document(document) => {
            sqlx::query(delete_where!("user_id = $1 and document_id = $2")).bind(user_id).bind(document)
        }
        Selection::Matching(filter) => matching(sqlx::query(delete_where!(matches_filter!())), user, filter),
        Selection::Everything => sqlx::query(delete_where!("user_id = $1")).bind(user_id),
    };
    let deleted = query.fetch_all(&mut *transaction).await?;
    let ids: Vec<String> = deleted.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
    index::remove(&mut transaction, user, &ids).await?;
    if *selection == Selection::Everything {
        index::forget(&mut transaction, user).await?;
    }
    transaction.commit().await?;
    Ok(u64::try_from(ids.len()).unwrap_or(u64::MAX))
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
            document_id: row.try_get("document_id")?,
            created_at: row.try_get::<jiff_sqlx::Timestamp, _>("created_at")?.to_jiff(),
            updated_at: row.try_get::<jiff_sqlx::Timestamp, _>("updated_at")?.to_jiff(),
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
