//! Turning text into vectors.

mod cache;
mod hashed;
#[cfg(feature = "local-embeddings")]
mod local;
mod openai;

use futures_util::future::BoxFuture;

pub use cache::QueryCache;
pub use hashed::HashedEmbedder;
#[cfg(feature = "local-embeddings")]
pub use local::{LocalEmbedder, LocalModelError};
pub use openai::OpenAiEmbedder;

/// A model that vectors come from. Vectors of different models are never compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingModel {
    /// Name of the model, for example `text-embedding-3-small`.
    pub name: String,
    /// Length of its vectors.
    pub dimension: usize,
}

/// Something that turns text into vectors of one model.
pub trait Embedder: Send + Sync {
    /// The model.
    fn model(&self) -> &EmbeddingModel;

    /// One unit vector of `model().dimension` numbers for each text, in order.
    ///
    /// # Errors
    /// The model can not be reached, or gave something else than asked.
    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>>;

    /// Opens a connection to the provider, if there is one, for the first text to use. What fails is tried again then.
    fn warm_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// The vector of a query, and how far it is to be trusted.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    fn embed_query<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<QueryVector, EmbedError>> {
        Box::pin(async move {
            let vector = self.embed(&[text]).await?.pop();
            let vector = vector.ok_or_else(|| EmbedError::InvalidResponse("no vector".to_owned()))?;
            Ok(QueryVector { vector, vocabulary_coverage: 1.0 })
        })
    }
}

/// The vector of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryVector {
    /// A unit vector.
    pub vector: Vec<f32>,
    /// The share of the query that the model has words for, 0 to 1: of a language that it was never taught, vectors mean
    /// next to nothing. 1 where the model does not tell.
    pub vocabulary_coverage: f32,
}

/// Why there are no vectors. It holds no text of the user and no key.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The provider can not be reached, or took too long.
    #[error("the embedding provider can not be reached: {0}")]
    Unreachable(String),
    /// The provider refused.
    #[error("the embedding provider answered with status {0}")]
    Rejected(u16),
    /// The provider's answer is not what was asked for.
    #[error("the embedding provider's answer can not be used: {0}")]
    InvalidResponse(String),
    /// The model in this process failed.
    #[error("the local embedding model failed: {0}")]
    Local(String),
}

impl EmbedError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Rejected(status) => matches!(status, 408 | 429) || *status >= 500,
            Self::InvalidResponse(_) | Self::Local(_) => false,
        }
    }
}

/// Scales a vector to length 1; `None` where it has no direction.
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
