use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use pgvector::Vector;
use tokio::time::{sleep, timeout};

use super::{
    MemoryEngine, MemoryError, RetrievalQuery, RetrievalResult, Retriever, lexical,
    record::MIN_VECTOR_ALPHA,
    store::{
        self, IndexAdvance,
        search::{Search, SearchMode},
    },
    timeouts::with_timeout,
};
use crate::{
    embedding::{EmbedError, QueryVector},
    identity::UserId,
    temporal,
};

/// Bounds building an incomplete index, or waiting for another builder.
const INDEX_TIMEOUT: Duration = Duration::from_secs(10);
/// A hybrid search can do without: a turn waits three seconds at most for its memories.
const HYBRID_INDEX_TIMEOUT: Duration = Duration::from_secs(1);
const HYBRID_EMBED_TIMEOUT: Duration = Duration::from_secs(2);
const INDEX_POLL_INTERVAL: Duration = Duration::from_millis(100);

impl MemoryEngine {
    /// The score is `a · v + (1 − a) · k`, and 0.05 more for a memory of a time that the query names. `v` is the cosine
    /// of the vectors, at least 0. `k` is x / √(1 + x²), where x is the BM25 score divided by that of a memory of
    /// average length with each indexed term once. `a` is alpha times the share of the query in the embedding model's
    /// vocabulary. A hybrid search falls back to the lexical retriever if the embedder fails, and to the vector
    /// retriever while the inverted index is incomplete.
    pub async fn retrieve(&self, user: &UserId, query: &RetrievalQuery) -> Result<RetrievalResult, MemoryError> {
        let is_lexical = query.alpha < 1.0;
        let (vector, has_embedding_failed) = match self.query_vector(user, query).await {
            Err(error) if is_lexical => {
                tracing::warn!(%error, "embedding the query failed; falling back to lexical search");
                (None, true)
            }
            vector => (vector?, false),
        };
        let result = with_timeout(async {
            let mut search = self.search(user, query, vector);
            let mut found = self.run(&search).await?;
            if found.is_none() {
                if let Err(error) = self.build_index(user, search.mode.vector().is_some()).await {
                    tracing::warn!(%error, "building the inverted index failed");
                }
                found = self.run(&search).await?;
            }
            if found.is_none() {
                let Some(vector_only) = search.mode.into_vector() else { return Ok(None) };
                search.mode = vector_only;
                found = self.run(&search).await?;
            }
            let degraded_to = match search.mode {
                _ if has_embedding_failed => Some(Retriever::Lexical),
                SearchMode::Vector(_) if is_lexical => Some(Retriever::Vector),
                _ => None,
            };
            Ok(found.map(|found| RetrievalResult { degraded_to, ..found }))
        });
        Box::pin(result).await?.ok_or(MemoryError::IndexIncomplete)
    }

    /// Plans a search whose inverted index is complete.
    pub async fn explain(&self, user: &UserId, query: &RetrievalQuery) -> Result<String, MemoryError> {
        let vector = if query.needs_vector() { Some(self.query_cache.embed(user, &query.text).await?) } else { None };
        let search = self.search(user, query, vector);
        with_timeout(async { Ok(search.explain(&mut self.reader.begin_with_generic_plans(user).await?).await?) }).await
    }

    async fn query_vector(
        &self,
        user: &UserId,
        query: &RetrievalQuery,
    ) -> Result<Option<Arc<QueryVector>>, EmbedError> {
        if !query.needs_vector() {
            return Ok(None);
        }
        let embed = self.query_cache.embed(user, &query.text);
        if query.alpha >= 1.0 {
            return embed.await.map(Some);
        }
        match timeout(HYBRID_EMBED_TIMEOUT, embed).await {
            Ok(vector) => vector.map(Some),
            Err(_) => Err(EmbedError::Unreachable("it timed out".to_owned())),
        }
    }

    fn search<'a>(
        &'a self,
        user: &'a UserId,
        query: &'a RetrievalQuery,
        vector: Option<Arc<QueryVector>>,
    ) -> Search<'a> {
        let coverage = vector.as_ref().map_or(0.0, |vector| vector.vocabulary_coverage);
        let alpha = if query.alpha < 1.0 { query.alpha * coverage } else { 1.0 };
        let vector = vector.filter(|_| alpha >= MIN_VECTOR_ALPHA).map(|vector| Vector::from(vector.vector.clone()));
        let mode = match vector {
            Some(vector) if query.alpha < 1.0 => SearchMode::Hybrid(vector),
            Some(vector) => SearchMode::Vector(vector),
            None => SearchMode::Lexical,
        };
        Search {
            user,
            query,
            terms: if mode.is_lexical() { lexical::distinct_terms(&query.text) } else { Vec::new() },
            mode,
            alpha: alpha.into(),
            spans: temporal::past_spans(&query.text, Timestamp::now(), &query.time_zone),
            model_key: &self.model_key,
            vector_index: &self.vector_index,
            bm25: self.bm25,
        }
    }

    /// `None`: the user's inverted index has to be built first.
    async fn run(&self, search: &Search<'_>) -> Result<Option<RetrievalResult>, sqlx::Error> {
        let mut transaction = self.reader.begin_with_generic_plans(search.user).await?;
        // Nothing is written, so dropping the transaction saves a round trip.
        search.run(&mut transaction).await
    }

    /// Stops at a timeout; the next search goes on. A search with a vector does not wait for another builder.
    /// Waiting for writers for too long means that the index is not complete: a search changes nothing.
    async fn build_index(&self, user: &UserId, has_vector: bool) -> Result<(), MemoryError> {
        let built = Box::pin(self.build_index_parts(user, has_vector)).await;
        built.map_err(|error| if error.is_contended() { MemoryError::IndexIncomplete } else { error })
    }

    async fn build_index_parts(&self, user: &UserId, has_vector: bool) -> Result<(), MemoryError> {
        let limit = if has_vector { HYBRID_INDEX_TIMEOUT } else { INDEX_TIMEOUT };
        let started = Instant::now();
        while started.elapsed() < limit {
            let permit =
                if has_vector { self.write_locks.try_lock(user) } else { Some(self.write_locks.lock(user).await?) };
            let advance = match &permit {
                Some(_) => {
                    let mut transaction = self.service.begin(user).await?;
                    let advance = store::advance_index(&mut transaction, user).await?;
                    transaction.commit().await?;
                    advance
                }
                None => IndexAdvance::Contended,
            };
            drop(permit);
            match advance {
                IndexAdvance::Partial => {}
                IndexAdvance::Contended if !has_vector => sleep(INDEX_POLL_INTERVAL).await,
                IndexAdvance::Complete | IndexAdvance::Contended => break,
            }
        }
        Ok(())
    }
}
