//! A change of a user's memories: one transaction, one writer at a time, and the keyword index right at its end.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{Row as _, types::Json};

use super::{
    bind_filter, column, inverted_index, matches_filter, memory, sql_int,
    write_locks::{WriteLocks, WritePermit},
};
use crate::{
    identity::UserId,
    memory::{Memory, MemoryUpdate, Metadata, NewDocument, Selection},
    postgres::{RolePool, RoleTransaction},
};

/// Most rows of one statement.
const BATCH: usize = 1_000;

const UPSERT: &str = "
    insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, created_at, document_id,
                          section_title, chunk_index)
    select $1, id, content, sha256(convert_to(content, 'UTF8')), source_type,
           array(select jsonb_array_elements_text(tags)), metadata, coalesce(created_at, now()), $8, section, chunk
    from unnest($2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[], $7::timestamptz[], $9::text[], $10::int[])
         as new (id, content, source_type, tags, metadata, created_at, section, chunk)
    on conflict (user_id, id) do update
    set content = excluded.content, content_digest = excluded.content_digest, source_type = excluded.source_type,
        tags = excluded.tags, metadata = excluded.metadata, created_at = excluded.created_at, updated_at = now(),
        document_id = excluded.document_id, section_title = excluded.section_title,
        chunk_index = excluded.chunk_index,
        superseded_by = case when memories.content = excluded.content and memories.document_id = excluded.document_id
                             then memories.superseded_by end
    where memories.content <> excluded.content or memories.document_id <> excluded.document_id
          or excluded.document_id <> '' and (memories.section_title, memories.chunk_index, memories.tags, memories.metadata)
             is distinct from (excluded.section_title, excluded.chunk_index, excluded.tags, excluded.metadata)
    returning id";

/// Vectors of other texts, whichever model made them, are of no use any more.
const FORGET_VECTORS: &str = "
    delete from memory_vectors using unnest($2::text[], $3::bytea[]) as new (id, digest)
    where user_id = $1 and memory_id = new.id and memory_vectors.digest <> new.digest";

const INSERT_VECTORS: &str = "
    insert into memory_vectors (user_id, model, memory_id, digest, embedding)
    select $1, $2, id, digest, ($5::real[])[(place - 1) * $6 + 1 : place * $6]::vector
    from unnest($3::text[], $4::bytea[]) with ordinality as new (id, digest, place)
    -- One that was replaced stays out of sight.
    where exists (select from memories where user_id = $1 and memories.id = new.id and superseded_by is null)
    on conflict (user_id, model, memory_id) do nothing
    returning memory_id";

/// Memories that replace what has replaced them, be it by others in between, are to be found again: otherwise none of the
/// circle would be. What replaces a memory by now counts before what has replaced it.
const RESTORE: &str = "
    with recursive new as (
        select old collate \"C\" as old, id collate \"C\" as id
        from unnest($2::text[], $3::text[]) as new (old, id) where old <> id
    ), replaced as (
        select distinct id, id as by from new
        union
        select replaced.id, coalesce(next.id, memories.superseded_by)
        from replaced left join new next on next.old = replaced.by
                      left join memories on memories.user_id = $1 and memories.id = replaced.by
        where coalesce(next.id, memories.superseded_by) is not null
    )
    update memories set superseded_by = null, updated_at = now()
    where user_id = $1 and superseded_by is not null
          and id in (select id from replaced join new using (id) where replaced.by = new.old)
    returning id";

const SUPERSEDE: &str = "
    update memories set superseded_by = new.id, updated_at = now()
    from unnest($2::text[], $3::text[]) as new (old, id)
    where memories.user_id = $1 and memories.id = new.old and memories.id <> new.id
          and memories.superseded_by is distinct from new.id
          -- One that is gone by now replaces nothing.
          and exists (select from memories newer where newer.user_id = $1 and newer.id = new.id)
    returning memories.id";

const KEEP_HISTORY: &str = "
    insert into memory_history (user_id, memory_id, version, content, tags, metadata)
    select user_id, id,
           1 + (select count(*) from memory_history where user_id = $1 and memory_id = $2), content, tags, metadata
    from memories where user_id = $1 and id = $2";

const KEEP_HISTORIES: &str = "
    insert into memory_history (user_id, memory_id, version, content, tags, metadata)
    select memories.user_id, memories.id,
           1 + (select count(*) from memory_history past where past.user_id = $1 and past.memory_id = memories.id),
           memories.content, memories.tags, memories.metadata
    from unnest($2::text[], $3::text[]) as new (id, content)
         join memories on memories.user_id = $1 and memories.id = new.id and memories.content <> new.content";

/// Vectors and histories go with their memories.
const ERASE_MEMORIES: &str = "delete from memories where user_id = $1";
const ERASE_DOCUMENTS: &str = "delete from documents where user_id = $1";
const ERASE_POSTINGS: &str = "delete from memory_postings where user_id = $1";
const ERASE_TERMS: &str = "delete from memory_terms where user_id = $1";
const ERASE_INDEX: &str = "delete from memory_users where user_id = $1";

/// A row to write.
#[derive(Debug)]
pub(in crate::memory) struct NewMemoryRow<'a> {
    pub(in crate::memory) id: &'a str,
    pub(in crate::memory) content: &'a str,
    pub(in crate::memory) source_type: &'a str,
    pub(in crate::memory) tags: &'a [String],
    pub(in crate::memory) metadata: &'a Metadata,
    /// `None` = now.
    pub(in crate::memory) created_at: Option<Timestamp>,
    /// The headings above a chunk, and its number.
    pub(in crate::memory) location: Option<(&'a str, usize)>,
    pub(in crate::memory) vector: NewVector<'a>,
}

/// The vector of a memory.
#[derive(Debug, Clone, Copy)]
pub(in crate::memory) struct NewVector<'a> {
    pub(in crate::memory) id: &'a str,
    /// SHA-256 of the text that it is of.
    pub(in crate::memory) digest: [u8; 32],
    /// `None` = the one that is kept already.
    pub(in crate::memory) embedding: Option<&'a [f32]>,
}

/// A change under way. Dropping it undoes it.
pub(in crate::memory) struct MemoryTransaction<'u> {
    transaction: RoleTransaction,
    user: &'u UserId,
    /// Up to which memory there is an index; `None` = of all.
    indexed_to: Option<String>,
    /// The memories whose index entries have to be made anew.
    touched: BTreeSet<String>,
    _turn: WritePermit<'u>,
}

impl<'u> MemoryTransaction<'u> {
    /// Waits until nobody else changes the user's memories.
    pub(in crate::memory) async fn begin(
        database: &RolePool,
        writers: &'u WriteLocks,
        user: &'u UserId,
    ) -> Result<Self, sqlx::Error> {
        let turn = writers.lock(user).await?;
        let mut transaction = database.begin(user).await?;
        let indexed_to = inverted_index::lock(&mut transaction, user).await?;
        Ok(Self { transaction, user, indexed_to, touched: BTreeSet::new(), _turn: turn })
    }

    pub(in crate::memory) fn inner(&mut self) -> &mut RoleTransaction {
        &mut self.transaction
    }

    /// Brings the index up to date and makes the change last.
    pub(in crate::memory) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let is_indexed = |id: &String| self.indexed_to.as_ref().is_none_or(|to| id <= to);
        let (indexed, later): (Vec<String>, Vec<String>) = self.touched.into_iter().partition(is_indexed);
        inverted_index::refresh(&mut self.transaction, self.user, &indexed).await?;
        // What the index has not come to yet it takes as it is then; what it held of it before is not right any more.
        inverted_index::remove(&mut self.transaction, self.user, &later).await?;
        self.transaction.commit().await
    }

    /// Notes memories that change, and those whose entries tell of them. It is called before and after a change that
    /// moves memories within their conversation.
    async fn touch(&mut self, ids: &[String]) -> Result<(), sqlx::Error> {
        self.touched.extend(inverted_index::followers(&mut self.transaction, self.user, ids).await?);
        self.touched.extend(ids.iter().cloned());
        Ok(())
    }

    /// Writes memories, or chunks of a document, with their vectors, and says which were new or different.
    pub(in crate::memory) async fn upsert(
        &mut self,
        rows: &[NewMemoryRow<'_>],
        document: &str,
        model: &str,
    ) -> Result<BTreeSet<String>, sqlx::Error> {
        let mut written = BTreeSet::new();
        for rows in rows.chunks(BATCH) {
            let ids: Vec<String> = rows.iter().map(|row| row.id.to_owned()).collect();
            // Those that told of a row where it was, and where it is.
            let followers = inverted_index::followers(&mut self.transaction, self.user, &ids).await?;
            if !document.is_empty() {
                // A chunk that was corrected is about to be what the document says again.
                self.keep_histories(rows).await?;
            }
            let changed = self.upsert_rows(rows, document).await?;
            if !changed.is_empty() {
                self.touched.extend(followers);
                self.touch(&changed).await?;
            }
            written.extend(changed);
            let vectors: Vec<_> = rows.iter().map(|row| row.vector).collect();
            written.extend(self.upsert_vectors(&vectors, model).await?);
        }
        Ok(written)
    }

    /// Keeps what some memories were whose content is about to change.
    async fn keep_histories(&mut self, rows: &[NewMemoryRow<'_>]) -> Result<(), sqlx::Error> {
        let query = self
            .transaction
            .query(KEEP_HISTORIES)
            .bind(self.user.as_str())
            .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.content).collect::<Vec<_>>());
        query.execute(&mut *self.transaction).await?;
        Ok(())
    }

    async fn upsert_rows(&mut self, rows: &[NewMemoryRow<'_>], document: &str) -> Result<Vec<String>, sqlx::Error> {
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
            .bind(document)
            .bind(rows.iter().map(|row| row.location.map_or("", |(section, _)| section)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.location.map(|(_, chunk)| sql_int(chunk))).collect::<Vec<_>>());
        column(&query.fetch_all(&mut *self.transaction).await?, "id")
    }

    /// Writes vectors in place of those of other texts, and says whose are new.
    pub(in crate::memory) async fn upsert_vectors(
        &mut self,
        vectors: &[NewVector<'_>],
        model: &str,
    ) -> Result<Vec<String>, sqlx::Error> {
        let query = self
            .transaction
            .query(FORGET_VECTORS)
            .bind(self.user.as_str())
            .bind(vectors.iter().map(|vector| vector.id).collect::<Vec<_>>())
            .bind(vectors.iter().map(|vector| vector.digest.as_slice()).collect::<Vec<_>>());
        query.execute(&mut *self.transaction).await?;
        let (mut ids, mut digests, mut numbers, mut dimension) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for vector in vectors {
            if let Some(embedding) = vector.embedding {
                ids.push(vector.id);
                digests.push(vector.digest.as_slice());
                numbers.extend_from_slice(embedding);
                dimension = embedding.len();
            }
        }
        // As one array of numbers, because a type of an extension would have to be looked up by a named statement.
        let query = self.transaction.query(INSERT_VECTORS).bind(self.user.as_str()).bind(model).bind(ids).bind(digests);
        let query = query.bind(numbers).bind(sql_int(dimension));
        column(&query.fetch_all(&mut *self.transaction).await?, "memory_id")
    }

    /// Forgets the vectors of all other models of memories that have one of this model, and says how many there were.
    pub(in crate::memory) async fn delete_other_models(&mut self, model: &str) -> Result<u64, sqlx::Error> {
        let query = self.transaction.query(
            "delete from memory_vectors where user_id = $1 and model <> $2
             and exists (select from memory_vectors kept
                         where kept.user_id = $1 and kept.model = $2 and kept.memory_id = memory_vectors.memory_id)",
        );
        let query = query.bind(self.user.as_str()).bind(model);
        Ok(query.execute(&mut *self.transaction).await?.rows_affected())
    }

    /// Those of some memories that could be found and have no vector of the model.
    pub(in crate::memory) async fn ids_without_vector(
        &mut self,
        ids: &[String],
        model: &str,
    ) -> Result<Vec<String>, sqlx::Error> {
        let query = self.transaction.query(
            "select id from memories
             where user_id = $1 and id = any($2) and superseded_by is null
                   and not exists (select from memory_vectors vectors
                                   where vectors.user_id = $1 and vectors.model = $3 and vectors.memory_id = memories.id)",
        );
        let query = query.bind(self.user.as_str()).bind(ids).bind(model);
        column(&query.fetch_all(&mut *self.transaction).await?, "id")
    }

    /// Lets memories be found again that are about to replace what has replaced them. It comes before their vectors.
    pub(in crate::memory) async fn break_supersede_cycles(
        &mut self,
        replaced: &[(String, String)],
    ) -> Result<(), sqlx::Error> {
        let (old, new): (Vec<&str>, Vec<&str>) = replaced.iter().map(|(old, new)| (old.as_str(), new.as_str())).unzip();
        let query = self.transaction.query(RESTORE).bind(self.user.as_str()).bind(old).bind(new);
        let restored: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "id")?;
        self.touch(&restored).await
    }

    /// Marks memories as replaced, each by another: they are kept and never found. Ids that do not exist are passed over.
    pub(in crate::memory) async fn supersede(&mut self, replaced: &[(String, String)]) -> Result<(), sqlx::Error> {
        let (old, new): (Vec<String>, Vec<String>) = replaced.iter().cloned().unzip();
        self.touch(&old).await?;
        let query = self.transaction.query(SUPERSEDE).bind(self.user.as_str()).bind(&old).bind(new);
        let rows = query.fetch_all(&mut *self.transaction).await?;
        let superseded: Vec<String> = column(&rows, "id")?;
        let forget = "delete from memory_vectors where user_id = $1 and memory_id = any($2)";
        let query = self.transaction.query(forget).bind(self.user.as_str()).bind(superseded);
        query.execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Writes down a document, and takes away those of its chunks that are not among the new ones. All the others are found by
    /// its title.
    pub(in crate::memory) async fn replace_document(
        &mut self,
        document: &NewDocument,
        chunks: &[&str],
    ) -> Result<(), sqlx::Error> {
        let query = self.transaction.query("select title from documents where user_id = $1 and id = $2");
        let query = query.bind(self.user.as_str()).bind(&document.id);
        let before = query.fetch_optional(&mut *self.transaction).await?;
        if before.map(|row| row.try_get::<String, _>("title")).transpose()?.is_some_and(|title| title != document.title)
        {
            self.touched.extend(chunks.iter().map(|chunk| (*chunk).to_owned()));
        }
        let query = self
            .transaction
            .query(
                "insert into documents (user_id, id, title, url) values ($1, $2, $3, $4)
                 on conflict (user_id, id) do update
                 set title = excluded.title, url = excluded.url, updated_at = now()",
            )
            .bind(self.user.as_str())
            .bind(&document.id)
            .bind(&document.title)
            .bind(&document.url);
        query.execute(&mut *self.transaction).await?;
        let query = self
            .transaction
            .query("delete from memories where user_id = $1 and document_id = $2 and id <> all($3) returning id");
        let query = query.bind(self.user.as_str()).bind(&document.id).bind(chunks);
        let gone: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "id")?;
        self.touched.extend(gone);
        Ok(())
    }

    /// Corrects a memory and keeps what it was, unless nothing differs. `None` where there is no such memory.
    ///
    /// A vector of the new content comes with its model.
    pub(in crate::memory) async fn update(
        &mut self,
        correction: &MemoryUpdate,
        vector: Option<(NewVector<'_>, &str)>,
    ) -> Result<Option<Memory>, sqlx::Error> {
        let id = &correction.id;
        let Some(before) = memory(&mut self.transaction, self.user, id).await? else { return Ok(None) };
        let differs = correction.content.as_ref().is_some_and(|content| *content != before.content)
            || correction.tags.as_ref().is_some_and(|tags| *tags != before.tags)
            || correction.metadata.as_ref().is_some_and(|metadata| *metadata != before.metadata);
        if !differs {
            return Ok(Some(before));
        }
        self.touch(std::slice::from_ref(id)).await?;
        let query = self.transaction.query(KEEP_HISTORY).bind(self.user.as_str()).bind(id);
        query.execute(&mut *self.transaction).await?;
        let query = self
            .transaction
            .query(
                "update memories
                 set content = $3, content_digest = sha256(convert_to($3, 'UTF8')), metadata = $5, updated_at = now(),
                     tags = array(select jsonb_array_elements_text($4))
                 where user_id = $1 and id = $2",
            )
            .bind(self.user.as_str())
            .bind(id)
            .bind(correction.content.as_ref().unwrap_or(&before.content))
            .bind(Json(correction.tags.as_ref().unwrap_or(&before.tags)))
            .bind(Json(correction.metadata.as_ref().unwrap_or(&before.metadata)));
        query.execute(&mut *self.transaction).await?;
        if let Some((vector, model)) = vector
            && before.superseded_by.is_none()
        {
            self.upsert_vectors(&[vector], model).await?;
        }
        self.touch(std::slice::from_ref(id)).await?;
        memory(&mut self.transaction, self.user, id).await
    }

    /// Forgets a selection, with its vectors and histories, and says how many memories there were.
    pub(in crate::memory) async fn delete(&mut self, selection: &Selection) -> Result<usize, sqlx::Error> {
        const BY_FILTER: &str = concat!("select id from memories where ", matches_filter!());
        let (transaction, user) = (&self.transaction, self.user.as_str());
        let query = match selection {
            Selection::Ids(ids) => {
                transaction.query("select id from memories where user_id = $1 and id = any($2)").bind(user).bind(ids)
            }
            Selection::Document(document) => transaction
                .query("select id from memories where user_id = $1 and document_id = $2")
                .bind(user)
                .bind(document),
            Selection::Matching(filter) => bind_filter(transaction.query(BY_FILTER), self.user, filter),
        };
        let ids: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "id")?;
        let followers = inverted_index::followers(&mut self.transaction, self.user, &ids).await?;
        let query = self
            .transaction
            .query("delete from memories where user_id = $1 and id = any($2) returning document_id")
            .bind(user)
            .bind(&ids);
        let mut documents: Vec<String> = column(&query.fetch_all(&mut *self.transaction).await?, "document_id")?;
        if let Selection::Document(document) = selection {
            // It may have none.
            documents.push(document.clone());
        }
        inverted_index::remove(&mut self.transaction, self.user, &ids).await?;
        let deleted: HashSet<&String> = ids.iter().collect();
        self.touched.extend(followers.into_iter().filter(|follower| !deleted.contains(follower)));
        // A document is gone with its last chunk.
        documents.sort_unstable();
        documents.dedup();
        documents.retain(|document| !document.is_empty());
        if !documents.is_empty() {
            let query = self.transaction.query(
                "delete from documents where user_id = $1 and id = any($2)
                 and not exists (select from memories where memories.user_id = $1 and memories.document_id <> ''
                                 and memories.document_id = documents.id)",
            );
            query.bind(user).bind(documents).execute(&mut *self.transaction).await?;
        }
        Ok(ids.len())
    }

    /// Deletes all memories of the user; returns how many there were.
    pub(in crate::memory) async fn erase_user(&mut self) -> Result<usize, sqlx::Error> {
        let mut memories = 0;
        for table in [ERASE_MEMORIES, ERASE_DOCUMENTS, ERASE_POSTINGS, ERASE_TERMS, ERASE_INDEX] {
            let query = self.transaction.query(table).bind(self.user.as_str());
            let deleted = query.execute(&mut *self.transaction).await?.rows_affected();
            if table == ERASE_MEMORIES {
                memories = usize::try_from(deleted).unwrap_or(usize::MAX);
            }
        }
        Ok(memories)
    }
}
