//! The keyword index of one user: postings, document frequencies, count and total length. It changes in the transaction of
//! the rows, under a lock that lets one writer at a time change a user's memories.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row as _};

use crate::{identity::UserId, memory::tokenizer};

/// What the index holds of one memory.
pub(in crate::memory) struct Entry<'a> {
    pub(in crate::memory) id: &'a str,
    /// How often each term stands in it.
    frequencies: BTreeMap<String, i32>,
    /// How many terms it has, repeats counted.
    length: i32,
}

impl<'a> Entry<'a> {
    /// The entry of a memory with this text.
    pub(in crate::memory) fn new(id: &'a str, text: &str) -> Self {
        let mut frequencies = BTreeMap::new();
        let mut length = 0;
        for token in tokenizer::tokens(text) {
            *frequencies.entry(token).or_default() += 1;
            length += 1;
        }
        Self { id, frequencies, length }
    }
}

const LOCK: &str = "
    insert into memory_users (user_id, tokenizer) values ($1, $2)
    on conflict (user_id) do update set tokenizer = memory_users.tokenizer
    returning tokenizer, xmax = 0 as is_new";

/// Each part sees the tables as they were before the statement, so that none depends on the order of the others.
const REMOVE: &str = "
    with gone as (
        delete from memory_postings where user_id = $1 and memory_id = any($2) returning term, memory_id, length
    ), lengths as (
        select distinct memory_id, length from gone
    ), counted as (
        update memory_users
        set memories = memories - (select count(*) from lengths),
            total_length = total_length - (select coalesce(sum(length), 0) from lengths)
        where user_id = $1
    ), per_term as (
        select term, count(*) as memories from gone group by term
    ), emptied as (
        delete from memory_terms using per_term
        where memory_terms.user_id = $1 and memory_terms.term = per_term.term
              and memory_terms.memories <= per_term.memories
    )
    update memory_terms set memories = memory_terms.memories - per_term.memories
    from per_term
    where memory_terms.user_id = $1 and memory_terms.term = per_term.term and memory_terms.memories > per_term.memories";

const ADD: &str = "
    with added as (
        insert into memory_postings (user_id, term, memory_id, frequency, length)
        select $1, new.* from unnest($2::text[], $3::text[], $4::int[], $5::int[]) as new
        returning term, memory_id, length
    ), lengths as (
        select distinct memory_id, length from added
    ), counted as (
        update memory_users
        set memories = memories + (select count(*) from lengths),
            total_length = total_length + (select coalesce(sum(length), 0) from lengths)
        where user_id = $1
    )
    insert into memory_terms (user_id, term, memories)
    select $1, term, count(*) from added group by term
    on conflict (user_id, term) do update set memories = memory_terms.memories + excluded.memories";

/// Makes this transaction the only one that changes the user's memories, and the index one of this tokeniser's.
pub(in crate::memory) async fn lock(connection: &mut PgConnection, user: &UserId) -> Result<(), sqlx::Error> {
    let row = sqlx::query(LOCK).bind(user.as_str()).bind(tokenizer::VERSION).fetch_one(&mut *connection).await?;
    if row.try_get::<bool, _>("is_new")? || row.try_get::<i32, _>("tokenizer")? != tokenizer::VERSION {
        rebuild(connection, user).await?;
    }
    Ok(())
}

/// Indexes everything of a user anew: memories from before there was an index, or of another tokeniser.
async fn rebuild(connection: &mut PgConnection, user: &UserId) -> Result<(), sqlx::Error> {
    /// Memories that are read at once, so that not all texts of a user are in memory together.
    const BATCH: i64 = 500;
    for statement in [
        "delete from memory_postings where user_id = $1",
        "delete from memory_terms where user_id = $1",
        "update memory_users set memories = 0, total_length = 0 where user_id = $1",
    ] {
        sqlx::query(statement).bind(user.as_str()).execute(&mut *connection).await?;
    }
    let mut after = String::new();
    loop {
        let rows = sqlx::query("select id, content from memories where user_id = $1 and id > $2 order by id limit $3")
            .bind(user.as_str())
            .bind(&after)
            .bind(BATCH)
            .fetch_all(&mut *connection)
            .await?;
        let texts = rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("content")?)));
        let texts = texts.collect::<Result<Vec<(String, String)>, sqlx::Error>>()?;
        let Some((last, _)) = texts.last() else { break };
        after.clone_from(last);
        let entries: Vec<_> = texts.iter().map(|(id, content)| Entry::new(id, content)).collect();
        add(connection, user, &entries).await?;
    }
    sqlx::query("update memory_users set tokenizer = $2 where user_id = $1")
        .bind(user.as_str())
        .bind(tokenizer::VERSION)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes memories out of the index; those that are not in it do no harm.
pub(in crate::memory) async fn remove(
    connection: &mut PgConnection,
    user: &UserId,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    if !ids.is_empty() {
        sqlx::query(REMOVE).bind(user.as_str()).bind(ids).execute(connection).await?;
    }
    Ok(())
}

/// Forgets that there is such a user, all of whose memories are deleted.
pub(in crate::memory) async fn forget(connection: &mut PgConnection, user: &UserId) -> Result<(), sqlx::Error> {
    sqlx::query("delete from memory_users where user_id = $1").bind(user.as_str()).execute(connection).await?;
    Ok(())
}

/// Puts memories into the index that are not in it.
pub(in crate::memory) async fn add(
    connection: &mut PgConnection,
    user: &UserId,
    entries: &[Entry<'_>],
) -> Result<(), sqlx::Error> {
    let (mut terms, mut ids, mut frequencies, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        for (term, frequency) in &entry.frequencies {
            terms.push(term.as_str());
            ids.push(entry.id);
            frequencies.push(*frequency);
            lengths.push(entry.length);
        }
    }
    if terms.is_empty() {
        return Ok(());
    }
    sqlx::query(ADD)
        .bind(user.as_str())
        .bind(terms)
        .bind(ids)
        .bind(frequencies)
        .bind(lengths)
        .execute(connection)
        .await?;
    Ok(())
}
