//! Postings, document frequencies, number and total length of a user's memories. They change in the transaction of the
//! memories, under the row lock that serializes a user's writers.

use sqlx::{Row as _, postgres::PgRow};

use super::{column, parts, sql_int, timestamp};
use crate::{
    identity::UserId,
    memory::{
        index_input::{IndexInput, MAX_BYTES_WITH_PRECEDING_TURNS, PRECEDING_TURN_CHARS, TermFrequencies},
        tokenizer,
    },
    postgres::RoleTransaction,
};

/// Memories that a transaction of the index build indexes.
const BUILD_BATCH: usize = 500;
const BUILD_BATCH_BYTES: usize = 500_000;
/// Memories whose texts, or removed terms, are held at once, and about as many postings of them.
const BATCH: usize = 500;
const BATCH_POSTINGS: usize = 50_000;
/// Postings after which a statement is full. Those of a memory are never divided, because a statement counts memories.
const FULL_STATEMENT: usize = 10_000;
/// A term has at least two bytes, and mostly more.
const BYTES_PER_POSTING: usize = 4;
const MAX_IDS: usize = 5_000;

const LOCK: &str = include_str!("sql/lock_index.sql");
const STATE: &str = include_str!("sql/index_state.sql");
const RESTART: &str = include_str!("sql/restart_index.sql");
const REMOVE: &str = include_str!("sql/remove_postings.sql");
const ADD: &str = include_str!("sql/add_postings.sql");
const INPUTS: &str = include_str!("sql/index_inputs.sql");
const FOLLOWING_TURNS: &str = include_str!("sql/following_turns.sql");
const SIZES: &str = include_str!("sql/index_sizes.sql");
const NEXT_TO_INDEX: &str = include_str!("sql/next_to_index.sql");

pub(super) struct LockedUser {
    /// The id up to which memories are indexed; `None`: the index is complete.
    pub(super) indexed_to: Option<String>,
    /// Every vector has a copy in half precision.
    pub(super) has_half_vectors: bool,
}

/// False if the user has no row, which [`lock`] would insert.
pub(super) async fn lock_existing(transaction: &mut RoleTransaction, user: &UserId) -> Result<bool, sqlx::Error> {
    let query = transaction.query("select from memory_users where user_id = $1 for update").bind(user.as_str());
    Ok(query.fetch_optional(&mut **transaction).await?.is_some())
}

/// Serializes all writers of the user.
pub(super) async fn lock(transaction: &mut RoleTransaction, user: &UserId) -> Result<LockedUser, sqlx::Error> {
    let query = transaction.query(LOCK).bind(user.as_str()).bind(tokenizer::VERSION);
    let row = query.fetch_one(&mut **transaction).await?;
    let has_half_vectors = row.try_get("has_half_vectors")?;
    // An index of a newer tokenizer is maintained with this one: during a rolling deployment, processes of both
    // versions must not restart each other's work.
    if !row.try_get::<bool, _>("is_new")? && row.try_get::<i32, _>("tokenizer")? >= tokenizer::VERSION {
        return Ok(LockedUser { indexed_to: row.try_get("indexed_to")?, has_half_vectors });
    }
    let query = transaction.query(RESTART).bind(user.as_str()).bind(tokenizer::VERSION);
    let row = query.fetch_one(&mut **transaction).await?;
    Ok(LockedUser { indexed_to: row.try_get("indexed_to")?, has_half_vectors })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexAdvance {
    Partial,
    Complete,
    /// Another process is building the index, or has a newer tokenizer.
    Contended,
}

/// Each batch is a transaction of its own, so that cancellation loses one batch at most.
pub(crate) async fn advance(transaction: &mut RoleTransaction, user: &UserId) -> Result<IndexAdvance, sqlx::Error> {
    if let Some(row) = transaction.query(STATE).bind(user.as_str()).fetch_optional(&mut **transaction).await? {
        let version: i32 = row.try_get("tokenizer")?;
        if version >= tokenizer::VERSION && row.try_get("is_complete")? {
            return Ok(IndexAdvance::Complete);
        }
        if version > tokenizer::VERSION || !row.try_get::<bool, _>("is_unlocked")? {
            return Ok(IndexAdvance::Contended);
        }
    }
    let Some(after) = lock(transaction, user).await?.indexed_to else { return Ok(IndexAdvance::Complete) };
    let query = transaction
        .query(NEXT_TO_INDEX)
        .bind(user.as_str())
        .bind(&after)
        .bind(sql_int(BUILD_BATCH))
        .bind(sql_int(BUILD_BATCH_BYTES));
    let ids: Vec<String> = column(&query.fetch_all(&mut **transaction).await?, "id")?;
    refresh(transaction, user, &ids).await?;
    let query = transaction.query("update memory_users set indexed_to = $2 where user_id = $1");
    query.bind(user.as_str()).bind(ids.last()).execute(&mut **transaction).await?;
    Ok(if ids.is_empty() { IndexAdvance::Complete } else { IndexAdvance::Partial })
}

/// Memories that are indexed together.
struct Batch {
    ids: Vec<String>,
    has_postings: bool,
}

/// Removes the postings of deleted memories.
pub(super) async fn refresh(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    for ids in ids.chunks(MAX_IDS) {
        for batch in batches(transaction, user, ids).await? {
            remove_batch(transaction, user, &batch).await?;
            add(transaction, user, &batch.ids).await?;
        }
    }
    Ok(())
}

/// Ids without postings are ignored.
pub(super) async fn remove(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    for ids in ids.chunks(MAX_IDS) {
        for batch in batches(transaction, user, ids).await? {
            remove_batch(transaction, user, &batch).await?;
        }
    }
    Ok(())
}

async fn batches(transaction: &mut RoleTransaction, user: &UserId, ids: &[String]) -> Result<Vec<Batch>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = transaction.query(SIZES).bind(user.as_str()).bind(ids).fetch_all(&mut **transaction).await?;
    let size = |row: &PgRow| {
        let (postings, bytes): (i64, i32) = (row.try_get("postings")?, row.try_get("bytes")?);
        let (postings, bytes) =
            (usize::try_from(postings).unwrap_or_default(), usize::try_from(bytes).unwrap_or_default());
        Ok::<(String, usize, usize), sqlx::Error>((row.try_get("id")?, postings, bytes / BYTES_PER_POSTING))
    };
    let sizes = rows.iter().map(size).collect::<Result<Vec<_>, _>>()?;
    let batches = parts(&sizes, BATCH, BATCH_POSTINGS, |(_, postings, new)| postings.max(new).to_owned());
    let batch = |sizes: &[(String, usize, usize)]| Batch {
        ids: sizes.iter().map(|(id, ..)| id.clone()).collect(),
        has_postings: sizes.iter().any(|(_, postings, _)| *postings > 0),
    };
    Ok(batches.map(batch).collect())
}

async fn remove_batch(transaction: &mut RoleTransaction, user: &UserId, batch: &Batch) -> Result<(), sqlx::Error> {
    if !batch.has_postings {
        return Ok(());
    }
    let query = transaction.query(REMOVE).bind(user.as_str()).bind(&batch.ids);
    let unused: Vec<String> = column(&query.fetch_all(&mut **transaction).await?, "term")?;
    if !unused.is_empty() {
        let query = transaction.query("delete from memory_terms where user_id = $1 and term = any($2)");
        query.bind(user.as_str()).bind(unused).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Turns whose postings contain terms of these memories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowingTurns {
    /// Of memories that are written. Bounds what a request has indexed again.
    Indexed,
    /// Of memories whose words must not stay: also turns that may have been indexed by an earlier version.
    All,
}

pub(super) async fn following_turns(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[String],
    following: FollowingTurns,
) -> Result<Vec<String>, sqlx::Error> {
    let query = transaction.query(FOLLOWING_TURNS).bind(user.as_str()).bind(ids);
    let is_bounded = following == FollowingTurns::Indexed;
    let query = query.bind(is_bounded.then(|| sql_int(MAX_BYTES_WITH_PRECEDING_TURNS)));
    column(&query.fetch_all(&mut **transaction).await?, "id")
}

#[derive(Default)]
struct Postings {
    terms: Vec<String>,
    memory_ids: Vec<String>,
    frequencies: Vec<f32>,
    lengths: Vec<f32>,
}

/// The memories must have no postings yet.
async fn add(transaction: &mut RoleTransaction, user: &UserId, ids: &[String]) -> Result<(), sqlx::Error> {
    let mut postings = Postings::default();
    let query = transaction.query(INPUTS).bind(user.as_str()).bind(ids);
    let query = query.bind(sql_int(MAX_BYTES_WITH_PRECEDING_TURNS)).bind(sql_int(PRECEDING_TURN_CHARS));
    for row in query.fetch_all(&mut **transaction).await? {
        let id: String = row.try_get("id")?;
        let preceding_turns: Vec<String> = row.try_get("preceding_turns")?;
        let input = IndexInput {
            content: row.try_get("content")?,
            created_at: timestamp(&row, "created_at")?,
            speaker: row.try_get("speaker")?,
            title: row.try_get("title")?,
            section: row.try_get("section_title")?,
            preceding_turns: &preceding_turns,
        };
        let TermFrequencies { frequencies, length } = input.terms();
        drop((row, preceding_turns));
        for (term, frequency) in frequencies {
            postings.terms.push(term);
            postings.memory_ids.push(id.clone());
            postings.frequencies.push(frequency);
            postings.lengths.push(length);
        }
        if postings.terms.len() >= FULL_STATEMENT {
            insert(transaction, user, std::mem::take(&mut postings)).await?;
        }
        // A long text takes milliseconds; 500 of them would block the other tasks of this thread.
        tokio::task::yield_now().await;
    }
    insert(transaction, user, postings).await
}

async fn insert(transaction: &mut RoleTransaction, user: &UserId, postings: Postings) -> Result<(), sqlx::Error> {
    if postings.terms.is_empty() {
        return Ok(());
    }
    let query = transaction
        .query(ADD)
        .bind(user.as_str())
        .bind(postings.terms)
        .bind(postings.memory_ids)
        .bind(postings.frequencies)
        .bind(postings.lengths);
    query.execute(&mut **transaction).await?;
    Ok(())
}
