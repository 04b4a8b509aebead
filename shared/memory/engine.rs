//! Keeping, correcting and forgetting.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_stream::try_stream;
use futures_util::{Stream, future::BoxFuture};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    AddOutcome, ExportedMemory, Filter, Memory, MemoryError, MemoryPage, MemoryUpdate, Metadata, NewMemory, PageToken,
    Selection,
    index_input::vector_text,
    store::{self, MemoryTransaction, NewMemoryRow, NewVector, WriteLocks, knn::VectorIndex, search::Bm25Params},
};
use crate::{
    config::MemoryConfig,
    embedding::{Embedder, QueryCache},
    identity::{MAX_ID_BYTES, UserId},
    postgres::{RolePool, RolePools, RoleTransaction},
};

/// Most that one call to the database may take.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(20);
/// Most that writing many rows may take: a document of 20,000 chunks, 1,000 long memories, or forgetting as many.
pub(super) const BULK_TIMEOUT: Duration = Duration::from_mins(5);
/// Memories that an export reads at once.
const EXPORT_PAGE: usize = 200;

/// The memory of all users.
pub struct MemoryEngine {
    pub(super) service: RolePool,
    pub(super) reader: RolePool,
    pub(super) maintenance: RolePool,
    pub(super) writers: WriteLocks,
    pub(super) embedder: Arc<dyn Embedder>,
    pub(super) query_cache: QueryCache,
    /// What vectors of the embedder are kept under.
    pub(super) model_key: String,
    pub(super) vector_index: VectorIndex,
    pub(super) bm25: Bm25Params,
}

impl MemoryEngine {
    /// A memory in a database, with vectors of an embedder.
    #[must_use]
    pub fn new(config: MemoryConfig, database: RolePools, embedder: Arc<dyn Embedder>) -> Self {
        Self {
            service: database.service,
            reader: database.reader,
            maintenance: database.maintenance,
            writers: WriteLocks::default(),
            model_key: store::model_key(embedder.model()),
            vector_index: VectorIndex::new(embedder.model(), config.vector_index_threshold),
            bm25: Bm25Params { k1: config.k1, b: config.b },
            query_cache: QueryCache::new(embedder.clone()),
            embedder,
        }
    }

    /// Whether there is a database to search.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.reader.is_configured()
    }

    /// Opens the connections that the first search uses. What fails is tried again then.
    pub async fn warm_up(&self) {
        let database = async {
            if let Ok(transaction) = self.reader.begin_without_user().await {
                drop(transaction.commit().await);
            }
        };
        tokio::join!(database, self.embedder.warm_up());
    }

    /// Keeps memories: all of them or, after an error, none. Where an id occurs twice, the last one counts. Content that is
    /// kept already is not kept again, unless it comes with an id of the client's.
    ///
    /// # Errors
    /// The embedder or the database failed.
    pub async fn add(&self, user: &UserId, memories: Vec<NewMemory>) -> Result<AddOutcome, MemoryError> {
        let count = memories.len();
        let mut batch = WriteBatch::from_memories(memories);
        within(BULK_TIMEOUT, self.drop_unchanged(user, &mut batch)).await?;
        let texts: Vec<&str> = batch.texts().collect();
        let vectors = self.embed(&texts).await?;
        let vectors: HashMap<String, Vec<f32>> = batch.row_ids().cloned().zip(vectors).collect();
        let added = within(BULK_TIMEOUT, self.write(user, &mut batch, &vectors)).await?;
        Ok(AddOutcome { ids: batch.ids(), added, unchanged: count - added })
    }

    /// Takes those memories out of a batch that are kept already, before anything is embedded.
    pub(super) async fn drop_unchanged(&self, user: &UserId, batch: &mut WriteBatch) -> Result<(), sqlx::Error> {
        let mut transaction = self.service.with_statement_timeout(BULK_TIMEOUT).begin(user).await?;
        let (ids, contents): (Vec<&str>, Vec<&str>) =
            batch.rows.iter().map(|(id, memory)| (id.as_str(), memory.content.as_str())).unzip();
        let digests: Vec<[u8; 32]> = contents.iter().map(|content| digest(content)).collect();
        let unchanged =
            store::unchanged_ids(&mut transaction, user, &ids, &contents, &digests, &self.model_key).await?;
        batch.rows.retain(|id, _| !unchanged.contains(id));
        let (new, texts) = batch.without_client_id();
        let existing = store::existing_ids(&mut transaction, user, (&texts.0, &texts.1)).await?;
        batch.take_existing(new, existing);
        transaction.commit().await
    }

    async fn write(
        &self,
        user: &UserId,
        batch: &mut WriteBatch,
        vectors: &HashMap<String, Vec<f32>>,
    ) -> Result<usize, sqlx::Error> {
        if batch.rows.is_empty() && batch.supersedes.is_empty() {
            return Ok(0);
        }
        let mut change = self.begin_bulk(user).await?;
        let written = self.write_batch(user, &mut change, batch, vectors).await?;
        change.commit().await?;
        Ok(written)
    }

    /// Writes a batch in a change that goes on.
    pub(super) async fn write_batch(
        &self,
        user: &UserId,
        change: &mut MemoryTransaction<'_>,
        batch: &mut WriteBatch,
        vectors: &HashMap<String, Vec<f32>>,
    ) -> Result<usize, sqlx::Error> {
        // Somebody may have kept the same content meanwhile.
        let (new, texts) = batch.without_client_id();
        let existing = store::existing_ids(change.inner(), user, (&texts.0, &texts.1)).await?;
        batch.take_existing(new, existing);
        let rows: Vec<NewMemoryRow<'_>> = batch
            .rows
            .iter()
            .map(|(id, memory)| NewMemoryRow {
                id,
                content: &memory.content,
                source_type: &memory.source_type,
                tags: &memory.tags,
                metadata: &memory.metadata,
                created_at: memory.created_at,
                location: None,
                vector: NewVector {
                    id,
                    digest: digest(&memory.content),
                    embedding: vectors.get(id).map(Vec::as_slice),
                },
            })
            .collect();
        let superseded = batch.superseded();
        change.break_supersede_cycles(&superseded).await?;
        let written = change.upsert(&rows, "", &self.model_key).await?;
        change.supersede(&superseded).await?;
        Ok(written.len())
    }

    /// Corrects a memory; what it was before stays in its history.
    ///
    /// # Errors
    /// There is no such memory, or the embedder or the database failed.
    pub async fn update(&self, user: &UserId, correction: &MemoryUpdate) -> Result<Memory, MemoryError> {
        let vector = match &correction.content {
            Some(content) => self.vector_of_correction(user, &correction.id, content).await?,
            None => None,
        };
        let corrected = within_timeout(async {
            let mut change = MemoryTransaction::begin(&self.service, &self.writers, user).await?;
            let vector = vector.as_ref().map(|(vector, digest)| {
                (NewVector { id: &correction.id, digest: *digest, embedding: Some(vector) }, self.model_key.as_str())
            });
            let corrected = change.update(correction, vector).await?;
            change.commit().await?;
            Ok(corrected)
        });
        corrected.await?.ok_or(MemoryError::NotFound)
    }

    /// The vector of a memory's new content, with the digest of its text.
    async fn vector_of_correction(
        &self,
        user: &UserId,
        id: &str,
        content: &str,
    ) -> Result<Option<(Vec<f32>, [u8; 32])>, MemoryError> {
        let memory = within_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let memory = store::memory(&mut transaction, user, id).await?;
            transaction.commit().await?;
            Ok(memory)
        });
        let Some(memory) = memory.await? else { return Err(MemoryError::NotFound) };
        let (title, section) = memory.location.as_ref().map_or(("", ""), |place| (&place.title, &place.section));
        let text = vector_text(title, section, content);
        let vector = self.embed(&[&text]).await?.pop();
        Ok(vector.map(|vector| (vector, digest(&text))))
    }

    /// Lists memories, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(
        &self,
        user: &UserId,
        filter: &Filter,
        page_size: usize,
        after: Option<&PageToken>,
    ) -> Result<MemoryPage, MemoryError> {
        within_timeout(async {
            let mut transaction = self.reader.begin(user).await?;
            let page = store::page(&mut transaction, user, filter, page_size, after).await?;
            transaction.commit().await?;
            Ok(page)
        })
        .await
    }

    /// Everything held of a user: each memory, newest first, with what it was before corrections; a long history comes in
    /// several parts, each with the memory. It is read page by page, as fast as it is polled.
    ///
    /// The stream ends with the first error: the database failed.
    pub fn export(
        self: Arc<Self>,
        user: UserId,
    ) -> impl Stream<Item = Result<ExportedMemory, MemoryError>> + Send + 'static {
        try_stream! {
            let filter = Filter::default();
            let mut after = None;
            loop {
                let (page, corrected) = within_timeout(async {
                    let mut transaction = self.reader.begin(&user).await?;
                    let page = store::page(&mut transaction, &user, &filter, EXPORT_PAGE, after.as_ref()).await?;
                    let ids: Vec<&str> = page.memories.iter().map(|memory| memory.id.as_str()).collect();
                    let corrected = store::ids_with_history(&mut transaction, &user, &ids).await?;
                    transaction.commit().await?;
                    Ok((page, corrected))
                })
                .await?;
                for memory in page.memories {
                    if !corrected.contains(&memory.id) {
                        yield ExportedMemory { memory, history: Vec::new() };
                        continue;
                    }
                    let mut version = Some(0);
                    while let Some(from) = version {
                        let (history, next) = within_timeout(async {
                            let mut transaction = self.reader.begin(&user).await?;
                            let part = store::history(&mut transaction, &user, &memory.id, from).await?;
                            transaction.commit().await?;
                            Ok(part)
                        })
                        .await?;
                        version = next;
                        yield ExportedMemory { memory: memory.clone(), history };
                    }
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
    }

    /// Forgets memories, with everything that was derived from them, and says how many there were.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delete(&self, user: &UserId, selection: &Selection) -> Result<usize, MemoryError> {
        let delete = async {
            let mut change = self.begin_bulk(user).await?;
            let deleted = change.delete(selection).await?;
            change.commit().await?;
            Ok(deleted)
        };
        within(BULK_TIMEOUT, delete).await
    }

    /// Deletes all memories of a user in one transaction with `erase_others`, which deletes what other modules store of the
    /// user. Returns how many memories there were.
    ///
    /// # Errors
    /// The database failed; then nothing is deleted.
    pub(crate) async fn erase_user(
        &self,
        user: &UserId,
        erase_others: impl for<'t> FnOnce(&'t mut RoleTransaction, &'t UserId) -> BoxFuture<'t, Result<(), sqlx::Error>>,
    ) -> Result<usize, MemoryError> {
        let erase = async {
            let mut change = self.begin_bulk(user).await?;
            erase_others(change.inner(), user).await?;
            let erased = change.erase_user().await?;
            change.commit().await?;
            Ok(erased)
        };
        within(BULK_TIMEOUT, erase).await
    }

    /// Begins a change of rows that may be many.
    pub(super) async fn begin_bulk<'u>(&'u self, user: &'u UserId) -> Result<MemoryTransaction<'u>, sqlx::Error> {
        MemoryTransaction::begin(&self.service.with_statement_timeout(BULK_TIMEOUT), &self.writers, user).await
    }

    /// Vectors of texts, of which there may be none.
    pub(super) async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, MemoryError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.embedder.embed(texts).await?)
    }
}

/// Memories on their way into the store.
pub(super) struct WriteBatch {
    /// The id of each memory of the request, in its order.
    given: Vec<String>,
    /// What is to be written, by id: two writers take their locks in the same order.
    rows: BTreeMap<String, NewMemory>,
    /// Ids that turned out to be others, because their content is kept already.
    aliases: HashMap<String, String>,
    /// Ids of replaced memories, each with the one that replaces it.
    supersedes: Vec<(String, String)>,
}

impl WriteBatch {
    pub(super) fn from_memories(memories: Vec<NewMemory>) -> Self {
        let mut batch = Self {
            given: Vec::with_capacity(memories.len()),
            rows: BTreeMap::new(),
            aliases: HashMap::new(),
            supersedes: Vec::new(),
        };
        let mut new: HashMap<(String, String), String> = HashMap::new();
        for mut memory in memories {
            let id = match &memory.id {
                Some(id) => id.clone(),
                None => new
                    .entry((memory.content.clone(), conversation(&memory.metadata)))
                    .or_insert_with(|| Uuid::now_v7().to_string())
                    .clone(),
            };
            let replaced = std::mem::take(&mut memory.supersedes);
            batch.supersedes.extend(replaced.into_iter().map(|old| (old, id.clone())));
            batch.given.push(id.clone());
            batch.rows.insert(id, memory);
        }
        batch
    }

    /// Ids of the memories to which the client gave none, with their contents and conversations.
    fn without_client_id(&self) -> (Vec<String>, (Vec<&str>, Vec<String>)) {
        let new = self.rows.iter().filter(|(_, memory)| memory.id.is_none());
        new.map(|(id, memory)| (id.clone(), (memory.content.as_str(), conversation(&memory.metadata)))).unzip()
    }

    /// Takes memories out whose contents have another id already.
    fn take_existing(&mut self, ids: Vec<String>, existing: Vec<Option<String>>) {
        for (id, existing) in ids.into_iter().zip(existing) {
            if let Some(existing) = existing {
                self.rows.remove(&id);
                self.aliases.insert(id, existing);
            }
        }
    }

    fn known_as<'a>(&'a self, id: &'a String) -> &'a String {
        self.aliases.get(id).unwrap_or(id)
    }

    /// Each replaced memory with the one that replaces it; where there are several, with the last. Of a circle the last one
    /// that replaces another is itself not replaced: one of ids alone was refused, but that content has an id already is known
    /// only here.
    fn superseded(&self) -> Vec<(String, String)> {
        let named = self.supersedes.iter().map(|(old, new)| (old, self.known_as(new))).enumerate();
        let named = named.filter(|(_, (old, new))| old != new);
        let mut replaced: BTreeMap<_, _> = named.map(|(place, (old, new))| (old, (place, new))).collect();
        let all: Vec<_> = replaced.keys().copied().collect();
        // Each step is taken once: a way that comes to an earlier one leads where that did.
        let mut passed = HashSet::new();
        for first in all {
            let (mut way, mut at) = (Vec::new(), first);
            while let Some((place, new)) = replaced.get(at)
                && passed.insert(at)
            {
                way.push((at, *place, *new));
                at = new;
            }
            let circle = way.iter().skip_while(|(old, ..)| *old != at);
            if let Some((.., last)) = circle.max_by_key(|(_, place, _)| place) {
                replaced.remove(last);
            }
        }
        replaced.into_iter().map(|(old, (_, new))| (old.clone(), new.clone())).collect()
    }

    /// The ids of the texts.
    pub(super) fn row_ids(&self) -> impl Iterator<Item = &String> {
        self.rows.keys()
    }

    /// The texts that are to be written, by id.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.rows.values().map(|memory| memory.content.as_str())
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.given.iter().map(|id| self.known_as(id).clone()).collect()
    }
}

/// The conversation that a memory was said in, as the store reads it from the free data; empty for all others.
fn conversation(metadata: &Metadata) -> String {
    let name = metadata.get("session_id").or_else(|| metadata.get("session"));
    name.filter(|name| name.len() <= MAX_ID_BYTES).cloned().unwrap_or_default()
}

pub(super) fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

pub(super) async fn within_timeout<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, MemoryError> {
    within(DATABASE_TIMEOUT, work).await
}

pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, MemoryError> {
    Ok(timeout(limit, work).await.map_err(|_| MemoryError::Timeout)??)
}
