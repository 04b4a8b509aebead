//! Embeddings of any OpenAI-compatible API.

use std::time::Duration;

use futures_util::future::{BoxFuture, try_join_all};
use reqwest::Client;
use serde::{Deserialize, Serialize};

use super::{EmbedError, Embedder, EmbeddingModel, normalised};
use crate::{config::Secret, error::with_causes, llm::estimate_tokens};

/// Texts of one request. DashScope takes no more than 10, and larger batches gain little.
const BATCH: usize = 10;
/// Requests that may be under way at once for one call.
const CONCURRENCY: usize = 4;
/// Largest answer that is read: far above ten vectors of the largest models.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Estimated tokens of one text; the estimate can be a third too low.
const MAX_INPUT_TOKENS: u32 = 5_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);

/// A provider's embedding model.
#[derive(Debug)]
pub struct OpenAiEmbedder {
    client: Client,
    url: String,
    api_key: Option<Secret>,
    model: EmbeddingModel,
    /// Whether the model has to be asked for the dimension, because it is not its own.
    shortened: bool,
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
    ) -> Result<Self, reqwest::Error> {
        let client = crate::http_client(CONNECT_TIMEOUT)?;
        Ok(Self { client, url: format!("{base_url}/embeddings"), api_key, model, shortened })
    }

    async fn embed_batch(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let inputs: Vec<&str> = texts.iter().map(|text| within_input_limit(text)).collect();
        let dimensions = self.shortened.then_some(self.model.dimension);
        let body = Body { model: &self.model.name, input: &inputs, encoding_format: "float", dimensions };
        let mut call = self.client.post(&self.url).timeout(TIMEOUT).json(&body);
        if let Some(key) = &self.api_key {
            call = call.bearer_auth(key.expose());
        }
        let mut response = call.send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(EmbedError::Refused(response.status().as_u16()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(unreachable)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_ANSWER_BYTES {
                return Err(EmbedError::Unusable(format!("it is longer than {MAX_ANSWER_BYTES} bytes")));
            }
        }
        // The parser's own words could quote the answer.
        let answer = serde_json::from_slice(&bytes)
            .map_err(|_| EmbedError::Unusable("it is not the expected JSON".to_owned()))?;
        self.in_order(answer, texts.len())
    }

    /// Puts the vectors into the order of the texts, and refuses what could not be compared later.
    fn in_order(&self, answer: Answer, texts: usize) -> Result<Vec<Vec<f32>>, EmbedError> {
        if answer.data.len() != texts {
            return Err(EmbedError::Unusable(format!("{} vectors for {texts} texts", answer.data.len())));
        }
        let mut vectors = vec![Vec::new(); texts];
        for (position, Embedding { index, embedding }) in answer.data.into_iter().enumerate() {
            let expected = self.model.dimension;
            if embedding.len() != expected {
                let found = embedding.len();
                return Err(EmbedError::Unusable(format!(
                    "a vector has {found} dimensions, EMBEDDING_DIM is {expected}"
                )));
            }
            let vector =
                normalised(embedding).ok_or_else(|| EmbedError::Unusable("a vector has no direction".to_owned()))?;
            let slot = vectors.get_mut(index.unwrap_or(position)).filter(|slot| slot.is_empty());
            *slot.ok_or_else(|| EmbedError::Unusable("two vectors for one text".to_owned()))? = vector;
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
    // The message of an error may repeat the URL, and the URL a key.
    EmbedError::Unreachable(with_causes(&error.without_url()))
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
            for texts in texts.chunks(BATCH * CONCURRENCY) {
                let batches = texts.chunks(BATCH).map(|batch| self.embed_batch(batch));
                vectors.extend(try_join_all(batches).await?.into_iter().flatten());
            }
            Ok(vectors)
        })
    }
}
