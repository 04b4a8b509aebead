use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use pgvector::Vector;
use tokio::time::{sleep, timeout};

use super::{
    MemoryEngine, MemoryError, RetrievalQuery, RetrievalResult, Retriever, lexical,
    store::{
        self, IndexAdvance, knn,
        search::{self, LexicalStatistics, Search, SearchMode},
    },
    timeouts::with_timeout,
};
use crate::{
    embedding::{EmbedError, QueryVector},
    identity::UserId,
    postgres::RoleTransaction,
    temporal,
};

/// Bounds building an incomplete index, or waiting for another builder.
const INDEX_TIMEOUT: Duration = Duration::from_secs(10);
/// A hybrid search can do without: a turn waits three seconds at most for its memories.
const HYBRID_INDEX_TIMEOUT: Duration = Duration::from_secs(1);
const HYBRID_EMBED_TIMEOUT: Duration = Duration::from_secs(2);
const INDEX_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A smaller alpha means lexical search: some clients cannot send an explicit 0.
const MIN_VECTOR_ALPHA: f32 = 0.001;

impl MemoryEngine {
    /// The score is `a · v + (1 − a) · k`, and 0.05 more for a memory of a time that the query names. `v` is the cosine
    /// of the vectors, at least 0. `k` is x / √(1 + x²), where x is the BM25 score divided by that of a memory of
    /// average length with each indexed term once. `a` is alpha times the share of the query in the embedding model's
    /// vocabulary. A hybrid search falls back to the lexical retriever if the embedder fails, and to the vector
    /// retriever while the inverted index is incomplete.
    pub async fn retrieve(&self, user: &UserId, query: &RetrievalQuery) -> Result<RetrievalResult, MemoryError> {
        let is_lexical = query.alpha < 1.0;
        let (vector, has_embedding_failed) = match self.query_vector(query).await {
            Err(error) if is_lexical => {
                tracing::warn!(%error, "embedding the query failed; falling back to lexical search");
                (None, true)
            }
            vector => (vector?, false),
        };
        let result = with_timeout(async {
            let Some((mut search, mut transaction)) = self.prepare_search(user, query, vector).await? else {
                return Ok(None);
            };
            // Nothing is written, so dropping the transaction saves a round trip.
            let result = search.run(&mut transaction).await?;
            let degraded_to = match search.mode {
                _ if has_embedding_failed => Some(Retriever::Lexical),
                SearchMode::Vector(_) if is_lexical => Some(Retriever::Vector),
                _ => None,
            };
            Ok(Some(RetrievalResult { degraded_to, ..result }))
        });
        result.await?.ok_or(MemoryError::IndexIncomplete)
    }

    pub async fn explain(&self, user: &UserId, query: &RetrievalQuery) -> Result<String, MemoryError> {
        let is_vector = query.alpha >= MIN_VECTOR_ALPHA;
        let vector = if is_vector { Some(self.query_cache.embed(&query.text).await?) } else { None };
        let plan = with_timeout(async {
            let Some((search, mut transaction)) = self.prepare_search(user, query, vector).await? else {
                return Ok(None);
            };
            search.explain(&mut transaction).await.map(Some)
        });
        plan.await?.ok_or(MemoryError::IndexIncomplete)
    }

    async fn query_vector(&self, query: &RetrievalQuery) -> Result<Option<Arc<QueryVector>>, EmbedError> {
        if query.alpha < MIN_VECTOR_ALPHA {
            return Ok(None);
        }
        let embed = self.query_cache.embed(&query.text);
        if query.alpha >= 1.0 {
            return embed.await.map(Some);
        }
        match timeout(HYBRID_EMBED_TIMEOUT, embed).await {
            Ok(vector) => vector.map(Some),
            Err(_) => Err(EmbedError::Unreachable("it timed out".to_owned())),
        }
    }

    /// `None`: there is no vector, and the inverted index is incomplete.
    async fn prepare_search<'a>(
        &'a self,
        user: &'a UserId,
        query: &'a RetrievalQuery,
        vector: Option<Arc<QueryVector>>,
    ) -> Result<Option<(Search<'a>, RoleTransaction)>, sqlx::Error> {
        let coverage = vector.as_ref().map_or(0.0, |vector| vector.vocabulary_coverage);
        let alpha = if query.alpha < 1.0 { query.alpha * coverage } else { 1.0 };
        let vector = vector.filter(|_| alpha >= MIN_VECTOR_ALPHA).map(|vector| Vector::from(vector.vector.clone()));
        let (mut transaction, statistics) = self.begin_search(user, query, vector.is_some()).await?;
        let is_large = |statistics: &LexicalStatistics| self.vector_index.pays_off_for(statistics.memories);
        // With a filter, the index scan might visit many vectors for few matches.
        let may_use_index = vector.is_some() && query.filter.is_empty() && statistics.as_ref().is_none_or(is_large);
        let candidates = knn::candidate_count(query.limit, query.min_score);
        let memories =
            if may_use_index { self.vector_index.usable_size(&mut transaction, user, candidates).await? } else { None };
        let mode = match (statistics, vector) {
            (Some(statistics), Some(vector)) => SearchMode::Hybrid(statistics, vector),
            (None, Some(vector)) => SearchMode::Vector(vector),
            (Some(statistics), None) => SearchMode::Lexical(statistics),
            (None, None) => return Ok(None),
        };
        let search = Search {
            user,
            query,
            mode,
            alpha: alpha.into(),
            spans: temporal::past_spans(&query.text, Timestamp::now(), &query.time_zone),
            model_key: &self.model_key,
            vector_index: memories.map(|memories| (&self.vector_index, memories)),
            bm25: self.bm25,
        };
        Ok(Some((search, transaction)))
    }

    /// Reads statistics if the search is lexical and the inverted index is complete.
    async fn begin_search(
        &self,
        user: &UserId,
        query: &RetrievalQuery,
        has_vector: bool,
    ) -> Result<(RoleTransaction, Option<LexicalStatistics>), sqlx::Error> {
        let mut transaction = self.reader.begin(user).await?;
        if query.alpha >= 1.0 {
            return Ok((transaction, None));
        }
        let terms = lexical::distinct_terms(&query.text);
        let mut statistics = search::lexical_statistics(&mut transaction, user, &terms).await?;
        if statistics.is_none() {
            // The index build may wait, and must not hold a connection meanwhile.
            transaction.commit().await?;
            if let Err(error) = self.build_index(user, has_vector).await {
                tracing::warn!(%error, "building the inverted index failed");
            }
            transaction = self.reader.begin(user).await?;
            statistics = search::lexical_statistics(&mut transaction, user, &terms).await?;
        }
        Ok((transaction, statistics))
    }

    /// Stops at a timeout; the next search goes on. A search with a vector does not wait for another builder.
    async fn build_index(&self, user: &UserId, has_vector: bool) -> Result<(), sqlx::Error> {
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
