//! Query vectors of retried turns and refined searches, each of one user: a vector that another user's search left here would
//! tell by its speed that somebody searched for that text.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;
use sha2::{Digest as _, Sha256};

use super::{EmbedError, Embedder, QueryVector};
use crate::identity::UserId;

/// In queries: 6 MB with 1,536 dimensions.
const CAPACITY: NonZero<usize> = NonZero::<usize>::MIN.saturating_add(999);
/// Longer queries hardly repeat.
const MAX_QUERY_BYTES: usize = 1_000;

pub struct QueryCache {
    embedder: Arc<dyn Embedder>,
    /// By digest of user, model and text: the texts themselves are not retained.
    recent: Mutex<LruCache<[u8; 32], Arc<QueryVector>>>,
}

impl QueryCache {
    #[must_use]
    pub fn new(embedder: Arc<dyn Embedder>) -> Self {
        Self { embedder, recent: Mutex::new(LruCache::new(CAPACITY)) }
    }

    /// Errors are not cached.
    pub async fn embed(&self, user: &UserId, text: &str) -> Result<Arc<QueryVector>, EmbedError> {
        if text.len() > MAX_QUERY_BYTES {
            return self.embedder.embed_query_for(user, text).await.map(Arc::new);
        }
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.key(user, text);
        if let Some(cached) = recent().get(&key) {
            return Ok(Arc::clone(cached));
        }
        let vector = Arc::new(self.embedder.embed_query_for(user, text).await?);
        recent().put(key, Arc::clone(&vector));
        Ok(vector)
    }

    fn key(&self, user: &UserId, text: &str) -> [u8; 32] {
        let model = self.embedder.model();
        let mut digest = Sha256::new();
        for part in [user.as_str(), &model.name, text] {
            // Length-prefixed, so that different parts never hash the same input.
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
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

    fn user(id: &str) -> UserId {
        UserId::parse("user_id", id).unwrap()
    }

    fn counting_cache() -> (Arc<CountingEmbedder>, QueryCache) {
        let model = EmbeddingModel { name: "length".into(), dimension: 1 };
        let embedder = Arc::new(CountingEmbedder { model, calls: AtomicUsize::new(0) });
        (embedder.clone(), QueryCache::new(embedder))
    }

    #[tokio::test]
    async fn cache_of_one_user_serves_no_other_user() {
        let (embedder, cache) = counting_cache();
        for (id, text) in [("ann", "four"), ("bob", "four"), ("annf", "our"), ("bob", "four"), ("ann", "four")] {
            cache.embed(&user(id), text).await.unwrap();
        }
        assert_eq!(embedder.calls.load(Ordering::Relaxed), 3, "one call for each user and text");
    }

    #[tokio::test]
    async fn cache_skips_errors_and_long_queries() {
        let (embedder, cache) = counting_cache();
        let ann = user("ann");
        let calls = || embedder.calls.swap(0, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(cache.embed(&ann, "four").await.unwrap().vector, [4.0]);
        }
        assert_eq!(calls(), 1);
        let long = "x".repeat(MAX_QUERY_BYTES + 1);
        for text in ["bad", "bad", &long, &long] {
            let _ = cache.embed(&ann, text).await;
        }
        assert_eq!(calls(), 4);
        for number in 0..CAPACITY.get() {
            cache.embed(&ann, &format!("query {number}")).await.unwrap();
        }
        calls();
        cache.embed(&ann, "four").await.unwrap();
        assert_eq!(calls(), 1, "the least recently used query is evicted");
    }
}
