//! Finding memories by words and by meaning.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    Found, MemoryEngine, MemoryError, Query,
    engine::in_time,
    keyword,
    store::{
        self,
        search::{self, Legs, Search, Statistics},
    },
    temporal,
};
use crate::{embedding::QueryVector, identity::UserId, postgres::RoleTransaction};

/// How long one search goes on with an index that is being made.
const INDEX_TIME: Duration = Duration::from_secs(10);

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
    /// wanted.
    ///
    /// # Errors
    /// The database failed, or the embedder did and meaning alone was wanted.
    pub async fn retrieve(&self, user: &UserId, query: &Query) -> Result<Found, MemoryError> {
        let (words, meaning) = (query.alpha < 1.0, query.alpha >= KEYWORDS_ALONE);
        let vector = if meaning { self.queries.embed(&query.text).await.map(Some) } else { Ok(None) };
        let (vector, failed) = match vector {
            Err(error) if words => {
                tracing::warn!(%error, "the query has no vector; searching by words alone");
                (None, true)
            }
            vector => (vector?, false),
        };
        let found = in_time(async {
            let (search, mut transaction) = self.prepare(user, query, vector).await?;
            // Nothing is changed, and nobody waits for the end of the transaction.
            search.run(&mut transaction).await
        });
        Ok(Found { keywords_only: failed, ..found.await? })
    }

    /// How the database goes about a query, as it tells by `explain`: for those who tune it.
    ///
    /// # Errors
    /// As [`MemoryEngine::retrieve`].
    pub async fn explain(&self, user: &UserId, query: &Query) -> Result<String, MemoryError> {
        let meaning = query.alpha >= KEYWORDS_ALONE;
        let vector = if meaning { Some(self.queries.embed(&query.text).await?) } else { None };
        in_time(async {
            let (search, mut transaction) = self.prepare(user, query, vector).await?;
            search.explain(&mut transaction).await
        })
        .await
    }

    /// The search for a query, and the transaction in which it is run.
    async fn prepare<'a>(
        &'a self,
        user: &'a UserId,
        query: &'a Query,
        vector: Option<Arc<QueryVector>>,
    ) -> Result<(Search<'a>, RoleTransaction), sqlx::Error> {
        let mut transaction = self.reader.begin(user).await?;
        let mut statistics = None;
        if query.alpha < 1.0 {
            let terms = keyword::terms(&query.text);
            statistics = search::statistics(&mut transaction, user, &terms).await?;
            if statistics.is_none() {
                // Their index is missing, or of another tokeniser. Whoever waits for a connection holds none.
                transaction.commit().await?;
                if let Err(error) = self.index(user).await {
                    tracing::warn!(%error, "the keyword index can not be made; words find nothing");
                }
                transaction = self.reader.begin(user).await?;
                let made = search::statistics(&mut transaction, user, &terms).await?;
                statistics = Some(made.unwrap_or_default());
            }
        }
        // Of a query in a language that the model does not know the words alone say something.
        let known_share = vector.as_ref().map_or(0.0, |vector| vector.known_share);
        let alpha = if query.alpha < 1.0 { query.alpha * known_share } else { 1.0 };
        let vector = vector.filter(|_| alpha >= KEYWORDS_ALONE).map(|vector| vector.vector.clone());
        let many = |statistics: &Statistics| self.nearest.is_worth(statistics.memories);
        // A filter may leave few of many memories, which the index would have to look for among all.
        let may_use_index = vector.is_some() && query.filter.is_empty() && statistics.as_ref().is_none_or(many);
        let nearest = if may_use_index && self.nearest.is_for(&mut transaction, user).await? {
            Some(&self.nearest)
        } else {
            None
        };
        let legs = match (statistics, vector) {
            (Some(statistics), Some(vector)) => Legs::Both(statistics, vector),
            (None, Some(vector)) => Legs::Vectors(vector),
            (statistics, None) => Legs::Keywords(statistics.unwrap_or_default()),
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
        Ok((search, transaction))
    }

    /// Makes the index of a user who has memories and no whole one, part by part. Where that takes too long for one search,
    /// the next one goes on.
    async fn index(&self, user: &UserId) -> Result<(), sqlx::Error> {
        let began = Instant::now();
        loop {
            let mut transaction = self.service.begin(user).await?;
            let done = store::advance_index(&mut transaction, user).await?;
            transaction.commit().await?;
            if done || began.elapsed() > INDEX_TIME {
                return Ok(());
            }
        }
    }
}
