//! Embeddings of any OpenAI-compatible API.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{EmbedError, Embedder, EmbeddingModel, normalize};
use crate::{
    config::{RetryConfig, Secret},
    llm::estimate_tokens,
    provider::{CircuitBreaker, ErrorResponse, backoff_delay, read_bounded_body, transport_problem},
};

/// Texts of one request, until the provider refuses so many. DashScope is known to take no more than 10.
const BATCH: usize = 64;
const DASHSCOPE_BATCH: usize = 10;
/// Requests that may be under way at once for one call.
const CONCURRENCY: usize = 4;
/// Largest answer that is read: far above a batch of the largest models' vectors.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Estimated tokens of one text; the estimate can be a third too low.
const MAX_INPUT_TOKENS: u32 = 5_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait before a request is made again, at the provider's wish.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A provider's embedding model.
#[derive(Debug)]
pub struct OpenAiEmbedder {
    client: Client,
    url: String,
    api_key: Option<Secret>,
    model: EmbeddingModel,
    /// Whether the model has to be asked for the dimension, because it is not its own.
    shortened: bool,
    max_attempts: u32,
    breaker: Arc<CircuitBreaker>,
    /// Most texts of one request; smaller once the provider has refused so many.
    batch: AtomicUsize,
}

/// A request that failed.
struct Failed {
    error: EmbedError,
    /// How long the provider asks to wait.
    retry_after: Option<Duration>,
}

impl From<EmbedError> for Failed {
    fn from(error: EmbedError) -> Self {
        Self { error, retry_after: None }
    }
}

/// The body of a request, <https://platform.openai.com/docs/api-reference/embeddings/create>.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    index: Option<usize>,
    embedding: Vec<f32>,
}

impl OpenAiEmbedder {
    /// An embedder for the API at `base_url`, which ends with its `/v1`; `shortened` asks for vectors of another length than
    /// the model's own.
    ///
    /// # Errors
    /// The HTTP client can not be built.
    pub fn new(
        base_url: &str,
        api_key: Option<Secret>,
        model: EmbeddingModel,
        shortened: bool,
        patience: RetryConfig,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            client: crate::provider::http_client(CONNECT_TIMEOUT)?,
            url: format!("{base_url}/embeddings"),
            api_key,
            model,
            shortened,
            max_attempts: patience.max_attempts,
            breaker: Arc::new(CircuitBreaker::new(patience.breaker)),
            batch: AtomicUsize::new(if base_url.contains("dashscope") { DASHSCOPE_BATCH } else { BATCH }),
        })
    }

    /// Vectors of texts, asked for in halves where the provider refuses so many at once.
    fn embed_batch<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        async move {
            if texts.len() <= self.batch.load(Ordering::Relaxed) {
                match self.embed_with_patience(texts).await {
                    Err(EmbedError::Rejected(400 | 413 | 422)) if texts.len() > 1 => {}
                    done => return done,
                }
            }
            let half = texts.len().div_ceil(2);
            let (first, second) = texts.split_at(half);
            let mut vectors = self.embed_batch(first).await?;
            // So many are taken; more are not tried again.
            self.batch.fetch_min(half, Ordering::Relaxed);
            vectors.extend(self.embed_batch(second).await?);
            Ok(vectors)
        }
        .boxed()
    }

    /// One request, made again after a while where that may help.
    async fn embed_with_patience(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut attempt = 1;
        loop {
            let permit = self.breaker.admit().map_err(|open| EmbedError::Unreachable(open.to_string()))?;
            let Failed { error, retry_after } = match self.request(texts).await {
                Ok(vectors) => {
                    permit.succeeded();
                    return Ok(vectors);
                }
                Err(failed) => failed,
            };
            // A status of 4xx is about the request, not about the provider.
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
            if !error.is_transient() || attempt >= self.max_attempts || wait > LONGEST_WAIT {
                return Err(error);
            }
            tracing::warn!(%error, attempt, wait_ms = wait.as_millis(), "the embedder failed; it is asked again");
            sleep(wait).await;
            attempt += 1;
        }
    }

    async fn request(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failed> {
        let inputs: Vec<&str> = texts.iter().map(|text| within_input_limit(text)).collect();
        let dimensions = self.shortened.then_some(self.model.dimension);
        let body = Body { model: &self.model.name, input: &inputs, encoding_format: "float", dimensions };
        let mut call = self.client.post(&self.url).timeout(TIMEOUT).json(&body);
        if let Some(key) = &self.api_key {
            call = call.bearer_auth(key.expose());
        }
        let mut response = call.send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            let refusal = ErrorResponse::read(response).await;
            return Err(Failed { error: EmbedError::Rejected(refusal.status), retry_after: refusal.retry_after });
        }
        let bytes = read_bounded_body(&mut response, MAX_ANSWER_BYTES).await.map_err(unreachable)?;
        let bytes =
            bytes.ok_or_else(|| EmbedError::InvalidResponse(format!("it is longer than {MAX_ANSWER_BYTES} bytes")))?;
        // The parser's own words could quote the answer.
        let answer = serde_json::from_slice(&bytes)
            .map_err(|_| EmbedError::InvalidResponse("it is not the expected JSON".to_owned()))?;
        Ok(self.in_order(answer, texts.len())?)
    }

    /// Puts the vectors into the order of the texts, and refuses what could not be compared later.
    fn in_order(&self, answer: Answer, texts: usize) -> Result<Vec<Vec<f32>>, EmbedError> {
        if answer.data.len() != texts {
            return Err(EmbedError::InvalidResponse(format!("{} vectors for {texts} texts", answer.data.len())));
        }
        let mut vectors = vec![Vec::new(); texts];
        for (position, Embedding { index, embedding }) in answer.data.into_iter().enumerate() {
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

/// The beginning of a text that every provider's model can read: they take 8,192 tokens, and refuse a batch with one text
/// that has more.
fn within_input_limit(text: &str) -> &str {
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
        // Without the key: any answer will do.
        Box::pin(async { drop(self.client.head(&self.url).send().await) })
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move {
            let mut vectors = Vec::with_capacity(texts.len());
            let mut rest = texts;
            while !rest.is_empty() {
                let batch = self.batch.load(Ordering::Relaxed);
                let (now, later) = rest.split_at(rest.len().min(batch * CONCURRENCY));
                let batches = now.chunks(batch).map(|batch| self.embed_batch(batch));
                vectors.extend(try_join_all(batches).await?.into_iter().flatten());
                rest = later;
            }
            Ok(vectors)
        })
    }
}
