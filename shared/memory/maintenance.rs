//! Moves all users to another embedding model, and builds the vector index. The maintenance role sees user ids and row
//! ids only; contents are read and written as each user.

use sqlx::Row as _;

use super::{
    MemoryEngine, MemoryError,
    digest::digest,
    index_input::vector_text,
    store::{self, EmbeddingSource, MemoryTransaction, NewVector},
    timeouts::{BULK_TIMEOUT, with_bulk_timeout, with_timeout},
};
use crate::{
    embedding::EmbedError,
    identity::UserId,
    postgres::{Database, DatabaseError, RoleTransaction},
};

const EMBEDDING_BATCH: usize = 256;

const MEMORIES_WITHOUT_VECTOR: &str = include_str!("store/sql/memories_without_vector.sql");
const COUNT_WITHOUT_VECTOR: &str = include_str!("store/sql/count_without_vector.sql");

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReembedProgress {
    /// Including memories that were changed or deleted meanwhile.
    pub done: u64,
    /// Without a vector at the last count, plus `done`.
    pub total: u64,
    /// Rejected by the embedder; only the lexical retriever finds them.
    pub rejected: u64,
}

impl MemoryEngine {
    /// Searches and writes go on meanwhile. Can be cancelled, and resumes where it stopped.
    pub async fn reembed(
        &self,
        on_progress: &(dyn Fn(ReembedProgress) + Sync),
    ) -> Result<ReembedProgress, MemoryError> {
        let mut progress = ReembedProgress::default();
        loop {
            progress.total = progress.done + self.count_missing_vectors().await?;
            progress.rejected = 0;
            on_progress(progress);
            let done = progress.done;
            Box::pin(self.reembed_once(&mut progress, on_progress)).await?;
            if progress.done == done {
                return Ok(progress);
            }
        }
    }

    async fn reembed_once(
        &self,
        progress: &mut ReembedProgress,
        on_progress: &(dyn Fn(ReembedProgress) + Sync),
    ) -> Result<(), MemoryError> {
        let (mut user_id, mut id) = (String::new(), String::new());
        loop {
            let batch = with_bulk_timeout(self.memories_without_vector(&user_id, &id)).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            (user_id, id) = last.clone();
            for of_user in batch.chunk_by(|(user, _), (next, _)| user == next) {
                let ids: Vec<&str> = of_user.iter().map(|(_, id)| id.as_str()).collect();
                let rejected = match of_user.first().and_then(|(user, _)| UserId::parse("user_id", user).ok()) {
                    Some(user) => Box::pin(self.reembed_memories(&user, &ids)).await?,
                    // No request can have this user id.
                    None => ids.len(),
                };
                progress.rejected += rejected as u64;
                progress.done += (ids.len() - rejected) as u64;
                on_progress(*progress);
            }
        }
    }

    /// Superseded memories do not count.
    pub async fn count_missing_vectors(&self) -> Result<u64, MemoryError> {
        let count = async {
            let mut transaction = self.begin_maintenance().await?;
            let query = transaction.query(COUNT_WITHOUT_VECTOR).bind(&self.model_key);
            let missing: i64 = query.fetch_one(&mut *transaction).await?.try_get("missing")?;
            transaction.commit().await?;
            Ok(u64::try_from(missing).unwrap_or_default())
        };
        with_bulk_timeout(count).await
    }

    async fn memories_without_vector(&self, user_id: &str, id: &str) -> Result<Vec<(String, String)>, MemoryError> {
        let mut transaction = self.begin_maintenance().await?;
        let query = transaction.query(MEMORIES_WITHOUT_VECTOR);
        let query = query.bind(&self.model_key).bind(user_id).bind(id).bind(store::sql_int(EMBEDDING_BATCH));
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(|row| Ok((row.try_get("user_id")?, row.try_get("id")?))).collect()
    }

    async fn begin_maintenance(&self) -> Result<RoleTransaction, sqlx::Error> {
        self.maintenance.with_statement_timeout(BULK_TIMEOUT).begin_without_user().await
    }

    /// Skips memories that are changed meanwhile. Returns how many texts the embedder rejected.
    async fn reembed_memories(&self, user: &UserId, ids: &[&str]) -> Result<usize, MemoryError> {
        let sources = with_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let sources = store::embedding_sources(&mut transaction, user, ids).await?;
            transaction.commit().await?;
            Ok(sources)
        });
        let texts: Vec<(String, String)> =
            sources.await?.into_iter().map(|source| (source.id.clone(), source.text())).collect();
        let vectors = self.embed_accepted(&texts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>()).await?;
        let write = with_timeout(async {
            let begun = MemoryTransaction::begin_existing(&self.service, &self.write_locks, user).await?;
            let Some(mut transaction) = begun else { return Ok(()) };
            let current = store::embedding_sources(transaction.inner(), user, ids).await?;
            let is_current =
                |id: &str, text: &str| current.iter().any(|source| source.id == id && source.text() == text);
            let vectors = texts.iter().zip(&vectors).filter_map(|((id, text), vector)| {
                let embedding = Some(vector.as_deref()?);
                is_current(id, text).then(|| NewVector { id, digest: digest(text), embedding })
            });
            transaction.upsert_vectors(&vectors.collect::<Vec<_>>(), &self.model_key).await?;
            Ok(transaction.commit().await?)
        });
        Box::pin(write).await?;
        Ok(vectors.iter().filter(|vector| vector.is_none()).count())
    }

    /// `None` for texts that the embedder rejects; a rejected batch is bisected.
    async fn embed_accepted(&self, texts: &[&str]) -> Result<Vec<Option<Vec<f32>>>, MemoryError> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut pending = vec![texts];
        while let Some(batch) = pending.pop() {
            match self.embed(batch).await {
                Ok(embedded) => vectors.extend(embedded.into_iter().map(Some)),
                Err(MemoryError::Embedding(EmbedError::Rejected(400 | 413 | 422))) => {
                    if batch.len() > 1 {
                        let (first, second) = batch.split_at(batch.len() / 2);
                        pending.extend([second, first]);
                    } else {
                        vectors.push(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }

    /// A memory without a vector of this model keeps those that it has.
    pub async fn delete_other_models(&self) -> Result<u64, MemoryError> {
        let users = with_bulk_timeout(async {
            let mut transaction = self.begin_maintenance().await?;
            let query = transaction.query("select distinct user_id from memory_vectors where model <> $1");
            let rows = query.bind(&self.model_key).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(store::column::<String>(&rows, "user_id")?)
        });
        let mut deleted = 0;
        for user in users.await?.iter().filter_map(|user| UserId::parse("user_id", user).ok()) {
            deleted += with_bulk_timeout(async {
                let Some(mut transaction) = self.begin_bulk_existing(&user).await? else { return Ok(0) };
                let deleted = transaction.delete_other_models(&self.model_key).await?;
                transaction.commit().await?;
                Ok(deleted)
            })
            .await?;
        }
        Ok(deleted)
    }

    /// Copies vectors in half precision that are older than such copies. Can be cancelled, and resumes where it stopped.
    pub async fn copy_half_vectors(&self) -> Result<(), MemoryError> {
        let mut after = String::new();
        loop {
            let users = with_bulk_timeout(self.users_without_half_vectors(&after)).await?;
            let Some(last) = users.last() else { return Ok(()) };
            after.clone_from(last);
            for user in users.iter().filter_map(|user| UserId::parse("user_id", user).ok()) {
                while !with_bulk_timeout(self.copy_half_vectors_of(&user)).await? {}
            }
        }
    }

    async fn users_without_half_vectors(&self, after: &str) -> Result<Vec<String>, MemoryError> {
        let mut transaction = self.begin_maintenance().await?;
        let query = transaction.query(
            "select user_id from memory_users where not has_half_vectors and user_id > $1 order by user_id limit $2",
        );
        let query = query.bind(after).bind(store::sql_int(EMBEDDING_BATCH));
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(store::column(&rows, "user_id")?)
    }

    /// True once all are copied; every commit copies a part.
    async fn copy_half_vectors_of(&self, user: &UserId) -> Result<bool, MemoryError> {
        let Some(transaction) = self.begin_bulk_existing(user).await? else { return Ok(true) };
        let is_complete = transaction.has_half_vectors();
        transaction.commit().await?;
        Ok(is_complete)
    }

    async fn begin_bulk_existing<'u>(&'u self, user: &'u UserId) -> Result<Option<MemoryTransaction<'u>>, MemoryError> {
        let pool = self.service.with_statement_timeout(BULK_TIMEOUT);
        MemoryTransaction::begin_existing(&pool, &self.write_locks, user).await
    }

    /// As the table owner. Takes minutes for a million vectors, and blocks no other statement.
    pub async fn build_vector_index(&self, database: &Database) -> Result<(), DatabaseError> {
        if self.vector_index.is_needed(&self.maintenance).await? {
            let mut owner = database.connect_owner().await?;
            self.vector_index.build(&mut owner).await?;
        }
        Ok(())
    }
}

impl EmbeddingSource {
    fn text(&self) -> String {
        vector_text(&self.title, &self.section, &self.content)
    }
}
