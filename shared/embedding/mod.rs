//! Embedders: remote, local, or built in by feature hashing.

mod cache;
mod hashed;
#[cfg(feature = "local-embeddings")]
mod local;
mod openai;

use std::sync::atomic::AtomicUsize;

use futures_util::future::BoxFuture;

pub use cache::QueryCache;
pub use hashed::HashedEmbedder;
#[cfg(feature = "local-embeddings")]
pub use local::{LocalEmbedder, LocalModelError};
pub use openai::OpenAiEmbedder;

use crate::identity::UserId;

/// Vectors of different models are never compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingModel {
    pub name: String,
    pub dimension: usize,
}

/// Turns texts into vectors of one model.
#[warn(missing_docs)]
pub trait Embedder: Send + Sync {
    /// The model of all its vectors.
    fn model(&self) -> &EmbeddingModel;

    /// One unit vector for each text, in order.
    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>>;

    /// As [`Self::embed`], on behalf of a user: what fails for one user's texts alone must not fail for the others. If it fails,
    /// `embedded_bytes` has the length of the texts that were embedded nevertheless.
    fn embed_for<'a>(
        &'a self,
        _user: &'a UserId,
        texts: &'a [&'a str],
        _embedded_bytes: &'a AtomicUsize,
    ) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        self.embed(texts)
    }

    /// As [`Self::embed_query`], on behalf of a user.
    fn embed_query_for<'a>(
        &'a self,
        _user: &'a UserId,
        text: &'a str,
    ) -> BoxFuture<'a, Result<QueryVector, EmbedError>> {
        self.embed_query(text)
    }

    /// A failure is ignored: the first text tries again.
    fn warm_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// The vector of a query, with the vocabulary coverage that only some models know.
    fn embed_query<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<QueryVector, EmbedError>> {
        Box::pin(async move { QueryVector::of_only(self.embed(&[text]).await?) })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct QueryVector {
    /// Of length 1.
    pub vector: Vec<f32>,
    /// The share of the query in the model's vocabulary, 0 to 1; 1 if unknown. Vectors of unknown words mean little.
    pub vocabulary_coverage: f32,
}

impl QueryVector {
    /// For a model whose vocabulary is unknown.
    fn of_only(mut vectors: Vec<Vec<f32>>) -> Result<Self, EmbedError> {
        let vector = vectors.pop().ok_or_else(|| EmbedError::InvalidResponse("no vector".to_owned()))?;
        Ok(Self { vector, vocabulary_coverage: 1.0 })
    }
}

/// Messages hold neither texts of the user nor keys.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    #[error("the embedding provider is unreachable: {0}")]
    Unreachable(String),
    #[error("the embedding provider rejected the request with status {0}")]
    Rejected(u16),
    #[error("the embedding provider's response is invalid: {0}")]
    InvalidResponse(String),
    #[error("the local embedding model failed: {0}")]
    Local(String),
}

impl EmbedError {
    /// The same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Rejected(status) => matches!(status, 408 | 429) || *status >= 500,
            Self::InvalidResponse(_) | Self::Local(_) => false,
        }
    }
}

/// `None`: the vector is zero or not finite.
fn normalize(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if !length.is_normal() {
        return None;
    }
    for x in &mut vector {
        *x /= length;
    }
    Some(vector)
}
