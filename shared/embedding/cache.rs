//! Query vectors of retried turns and refined searches.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use super::{EmbedError, Embedder, QueryVector};

/// In queries: 6 MB with 1,536 dimensions.
const CAPACITY: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(999);
/// Longer queries hardly repeat.
const MAX_QUERY_BYTES: usize = 1_000;

pub struct QueryCache {
    embedder: Arc<dyn Embedder>,
    recent: Mutex<LruCache<String, Arc<QueryVector>>>,
}

impl QueryCache {
    #[must_use]
    pub fn new(embedder: Arc<dyn Embedder>) -> Self {
        Self { embedder, recent: Mutex::new(LruCache::new(CAPACITY)) }
    }

    /// Errors are not cached.
    pub async fn embed(&self, text: &str) -> Result<Arc<QueryVector>, EmbedError> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = recent().get(text) {
            return Ok(Arc::clone(cached));
        }
        let vector = Arc::new(self.embedder.embed_query(text).await?);
        if text.len() <= MAX_QUERY_BYTES {
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

    struct CountingEmbedder {
        model: EmbeddingModel,
        calls: AtomicUsize,
    }

    impl Embedder for CountingEmbedder {
        fn model(&self) -> &EmbeddingModel {
            &self.model
        }

        fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let is_bad = texts.contains(&"bad");
            let vectors = texts.iter().map(|text| vec![text.len() as f32]).collect();
            Box::pin(async move { if is_bad { Err(EmbedError::Rejected(503)) } else { Ok(vectors) } })
        }
    }

    #[tokio::test]
    async fn cache_skips_errors_and_long_queries() {
        let model = EmbeddingModel { name: "length".into(), dimension: 1 };
        let embedder = Arc::new(CountingEmbedder { model, calls: AtomicUsize::new(0) });
        let cache = QueryCache::new(embedder.clone());
        let calls = || embedder.calls.swap(0, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(cache.embed("four").await.unwrap().vector, [4.0]);
        }
        assert_eq!(calls(), 1);
        let long = "x".repeat(MAX_QUERY_BYTES + 1);
        for text in ["bad", "bad", &long, &long] {
            let _ = cache.embed(text).await;
        }
        assert_eq!(calls(), 4);
        for number in 0..CAPACITY.get() {
            cache.embed(&format!("query {number}")).await.unwrap();
        }
        calls();
        cache.embed("four").await.unwrap();
        assert_eq!(calls(), 1, "the least recently used query is evicted");
    }
}
