use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::{
    AddOutcome, EmbeddingBudget, Filter, Memory, MemoryError, MemoryPage, MemoryUpdate, NewMemory, PageToken,
    Selection,
    budget::check_memory,
    digest::digest,
    embedding_budget::{self, Reservation},
    index_input::vector_text,
    store::{self, DELETE_BATCH, MemoryTransaction, NewVector, WriteLocks, knn::VectorIndex, search::Bm25Params},
    timeouts::{BULK_TIMEOUT, with_bulk_timeout, with_timeout},
};
use crate::{
    config::MemoryConfig,
    embedding::{Embedder, QueryCache},
    identity::UserId,
    postgres::{RolePool, RolePools, RoleTransaction},
};

/// Before a write whose vectors are made tries again to become the writer of its user.
const CONTENDED_PAUSE: Duration = Duration::from_millis(500);

pub struct MemoryEngine {
    pub(super) service: RolePool,
    pub(super) reader: RolePool,
    pub(super) maintenance: RolePool,
    pub(super) write_locks: WriteLocks,
    pub(super) embedder: Arc<dyn Embedder>,
    pub(super) query_cache: QueryCache,
    pub(super) model_key: String,
    pub(super) vector_index: VectorIndex,
    pub(super) bm25: Bm25Params,
}

impl MemoryEngine {
    #[must_use]
    pub fn new(config: MemoryConfig, pools: RolePools, embedder: Arc<dyn Embedder>) -> Self {
        Self {
            service: pools.service,
            reader: pools.reader,
            maintenance: pools.maintenance,
            write_locks: WriteLocks::default(),
            model_key: store::model_key(embedder.model()),
            vector_index: VectorIndex::new(embedder.model(), config.vector_index_threshold),
            bm25: Bm25Params { k1: config.k1, b: config.b },
            query_cache: QueryCache::new(embedder.clone()),
            embedder,
        }
    }

    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.reader.is_configured()
    }

    /// A failure is ignored: the search tries again.
    pub async fn warm_up(&self) {
        let database = async {
            if let Ok(transaction) = self.reader.begin_without_user().await {
                drop(transaction.commit().await);
            }
        };
        tokio::join!(database, self.embedder.warm_up());
    }

    /// All or none. The last memory of an id wins. Stored content is skipped, unless the client gives its id.
    pub async fn add(&self, user: &UserId, memories: Vec<NewMemory>) -> Result<AddOutcome, MemoryError> {
        self.add_within(user, memories, EmbeddingBudget::unlimited()).await
    }

    /// As [`add`](Self::add), within a budget of the user.
    pub async fn add_within(
        &self,
        user: &UserId,
        memories: Vec<NewMemory>,
        budget: EmbeddingBudget,
    ) -> Result<AddOutcome, MemoryError> {
        self.wait_for_writers(user).await?;
        let mut batch = self.prepare_batch(user, memories, budget).await?;
        let write = async {
            if batch.is_empty() {
                return Ok(0);
            }
            let mut transaction = self.begin_embedded(user).await?;
            let added = self.write_batch(user, &mut transaction, &mut batch).await?;
            transaction.commit().await?;
            Ok(added)
        };
        let added = with_bulk_timeout(write).await?;
        Ok(batch.outcome(added))
    }

    /// The former version stays in the history.
    pub async fn update(
        &self,
        user: &UserId,
        update: &MemoryUpdate,
        budget: EmbeddingBudget,
    ) -> Result<Memory, MemoryError> {
        if let Some(content) = &update.content {
            check_memory("content", content)?;
        }
        if let Some(speaker) = update.metadata.as_ref().and_then(|metadata| metadata.get("speaker")) {
            check_memory("metadata", speaker)?;
        }
        let vector = match &update.content {
            Some(content) => {
                self.wait_for_writers(user).await?;
                self.vector_of_update(user, &update.id, content, budget).await?
            }
            None => None,
        };
        let updated = with_bulk_timeout(async {
            let mut transaction = match &vector {
                Some(_) => self.begin_embedded(user).await?,
                None => MemoryTransaction::begin(&self.service, &self.write_locks, user).await?,
            };
            let vector = vector.as_ref().map(|(vector, digest)| NewVector {
                id: &update.id,
                digest: *digest,
                embedding: Some(vector),
            });
            let updated = transaction.update(update, vector, &self.model_key).await?;
            transaction.commit().await?;
            Ok(updated)
        });
        Box::pin(updated).await?.ok_or(MemoryError::NotFound)
    }

    async fn vector_of_update(
        &self,
        user: &UserId,
        id: &str,
        content: &str,
        budget: EmbeddingBudget,
    ) -> Result<Option<(Vec<f32>, [u8; 32])>, MemoryError> {
        let embedding = with_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let Some(memory) = store::memory(&mut transaction, user, id).await? else { return Ok(None) };
            let location = memory.location.as_ref();
            let headings = location.map(|location| (location.title.as_str(), location.section.as_str()));
            let (title, section) = headings.unwrap_or_default();
            let text = vector_text(title, section, content);
            let reservation = budget.reserve(&mut transaction, user, [text.as_str()]).await?;
            transaction.commit().await?;
            Ok(Some((text, reservation)))
        });
        let Some((text, reservation)) = embedding.await? else { return Err(MemoryError::NotFound) };
        let vector = self.embed_reserved(user, &[&text], reservation).await?.pop();
        Ok(vector.map(|vector| (vector, digest(&text))))
    }

    /// Newest first.
    pub async fn list(
        &self,
        user: &UserId,
        filter: &Filter,
        page_size: usize,
        after: Option<&PageToken>,
    ) -> Result<MemoryPage, MemoryError> {
        with_timeout(async {
            let mut transaction = self.reader.begin(user).await?;
            let page = store::page(&mut transaction, user, filter, page_size, after).await?;
            transaction.commit().await?;
            Ok(page)
        })
        .await
    }

    /// In several transactions, so that a call that did not end in time can be repeated and goes on.
    pub async fn delete(&self, user: &UserId, selection: &Selection) -> Result<usize, MemoryError> {
        let delete = async {
            let mut deleted = 0;
            loop {
                let batch = self.delete_batch(user, selection).await;
                let batch = batch.map_err(|error| match error.is_contended() && deleted > 0 {
                    true => MemoryError::PartlyDeleted,
                    false => error,
                })?;
                deleted += batch;
                if batch < DELETE_BATCH {
                    return Ok(deleted);
                }
            }
        };
        with_bulk_timeout(delete).await
    }

    async fn delete_batch(&self, user: &UserId, selection: &Selection) -> Result<usize, MemoryError> {
        let mut transaction = self.begin_bulk(user).await?;
        let deleted = transaction.delete(selection).await?;
        transaction.commit().await?;
        Ok(deleted)
    }

    /// In one transaction with `erase_others`, which deletes what other modules store of the user. It comes last, because it
    /// keeps the user's turns waiting.
    pub(crate) async fn erase_user(
        &self,
        user: &UserId,
        erase_others: impl for<'t> FnOnce(&'t mut RoleTransaction, &'t UserId) -> BoxFuture<'t, Result<(), sqlx::Error>>,
    ) -> Result<usize, MemoryError> {
        let erase = async {
            let mut transaction = self.begin_bulk(user).await?;
            let erased = transaction.erase_user().await?;
            erase_others(transaction.inner(), user).await?;
            transaction.commit().await?;
            Ok(erased)
        };
        with_bulk_timeout(erase).await
    }

    pub(super) async fn begin_bulk<'u>(&'u self, user: &'u UserId) -> Result<MemoryTransaction<'u>, MemoryError> {
        let pool = self.service.with_statement_timeout(BULK_TIMEOUT);
        MemoryTransaction::begin(&pool, &self.write_locks, user).await
    }

    /// For a write that has yet to embed its texts: a user whose writers take too long is refused before anything is paid.
    pub(super) async fn wait_for_writers(&self, user: &UserId) -> Result<(), MemoryError> {
        Box::pin(self.write_locks.lock(user)).await.map(drop)
    }

    /// For a write whose texts are embedded. It waits for as long as its time allows, because a refusal would have the client
    /// embed and pay for them again.
    pub(super) async fn begin_embedded<'u>(&'u self, user: &'u UserId) -> Result<MemoryTransaction<'u>, MemoryError> {
        loop {
            match Box::pin(self.begin_bulk(user)).await {
                Err(error) if error.is_contended() => {
                    tracing::debug!(%error, "a memory write whose texts are embedded waits for others");
                    sleep(CONTENDED_PAUSE).await;
                }
                begun => return begun,
            }
        }
    }

    /// Gives the bytes that were not embedded back if the embedder is down. Not if it rejects a text: it may have embedded the others, and a
    /// client could have them embedded again and again.
    pub(super) async fn embed_reserved(
        &self,
        user: &UserId,
        texts: &[&str],
        reservation: Reservation,
    ) -> Result<Vec<Vec<f32>>, MemoryError> {
        let reserved = reservation.bytes()?;
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let embedded_bytes = AtomicUsize::new(0);
        let embedded = self.embedder.embed_for(user, texts, &embedded_bytes).await.map_err(MemoryError::from);
        let bytes = reserved.saturating_sub(i64::try_from(embedded_bytes.into_inner()).unwrap_or(i64::MAX));
        if embedded.as_ref().is_err_and(MemoryError::is_transient) && bytes > 0 {
            let release = async {
                let mut transaction = self.service.begin(user).await?;
                embedding_budget::release(&mut transaction, user, bytes).await?;
                Ok(transaction.commit().await?)
            };
            if let Err(error) = Box::pin(with_timeout(release)).await {
                tracing::warn!(%error, bytes, "the embedding budget of a failed call is not given back");
            }
        }
        embedded
    }

    pub(super) async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, MemoryError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.embedder.embed(texts).await?)
    }
}
