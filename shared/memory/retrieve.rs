//! Finding memories by words and by meaning.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use super::{
    Found, Leg, MemoryEngine, MemoryError, Query,
    engine::in_time,
    keyword,
    store::{
        self, Advance, nearest,
        search::{self, Legs, Search, Statistics},
    },
    temporal,
};
use crate::{
    embedding::{EmbedError, QueryVector},
    identity::UserId,
    postgres::RoleTransaction,
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
    pub async fn retrieve(&self, user: &UserId, query: &Query) -> Result<Found, MemoryError> {
        let (words, meaning) = (query.alpha < 1.0, query.alpha >= KEYWORDS_ALONE);
        let vector = match (meaning, words) {
            (false, _) => Ok(None),
            (true, false) => self.queries.embed(&query.text).await.map(Some),
            (true, true) => match timeout(EMBED_TIME_BESIDE_WORDS, self.queries.embed(&query.text)).await {
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
        let found = in_time(async {
            let Some((mut search, mut transaction)) = self.prepare(user, query, vector).await? else { return Ok(None) };
            // Nothing is changed, and nobody waits for the end of the transaction.
            let found = search.run(&mut transaction).await?;
            let only = match search.legs {
                _ if failed => Some(Leg::Keywords),
                Legs::Vectors(_) if words => Some(Leg::Vectors),
                _ => None,
            };
            Ok(Some(Found { only, ..found }))
        });
        found.await?.ok_or(MemoryError::Indexing)
    }

    /// How the database goes about a query, as it tells by `explain`: for those who tune it.
    ///
    /// # Errors
    /// As [`MemoryEngine::retrieve`].
    pub async fn explain(&self, user: &UserId, query: &Query) -> Result<String, MemoryError> {
        let meaning = query.alpha >= KEYWORDS_ALONE;
        let vector = if meaning { Some(self.queries.embed(&query.text).await?) } else { None };
        let plan = in_time(async {
            let Some((search, mut transaction)) = self.prepare(user, query, vector).await? else { return Ok(None) };
            search.explain(&mut transaction).await.map(Some)
        });
        plan.await?.ok_or(MemoryError::Indexing)
    }

    /// The search for a query, and the transaction in which it is run; `None` where there is nothing to search by, because
    /// the index of the words is still being made.
    async fn prepare<'a>(
        &'a self,
        user: &'a UserId,
        query: &'a Query,
        vector: Option<Arc<QueryVector>>,
    ) -> Result<Option<(Search<'a>, RoleTransaction)>, sqlx::Error> {
        // Of a query in a language that the model does not know the words alone say something.
        let known_share = vector.as_ref().map_or(0.0, |vector| vector.known_share);
        let alpha = if query.alpha < 1.0 { query.alpha * known_share } else { 1.0 };
        let vector = vector.filter(|_| alpha >= KEYWORDS_ALONE).map(|vector| vector.vector.clone());
        let mut transaction = self.reader.begin(user).await?;
        let mut statistics = None;
        if query.alpha < 1.0 {
            let terms = keyword::terms(&query.text);
            statistics = search::statistics(&mut transaction, user, &terms).await?;
            if statistics.is_none() {
                // Their index is missing, or of an older tokeniser. Whoever waits for it holds no connection.
                transaction.commit().await?;
                if let Err(error) = self.index(user, vector.is_some()).await {
                    tracing::warn!(%error, "the keyword index can not be made");
                }
                transaction = self.reader.begin(user).await?;
                statistics = search::statistics(&mut transaction, user, &terms).await?;
            }
        }
        let many = |statistics: &Statistics| self.nearest.is_worth(statistics.memories);
        // A filter may leave few of many memories, which the index would have to look for among all.
        let may_use_index = vector.is_some() && query.filter.is_empty() && statistics.as_ref().is_none_or(many);
        let candidates = nearest::candidates(query.limit, query.min_score);
        let memories =
            if may_use_index { self.nearest.is_for(&mut transaction, user, candidates).await? } else { None };
        let nearest = memories.map(|memories| (&self.nearest, memories));
        let legs = match (statistics, vector) {
            (Some(statistics), Some(vector)) => Legs::Both(statistics, vector),
            (None, Some(vector)) => Legs::Vectors(vector),
            (Some(statistics), None) => Legs::Keywords(statistics),
            (None, None) => return Ok(None),
        };
        let search = Search {
            user,
            query,
            legs,
            alpha: alpha.into(),
            spans: temporal::spans(&query.text, Timestamp::now(), &query.zone),
            model: &self.model,
            nearest,
            tuning: self.tuning,
        };
        Ok(Some((search, transaction)))
    }

    /// Makes the index of a user who has memories and no whole one, part by part. Where that takes too long for one search,
    /// the next one goes on. A search that has a vector as well waits for nobody who is at it already.
    async fn index(&self, user: &UserId, has_vector: bool) -> Result<(), sqlx::Error> {
        let time = if has_vector { INDEX_TIME_BESIDE_VECTORS } else { INDEX_TIME };
        let began = Instant::now();
        while began.elapsed() < time {
            let turn = if has_vector { self.writers.try_enter(user) } else { Some(self.writers.enter(user).await?) };
            let advance = match &turn {
                Some(_) => {
                    let mut transaction = self.service.begin(user).await?;
                    let advance = store::advance_index(&mut transaction, user).await?;
                    transaction.commit().await?;
                    advance
                }
                None => Advance::Elsewhere,
            };
            drop(turn);
            match advance {
                Advance::Part => {}
                Advance::Elsewhere if !has_vector => sleep(INDEX_PAUSE).await,
                Advance::Whole | Advance::Elsewhere => break,
            }
        }
        Ok(())
    }
}
