//! The keyword index of one user: postings, document frequencies, count and total length. It changes in the transaction of
//! the rows, under a lock that lets one writer at a time change a user's memories.

use sqlx::Row as _;

use super::column;
use crate::{
    identity::UserId,
    memory::{
        index_input::{IndexInput, TermFrequencies},
        tokenizer,
    },
    postgres::RoleTransaction,
};

/// Memories that are indexed at once, so that not all texts of a user are in memory together.
const BATCH: usize = 500;

const LOCK: &str = "
    insert into memory_users (user_id, tokenizer) values ($1, $2)
    on conflict (user_id) do update set tokenizer = memory_users.tokenizer
    returning tokenizer, indexed_to, xmax = 0 as is_new";

/// How far an index is, and whether nobody else is at it: to wait for the lock of another process would keep a connection.
const STATE: &str = "
    with free as (select from memory_users where user_id = $1 for update skip locked)
    select tokenizer, indexed_to is null as is_whole, exists (select from free) as is_free
    from memory_users where user_id = $1";

/// Begins an index anew: of memories from before there was one, or of an older tokeniser. What the older one left is replaced
/// part by part, and the statistics are at all times of what is there.
const RESTART: &str = "
    update memory_users
    set tokenizer = $2, indexed_to = case when exists (select from memories where user_id = $1) then '' end
    where user_id = $1
    returning indexed_to";

/// Each part sees the tables as they were before the statement, so that none depends on the order of the others. It gives the
/// terms that no memory has any more.
const REMOVE: &str = "
    with gone as (
        delete from memory_postings where user_id = $1 and memory_id = any($2) returning term, memory_id, length
    ), lengths as (
        select distinct memory_id, length from gone
    ), counted as (
        update memory_users
        set memories = memories - (select count(*) from lengths),
            total_length = total_length - (select coalesce(sum(length::float8), 0) from lengths)
        where user_id = $1
    ), per_term as (
        select term, count(*) as memories from gone group by term
    ), fewer as (
        update memory_terms set memories = memory_terms.memories - per_term.memories
        from per_term
        where memory_terms.user_id = $1 and memory_terms.term = per_term.term
        returning memory_terms.term, memory_terms.memories
    )
    select term from fewer where memories <= 0";

const ADD: &str = "
    with added as (
        insert into memory_postings (user_id, term, memory_id, frequency, length)
        select $1, new.* from unnest($2::text[], $3::text[], $4::real[], $5::real[]) as new
        returning term, memory_id, length
    ), lengths as (
        select distinct memory_id, length from added
    ), counted as (
        update memory_users
        set memories = memories + (select count(*) from lengths),
            total_length = total_length + (select coalesce(sum(length::float8), 0) from lengths)
        where user_id = $1
    )
    insert into memory_terms (user_id, term, memories)
    select $1, term, count(*) from added group by term
    on conflict (user_id, term) do update set memories = memory_terms.memories + excluded.memories";

/// What is indexed of some memories that can be found. Two turns before each, as `indexed::BEFORE` weighs.
const INDEXED: &str = "
    select memories.id, memories.content, memories.created_at, coalesce(memories.metadata ->> 'speaker', '') as speaker,
           coalesce(documents.title, '') as title, memories.section_title,
           array(select earlier.content from memories earlier
                 where earlier.user_id = $1 and earlier.session_id <> '' and earlier.session_id = memories.session_id
                       and earlier.superseded_by is null
                       and (earlier.created_at, earlier.id) < (memories.created_at, memories.id)
                 order by earlier.created_at desc, earlier.id desc limit 2) as before
    from memories left join documents on documents.user_id = $1 and documents.id = memories.document_id
    where memories.user_id = $1 and memories.id = any($2) and memories.superseded_by is null";

/// The two turns after each of some memories.
const FOLLOWERS: &str = "
    select distinct later.id
    from memories cross join lateral (
        select id from memories follower
        where follower.user_id = $1 and follower.session_id <> '' and follower.session_id = memories.session_id
              and follower.superseded_by is null
              and (follower.created_at, follower.id) > (memories.created_at, memories.id)
        order by follower.created_at, follower.id limit 2
    ) as later
    where memories.user_id = $1 and memories.id = any($2) and memories.session_id <> ''";

/// Makes this transaction the only one that changes the user's memories, and says up to which of them there is an index;
/// `None` = of all.
pub(super) async fn lock(transaction: &mut RoleTransaction, user: &UserId) -> Result<Option<String>, sqlx::Error> {
    let query = transaction.query(LOCK).bind(user.as_str()).bind(tokenizer::VERSION);
    let row = query.fetch_one(&mut **transaction).await?;
    // An index of a newer tokeniser is kept up as well as this one can: processes of both versions run side by side while
    // one takes the other's place, and must not begin each other's work anew.
    if !row.try_get::<bool, _>("is_new")? && row.try_get::<i32, _>("tokenizer")? >= tokenizer::VERSION {
        return row.try_get("indexed_to");
    }
    let query = transaction.query(RESTART).bind(user.as_str()).bind(tokenizer::VERSION);
    query.fetch_one(&mut **transaction).await?.try_get("indexed_to")
}

/// What became of an index of which a part was to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::memory) enum IndexAdvance {
    /// A part was made, and there may be more to do.
    Partial,
    /// It is whole.
    Complete,
    /// Somebody else is at it: another process, or one with a newer tokeniser.
    Contended,
}

/// Makes the next part of the index of a user who has memories and no whole one. Each part is a transaction of its own, so
/// that what was done stays done.
pub(in crate::memory) async fn advance(
    transaction: &mut RoleTransaction,
    user: &UserId,
) -> Result<IndexAdvance, sqlx::Error> {
    if let Some(row) = transaction.query(STATE).bind(user.as_str()).fetch_optional(&mut **transaction).await? {
        let version: i32 = row.try_get("tokenizer")?;
        if version >= tokenizer::VERSION && row.try_get("is_whole")? {
            return Ok(IndexAdvance::Complete);
        }
        if version > tokenizer::VERSION || !row.try_get::<bool, _>("is_free")? {
            return Ok(IndexAdvance::Contended);
        }
    }
    let Some(after) = lock(transaction, user).await? else { return Ok(IndexAdvance::Complete) };
    let query = transaction
        .query("select id from memories where user_id = $1 and id > $2 order by id limit $3")
        .bind(user.as_str())
        .bind(&after)
        .bind(super::sql_int(BATCH));
    let ids: Vec<String> = column(&query.fetch_all(&mut **transaction).await?, "id")?;
    refresh(transaction, user, &ids).await?;
    let query = transaction.query("update memory_users set indexed_to = $2 where user_id = $1");
    query.bind(user.as_str()).bind(ids.last()).execute(&mut **transaction).await?;
    Ok(if ids.is_empty() { IndexAdvance::Complete } else { IndexAdvance::Partial })
}

/// Makes the index entries of some memories anew, some of which may be gone.
pub(super) async fn refresh(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    for ids in ids.chunks(BATCH) {
        remove(transaction, user, ids).await?;
        add(transaction, user, ids).await?;
    }
    Ok(())
}

/// Takes memories out of the index; those that are not in it do no harm.
pub(super) async fn remove(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let query = transaction.query(REMOVE).bind(user.as_str()).bind(ids);
    let unused: Vec<String> = column(&query.fetch_all(&mut **transaction).await?, "term")?;
    if !unused.is_empty() {
        let query = transaction.query("delete from memory_terms where user_id = $1 and term = any($2)");
        query.bind(user.as_str()).bind(unused).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// The memories whose entries tell of some others: the turns after them.
pub(super) async fn followers(
    transaction: &mut RoleTransaction,
    user: &UserId,
    ids: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    let query = transaction.query(FOLLOWERS).bind(user.as_str()).bind(ids);
    column(&query.fetch_all(&mut **transaction).await?, "id")
}

/// Puts memories into the index that are not in it.
async fn add(transaction: &mut RoleTransaction, user: &UserId, ids: &[String]) -> Result<(), sqlx::Error> {
    let (mut terms, mut of, mut frequencies, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let query = transaction.query(INDEXED).bind(user.as_str()).bind(ids);
    for row in query.fetch_all(&mut **transaction).await? {
        let id: String = row.try_get("id")?;
        let before: Vec<String> = row.try_get("before")?;
        let indexed = IndexInput {
            content: row.try_get("content")?,
            created_at: super::timestamp(&row, "created_at")?,
            speaker: row.try_get("speaker")?,
            title: row.try_get("title")?,
            section: row.try_get("section_title")?,
            preceding_turns: &before,
        };
        let TermFrequencies { frequencies: of_terms, length } = indexed.terms();
        drop((row, before));
        for (term, frequency) in of_terms {
            terms.push(term);
            of.push(id.clone());
            frequencies.push(frequency);
            lengths.push(length);
        }
        // A long text takes milliseconds, and 500 of them would keep all other calls waiting.
        tokio::task::yield_now().await;
    }
    if terms.is_empty() {
        return Ok(());
    }
    let query = transaction.query(ADD).bind(user.as_str()).bind(terms).bind(of).bind(frequencies).bind(lengths);
    query.execute(&mut **transaction).await?;
    Ok(())
}
