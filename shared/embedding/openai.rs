//! The remote embedder: any OpenAI-compatible API.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{EmbedError, Embedder, EmbeddingModel, QueryVector, normalize};
use crate::{
    config::{RetryConfig, Secret},
    identity::UserId,
    llm::estimate_tokens,
    provider::{CircuitBreaker, ErrorResponse, backoff_delay, read_bounded_body, transport_problem},
};

/// Until the provider rejects so many texts. DashScope accepts 10.
const BATCH: usize = 64;
const DASHSCOPE_BATCH: usize = 10;
const CONCURRENCY: usize = 4;
/// Far above a batch of the largest models' vectors.
const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;
/// Models accept 8,192 tokens, and the estimate can be a third too low.
const MAX_INPUT_TOKENS: u32 = 5_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// A longer `Retry-After` fails the call.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct OpenAiEmbedder {
    client: Client,
    url: String,
    api_key: Option<Secret>,
    model: EmbeddingModel,
    /// True if the dimension is not the model's default.
    sends_dimension: bool,
    max_attempts: u32,
    breaker: Arc<CircuitBreaker>,
    /// Shrinks when the provider rejects so many texts.
    batch_size: AtomicUsize,
}

/// One call of a user, or of nobody, which may take several requests.
#[derive(Clone, Copy)]
struct EmbeddingCall<'a> {
    user: Option<&'a UserId>,
    /// The length of the texts that are embedded so far.
    embedded_bytes: &'a AtomicUsize,
}

struct FailedAttempt {
    error: EmbedError,
    retry_after: Option<Duration>,
}

impl From<EmbedError> for FailedAttempt {
    fn from(error: EmbedError) -> Self {
        Self { error, retry_after: None }
    }
}

/// <https://platform.openai.com/docs/api-reference/embeddings/create>.
#[derive(Serialize)]
struct EmbeddingRequest<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
struct EmbeddingResponse {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    index: Option<usize>,
    embedding: Vec<f32>,
}

impl OpenAiEmbedder {
    /// `base_url` ends with `/v1`.
    pub fn new(
        base_url: &str,
        api_key: Option<Secret>,
        model: EmbeddingModel,
        sends_dimension: bool,
        retry: RetryConfig,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            client: crate::provider::http_client(CONNECT_TIMEOUT)?,
            url: format!("{base_url}/embeddings"),
            api_key,
            model,
            sends_dimension,
            max_attempts: retry.max_attempts,
            breaker: Arc::new(CircuitBreaker::new(retry.breaker)),
            batch_size: AtomicUsize::new(if base_url.contains("dashscope") { DASHSCOPE_BATCH } else { BATCH }),
        })
    }

    async fn embed_all(&self, call: EmbeddingCall<'_>, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let batch_size = self.batch_size.load(Ordering::Relaxed);
            let (current, later) = rest.split_at(rest.len().min(batch_size * CONCURRENCY));
            let batches = current.chunks(batch_size).map(|batch| self.embed_batch(call, batch));
            // All of them end, so that those that were embedded are counted.
            for batch in join_all(batches).await {
                vectors.extend(batch?);
            }
            rest = later;
        }
        Ok(vectors)
    }

    /// Bisects a batch that the provider rejects.
    fn embed_batch<'a>(
        &'a self,
        call: EmbeddingCall<'a>,
        texts: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        async move {
            if texts.len() <= self.batch_size.load(Ordering::Relaxed) {
                match self.embed_with_retry(call, texts).await {
                    Err(EmbedError::Rejected(400 | 413 | 422)) if texts.len() > 1 => {}
                    result => return result,
                }
            }
            let half = texts.len().div_ceil(2);
            let (first, second) = texts.split_at(half);
            let mut vectors = self.embed_batch(call, first).await?;
            vectors.extend(self.embed_batch(call, second).await?);
            // The provider accepts every text, so it was the number: one user's bad text must not slow down all others.
            self.batch_size.fetch_min(half, Ordering::Relaxed);
            Ok(vectors)
        }
        .boxed()
    }

    async fn embed_with_retry(&self, call: EmbeddingCall<'_>, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut attempt = 1;
        loop {
            let permit = self
                .breaker
                .admit(call.user.map(UserId::as_str))
                .map_err(|open| EmbedError::Unreachable(open.to_string()))?;
            let FailedAttempt { error, retry_after } = match self.request(texts).await {
                Ok(vectors) => {
                    permit.succeeded();
                    let bytes = texts.iter().map(|text| text.len()).sum();
                    call.embedded_bytes.fetch_add(bytes, Ordering::Relaxed);
                    return Ok(vectors);
                }
                Err(attempt) => attempt,
            };
            // A 4xx status is about the request and does not open the circuit.
            let is_outage = match error {
                EmbedError::Unreachable(_) => true,
                EmbedError::Rejected(status) => status >= 500,
                EmbedError::InvalidResponse(_) | EmbedError::Local(_) => false,
            };
            if is_outage {
                permit.failed();
            } else {
                permit.succeeded();
            }
            let wait = backoff_delay(attempt, retry_after);
            if !error.is_transient() || attempt >= self.max_attempts || wait > MAX_RETRY_WAIT {
                return Err(error);
            }
            tracing::warn!(%error, attempt, wait_ms = wait.as_millis(), "the embedding provider failed; retrying");
            sleep(wait).await;
            attempt += 1;
        }
    }

    async fn request(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, FailedAttempt> {
        let inputs: Vec<&str> = texts.iter().map(|text| truncate_input(text)).collect();
        let dimensions = self.sends_dimension.then_some(self.model.dimension);
        let body = EmbeddingRequest { model: &self.model.name, input: &inputs, encoding_format: "float", dimensions };
        let mut request = self.client.post(&self.url).timeout(TIMEOUT).json(&body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key.expose());
        }
        let mut response = request.send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            let error = ErrorResponse::read(response).await;
            return Err(FailedAttempt { error: EmbedError::Rejected(error.status), retry_after: error.retry_after });
        }
        let bytes = read_bounded_body(&mut response, MAX_RESPONSE_BYTES).await.map_err(unreachable)?;
        let bytes = bytes
            .ok_or_else(|| EmbedError::InvalidResponse(format!("it is longer than {MAX_RESPONSE_BYTES} bytes")))?;
        // The parser's message could quote the response.
        let response = serde_json::from_slice(&bytes)
            .map_err(|_| EmbedError::InvalidResponse("it is not the expected JSON".to_owned()))?;
        Ok(self.in_order(response, texts.len())?)
    }

    fn in_order(&self, response: EmbeddingResponse, texts: usize) -> Result<Vec<Vec<f32>>, EmbedError> {
        if response.data.len() != texts {
            return Err(EmbedError::InvalidResponse(format!("{} vectors for {texts} texts", response.data.len())));
        }
        let mut vectors = vec![Vec::new(); texts];
        for (position, Embedding { index, embedding }) in response.data.into_iter().enumerate() {
            let expected = self.model.dimension;
            if embedding.len() != expected {
                let found = embedding.len();
                return Err(EmbedError::InvalidResponse(format!(
                    "a vector has {found} dimensions, EMBEDDING_DIM is {expected}"
                )));
            }
            let vector = normalize(embedding)
                .ok_or_else(|| EmbedError::InvalidResponse("a vector has no direction".to_owned()))?;
            let slot = vectors.get_mut(index.unwrap_or(position)).filter(|slot| slot.is_empty());
            *slot.ok_or_else(|| EmbedError::InvalidResponse("two vectors for one text".to_owned()))? = vector;
        }
        Ok(vectors)
    }
}

/// Providers reject a batch with one text that is too long.
fn truncate_input(text: &str) -> &str {
    if estimate_tokens(text) <= MAX_INPUT_TOKENS {
        return text;
    }
    let share = f64::from(MAX_INPUT_TOKENS) / f64::from(estimate_tokens(text));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a length"
    )]
    let bytes = (text.len() as f64 * share) as usize;
    &text[..text.floor_char_boundary(bytes)]
}

fn unreachable(error: reqwest::Error) -> EmbedError {
    EmbedError::Unreachable(transport_problem(error).detail)
}

impl Embedder for OpenAiEmbedder {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn warm_up(&self) -> BoxFuture<'_, ()> {
        // Without the key: any response opens the connection.
        Box::pin(async { drop(self.client.head(&self.url).send().await) })
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move {
            let call = EmbeddingCall { user: None, embedded_bytes: &AtomicUsize::new(0) };
            self.embed_all(call, texts).await
        })
    }

    fn embed_for<'a>(
        &'a self,
        user: &'a UserId,
        texts: &'a [&'a str],
        embedded_bytes: &'a AtomicUsize,
    ) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(self.embed_all(EmbeddingCall { user: Some(user), embedded_bytes }, texts))
    }

    fn embed_query_for<'a>(
        &'a self,
        user: &'a UserId,
        text: &'a str,
    ) -> BoxFuture<'a, Result<QueryVector, EmbedError>> {
        Box::pin(async move {
            let call = EmbeddingCall { user: Some(user), embedded_bytes: &AtomicUsize::new(0) };
            QueryVector::of_only(self.embed_all(call, &[text]).await?)
        })
    }
}
