//! Vectors of recent queries: a turn that is asked again, or a search that is refined, embeds nothing anew.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use super::{EmbedError, Embedder, QueryVector};

/// Most queries that are kept; with 1,536 dimensions 6 MB.
const CAPACITY: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(999);
/// Most bytes of a query that is kept: longer ones are hardly asked twice.
const MAX_BYTES: usize = 1_000;

/// An embedder of queries that remembers the latest ones.
pub struct QueryCache {
    embedder: Arc<dyn Embedder>,
    recent: Mutex<LruCache<String, Arc<QueryVector>>>,
}

impl QueryCache {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(embedder: Arc<dyn Embedder>) -> Self {
        Self { embedder, recent: Mutex::new(LruCache::new(CAPACITY)) }
    }

    /// The vector of a query.
    ///
    /// # Errors
    /// As [`Embedder::embed`]. An error is not remembered.
    pub async fn embed(&self, text: &str) -> Result<Arc<QueryVector>, EmbedError> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = recent().get(text) {
            return Ok(Arc::clone(known));
        }
        let vector = Arc::new(self.embedder.embed_query(text).await?);
        if text.len() <= MAX_BYTES {
            recent().put(text.to_owned(), Arc::clone(&vector));
        }
        Ok(vector)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::BoxFuture;

    use super::{super::EmbeddingModel, *};

    struct Counting {
        model: EmbeddingModel,
        calls: AtomicUsize,
    }

    impl Embedder for Counting {
        fn model(&self) -> &EmbeddingModel {
            &self.model
        }

        fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let refused = texts.contains(&"bad");
            let vectors = texts.iter().map(|text| vec![text.len() as f32]).collect();
            Box::pin(async move { if refused { Err(EmbedError::Rejected(503)) } else { Ok(vectors) } })
        }
    }

    #[tokio::test]
    async fn the_latest_queries_are_embedded_once_and_errors_and_long_ones_are_not_kept() {
        let model = EmbeddingModel { name: "length".into(), dimension: 1 };
        let counting = Arc::new(Counting { model, calls: AtomicUsize::new(0) });
        let cache = QueryCache::new(counting.clone());
        let calls = || counting.calls.swap(0, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(cache.embed("four").await.unwrap().vector, [4.0]);
        }
        assert_eq!(calls(), 1);
        let long = "x".repeat(MAX_BYTES + 1);
        for text in ["bad", "bad", &long, &long] {
            let _ = cache.embed(text).await;
        }
        assert_eq!(calls(), 4);
        for number in 0..CAPACITY.get() {
            cache.embed(&format!("query {number}")).await.unwrap();
        }
        calls();
        cache.embed("four").await.unwrap();
        assert_eq!(calls(), 1, "the oldest is forgotten");
    }
}
