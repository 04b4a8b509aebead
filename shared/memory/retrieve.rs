//! Finding memories by words and by meaning.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use super::{
    MemoryEngine, MemoryError, RetrievalQuery, RetrievalResult, Retriever,
    engine::within_timeout,
    lexical,
    store::{
        self, IndexAdvance, knn,
        search::{self, LexicalStatistics, Search, SearchMode},
    },
};
use crate::{
    embedding::{EmbedError, QueryVector},
    identity::UserId,
    postgres::RoleTransaction,
    temporal,
};

/// How long one search by words alone goes on with an index that is being made, or waits for who makes it.
const INDEX_TIME: Duration = Duration::from_secs(10);
/// The same for a search that has a vector as well: a turn waits no longer than three seconds for what it recalls.
const INDEX_TIME_BESIDE_VECTORS: Duration = Duration::from_secs(1);
/// How long a search by words and meaning waits for the vector of its query, before it is one by words alone.
const EMBED_TIME_BESIDE_WORDS: Duration = Duration::from_secs(2);
/// Time between two looks whether somebody else has made it.
const INDEX_PAUSE: Duration = Duration::from_millis(100);

/// Below this, words alone are meant: clients that can not send a plain 0 send this little.
const KEYWORDS_ALONE: f32 = 0.001;

impl MemoryEngine {
    /// Finds memories by words and by meaning. The score is `a · v + (1 − a) · k`, on the same scale for every query:
    ///
    /// - `v` is the cosine of the angle between the vectors, and 0 where that is negative;
    /// - `k` is x / √(1 + x²), where x is the Okapi BM25 score divided by what a memory of average length scores that has
    ///   each of the query's known words once;
    /// - `a` is alpha times the share of the query that the embedding model has words for.
    ///
    /// A memory of a time that the query names scores a twentieth more. With alpha below 0.001 the embedder is not asked,
    /// with alpha 1 the words are not looked up. Where the embedder fails, words alone are searched, unless meaning alone is
    /// wanted; and where the index of the words is still being made, meaning alone.
    ///
    /// # Errors
    /// The database failed, or the one leg that was wanted can not be searched.
    pub async fn retrieve(&self, user: &UserId, query: &RetrievalQuery) -> Result<RetrievalResult, MemoryError> {
        let (words, meaning) = (query.alpha < 1.0, query.alpha >= KEYWORDS_ALONE);
        let vector = match (meaning, words) {
            (false, _) => Ok(None),
            (true, false) => self.query_cache.embed(&query.text).await.map(Some),
            (true, true) => match timeout(EMBED_TIME_BESIDE_WORDS, self.query_cache.embed(&query.text)).await {
                Ok(vector) => vector.map(Some),
                Err(_) => Err(EmbedError::Unreachable("it took too long".to_owned())),
            },
        };
        let (vector, failed) = match vector {
            Err(error) if words => {
                tracing::warn!(%error, "the query has no vector; searching by words alone");
                (None, true)
            }
            vector => (vector?, false),
        };
        let found = within_timeout(async {
            let Some((mut search, mut transaction)) = self.prepare(user, query, vector).await? else { return Ok(None) };
            // Nothing is changed, and nobody waits for the end of the transaction.
            let found = search.run(&mut transaction).await?;
            let only = match search.mode {
                _ if failed => Some(Retriever::Lexical),
                SearchMode::Vector(_) if words => Some(Retriever::Vector),
                _ => None,
            };
            Ok(Some(RetrievalResult { degraded_to: only, ..found }))
        });
        found.await?.ok_or(MemoryError::IndexIncomplete)
    }

    /// How the database goes about a query, as it tells by `explain`: for those who tune it.
    ///
    /// # Errors
    /// As [`MemoryEngine::retrieve`].
    pub async fn explain(&self, user: &UserId, query: &RetrievalQuery) -> Result<String, MemoryError> {
        let meaning = query.alpha >= KEYWORDS_ALONE;
        let vector = if meaning { Some(self.query_cache.embed(&query.text).await?) } else { None };
        let plan = within_timeout(async {
            let Some((search, mut transaction)) = self.prepare(user, query, vector).await? else { return Ok(None) };
            search.explain(&mut transaction).await.map(Some)
        });
        plan.await?.ok_or(MemoryError::IndexIncomplete)
    }

    /// The search for a query, and the transaction in which it is run; `None` where there is nothing to search by, because
    /// the index of the words is still being made.
    async fn prepare<'a>(
        &'a self,
        user: &'a UserId,
        query: &'a RetrievalQuery,
        vector: Option<Arc<QueryVector>>,
    ) -> Result<Option<(Search<'a>, RoleTransaction)>, sqlx::Error> {
        // Of a query in a language that the model does not know the words alone say something.
        let known_share = vector.as_ref().map_or(0.0, |vector| vector.vocabulary_coverage);
        let alpha = if query.alpha < 1.0 { query.alpha * known_share } else { 1.0 };
        let vector = vector.filter(|_| alpha >= KEYWORDS_ALONE).map(|vector| vector.vector.clone());
        let mut transaction = self.reader.begin(user).await?;
        let mut statistics = None;
        if query.alpha < 1.0 {
            let terms = lexical::query_terms(&query.text);
            statistics = search::lexical_statistics(&mut transaction, user, &terms).await?;
            if statistics.is_none() {
                // Their index is missing, or of an older tokeniser. Whoever waits for it holds no connection.
                transaction.commit().await?;
                if let Err(error) = self.index(user, vector.is_some()).await {
                    tracing::warn!(%error, "the keyword index can not be made");
                }
                transaction = self.reader.begin(user).await?;
                statistics = search::lexical_statistics(&mut transaction, user, &terms).await?;
            }
        }
        let many = |statistics: &LexicalStatistics| self.vector_index.pays_off_for(statistics.memories);
        // A filter may leave few of many memories, which the index would have to look for among all.
        let may_use_index = vector.is_some() && query.filter.is_empty() && statistics.as_ref().is_none_or(many);
        let candidates = knn::candidate_count(query.limit, query.min_score);
        let memories =
            if may_use_index { self.vector_index.usable_size(&mut transaction, user, candidates).await? } else { None };
        let nearest = memories.map(|memories| (&self.vector_index, memories));
        let legs = match (statistics, vector) {
            (Some(statistics), Some(vector)) => SearchMode::Hybrid(statistics, vector),
            (None, Some(vector)) => SearchMode::Vector(vector),
            (Some(statistics), None) => SearchMode::Lexical(statistics),
            (None, None) => return Ok(None),
        };
        let search = Search {
            user,
            query,
            mode: legs,
            alpha: alpha.into(),
            spans: temporal::past_spans(&query.text, Timestamp::now(), &query.time_zone),
            model_key: &self.model_key,
            vector_index: nearest,
            bm25: self.bm25,
        };
        Ok(Some((search, transaction)))
    }

    /// Makes the index of a user who has memories and no whole one, part by part. Where that takes too long for one search,
    /// the next one goes on. A search that has a vector as well waits for nobody who is at it already.
    async fn index(&self, user: &UserId, has_vector: bool) -> Result<(), sqlx::Error> {
        let time = if has_vector { INDEX_TIME_BESIDE_VECTORS } else { INDEX_TIME };
        let began = Instant::now();
        while began.elapsed() < time {
            let turn = if has_vector { self.writers.try_lock(user) } else { Some(self.writers.lock(user).await?) };
            let advance = match &turn {
                Some(_) => {
                    let mut transaction = self.service.begin(user).await?;
                    let advance = store::advance_index(&mut transaction, user).await?;
                    transaction.commit().await?;
                    advance
                }
                None => IndexAdvance::Contended,
            };
            drop(turn);
            match advance {
                IndexAdvance::Partial => {}
                IndexAdvance::Contended if !has_vector => sleep(INDEX_PAUSE).await,
                IndexAdvance::Complete | IndexAdvance::Contended => break,
            }
        }
        Ok(())
    }
}
