//! What is done for all users: moving to another embedding model, and the index of vectors.
//!
//! Such work sees who there is and which ids they have, and then acts as each user.

use sqlx::Row as _;

use super::{
    MemoryEngine, MemoryError,
    engine::{BULK_TIMEOUT, digest, within, within_timeout},
    index_input::vector_text,
    store::{self, MemoryTransaction, NewVector},
};
use crate::{
    embedding::EmbedError,
    identity::UserId,
    postgres::{Database, DatabaseError},
};

/// Memories that are embedded at once.
const BATCH: usize = 256;

/// The memories after ($2, $3) that can be found and have no vector of the model, and whose they are.
const MISSING: &str = "
    select user_id, id from memories
    where superseded_by is null and (user_id, id) > ($2, $3)
          and not exists (select from memory_vectors vectors
                          where vectors.user_id = memories.user_id and vectors.model = $1
                                and vectors.memory_id = memories.id)
    order by user_id, id limit $4";

/// How many vectors of the model are missing.
const COUNT_MISSING: &str = "
    select count(*) as missing from memories
    where superseded_by is null
          and not exists (select from memory_vectors vectors
                          where vectors.user_id = memories.user_id and vectors.model = $1
                                and vectors.memory_id = memories.id)";

/// How far a move to another model is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReembedProgress {
    /// Memories that have got a vector, or were changed or forgotten meanwhile.
    pub done: u64,
    /// Memories that had no vector of the model when it was last counted, with those that are done.
    pub total: u64,
    /// Memories whose text the embedder refuses. They are found by their words.
    pub rejected: u64,
}

impl MemoryEngine {
    /// Gives every memory a vector of this engine's model that has none. Searches and writes go on meanwhile, and those of
    /// another model find what they found before. It can be broken off at any time and goes on where it stopped.
    ///
    /// # Errors
    /// The embedder failed otherwise than by refusing a text, or the database did.
    pub async fn reembed(&self, progress: &(dyn Fn(ReembedProgress) + Sync)) -> Result<ReembedProgress, MemoryError> {
        let mut at = ReembedProgress::default();
        loop {
            // What others have written meanwhile is counted as well.
            let missing = self.count_missing_vectors().await?;
            at.total = at.done + missing;
            progress(at);
            let done = at.done;
            at.rejected = 0;
            self.reembed_once(&mut at, progress).await?;
            if at.done == done {
                return Ok(at);
            }
        }
    }

    /// Goes through all memories without a vector once.
    async fn reembed_once(
        &self,
        at: &mut ReembedProgress,
        progress: &(dyn Fn(ReembedProgress) + Sync),
    ) -> Result<(), MemoryError> {
        let (mut user, mut id) = (String::new(), String::new());
        loop {
            let missing = within(BULK_TIMEOUT, self.missing(&user, &id)).await?;
            let Some(last) = missing.last() else { return Ok(()) };
            (user, id) = last.clone();
            for of_user in missing.chunk_by(|(user, _), (next, _)| user == next) {
                let ids: Vec<&str> = of_user.iter().map(|(_, id)| id.as_str()).collect();
                let refused = match of_user.first().and_then(|(user, _)| UserId::parse("user_id", user).ok()) {
                    Some(user) => self.embed_missing(&user, &ids).await?,
                    // Nobody can be so named, so that nobody finds these either.
                    None => ids.len(),
                };
                at.rejected += refused as u64;
                at.done += (ids.len() - refused) as u64;
                progress(*at);
            }
        }
    }

    /// How many memories that can be found have no vector of this engine's model.
    ///
    /// # Errors
    /// The database failed.
    pub async fn count_missing_vectors(&self) -> Result<u64, MemoryError> {
        let count = async {
            let mut transaction = self.maintenance.with_statement_timeout(BULK_TIMEOUT).begin_without_user().await?;
            let query = transaction.query(COUNT_MISSING).bind(&self.model_key);
            let missing: i64 = query.fetch_one(&mut *transaction).await?.try_get("missing")?;
            transaction.commit().await?;
            Ok(u64::try_from(missing).unwrap_or_default())
        };
        within(BULK_TIMEOUT, count).await
    }

    async fn missing(&self, user: &str, id: &str) -> Result<Vec<(String, String)>, sqlx::Error> {
        let mut transaction = self.maintenance.with_statement_timeout(BULK_TIMEOUT).begin_without_user().await?;
        let query = transaction.query(MISSING).bind(&self.model_key).bind(user).bind(id).bind(store::sql_int(BATCH));
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        rows.iter().map(|row| Ok((row.try_get("user_id")?, row.try_get("id")?))).collect()
    }

    /// Embeds some memories of a user, unless they have changed or gone meanwhile, and says how many texts the embedder refused.
    async fn embed_missing(&self, user: &UserId, ids: &[&str]) -> Result<usize, MemoryError> {
        let texts = within_timeout(async {
            let mut transaction = self.service.begin(user).await?;
            let texts = store::embedding_sources(&mut transaction, user, ids).await?;
            transaction.commit().await?;
            Ok(texts)
        });
        let texts: Vec<(String, String)> =
            texts.await?.into_iter().map(|text| (text.id.clone(), text.text())).collect();
        let embedded: Vec<&str> = texts.iter().map(|(_, text)| text.as_str()).collect();
        let vectors = self.embed_what_can_be(&embedded).await?;
        let write = within_timeout(async {
            let mut change = MemoryTransaction::begin(&self.service, &self.writers, user).await?;
            let now = store::embedding_sources(change.inner(), user, ids).await?;
            let still: Vec<NewVector<'_>> = texts
                .iter()
                .zip(&vectors)
                .filter_map(|(of, vector)| Some((of, vector.as_deref()?)))
                .filter(|((id, text), _)| now.iter().any(|now| now.id == *id && now.text() == *text))
                .map(|((id, text), vector)| NewVector { id, digest: digest(text), embedding: Some(vector) })
                .collect();
            change.upsert_vectors(&still, &self.model_key).await?;
            change.commit().await
        });
        write.await?;
        Ok(vectors.iter().filter(|vector| vector.is_none()).count())
    }

    /// Vectors of texts, and `None` for those that the embedder refuses. Where it refuses all together, they are sent in
    /// halves until those are found that it means.
    async fn embed_what_can_be(&self, texts: &[&str]) -> Result<Vec<Option<Vec<f32>>>, MemoryError> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut waiting = vec![texts];
        while let Some(part) = waiting.pop() {
            match self.embed(part).await {
                Ok(made) => vectors.extend(made.into_iter().map(Some)),
                Err(MemoryError::Embedding(EmbedError::Rejected(400 | 413 | 422))) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    waiting.extend([second, first]);
                }
                Err(MemoryError::Embedding(EmbedError::Rejected(400 | 413 | 422))) => vectors.push(None),
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }

    /// Forgets the vectors of all other models, and says how many there were. A memory that has none of this model keeps
    /// those that it has.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delete_other_models(&self) -> Result<u64, MemoryError> {
        let users = within(BULK_TIMEOUT, async {
            let mut transaction = self.maintenance.with_statement_timeout(BULK_TIMEOUT).begin_without_user().await?;
            let query = transaction.query("select distinct user_id from memory_vectors where model <> $1");
            let rows = query.bind(&self.model_key).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            store::column::<String>(&rows, "user_id")
        });
        let mut forgotten = 0;
        for user in users.await?.iter().filter_map(|user| UserId::parse("user_id", user).ok()) {
            forgotten += within(BULK_TIMEOUT, async {
                let mut change = self.begin_bulk(&user).await?;
                let forgotten = change.delete_other_models(&self.model_key).await?;
                change.commit().await?;
                Ok(forgotten)
            })
            .await?;
        }
        Ok(forgotten)
    }

    /// Builds the index of vectors, as the owner of the tables, if there is a user for whom it is worth it. This takes
    /// minutes for a million vectors, and nobody waits for it.
    ///
    /// # Errors
    /// The database failed, or the owner's login is not known.
    pub async fn build_vector_index(&self, database: &Database) -> Result<(), DatabaseError> {
        if self.vector_index.is_needed(&self.maintenance).await? {
            let mut owner = database.connect_owner().await?;
            self.vector_index.build(&mut owner).await?;
        }
        Ok(())
    }
}

impl store::EmbeddingSource {
    /// What its vector is of.
    fn text(&self) -> String {
        vector_text(&self.title, &self.section, &self.content)
    }
}
