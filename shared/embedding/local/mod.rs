//! The local embedder: a BERT-like sentence-transformers model on the CPU. It downloads nothing, and adds no prefixes
//! such as "query: ", which some models expect.

mod directory;
mod files;
mod model;
mod ops;
mod pooling;
mod vocabulary;
mod workers;

use std::{borrow::Cow, fmt, path::Path, sync::Arc};

use futures_util::{
    future::BoxFuture,
    stream::{self, StreamExt as _, TryStreamExt as _},
};
use sha2::{Digest as _, Sha256};
use tokenizers::{Tokenizer, TruncationParams};

pub use files::LocalModelError;

use super::{EmbedError, Embedder, EmbeddingModel, QueryVector, normalize};
use directory::ModelDirectory;
use files::{malformed, read};
use model::BertEncoder;
use workers::Workers;

/// Larger batches are no faster: products of this size keep a core busy, and a query waits for at most one.
const TOKENS_PER_BATCH: usize = 256;

const HASH_LETTERS: usize = 12;

pub struct LocalEmbedder {
    model: EmbeddingModel,
    loaded: Arc<LoadedModel>,
    workers: Workers,
}

struct LoadedModel {
    directory: ModelDirectory,
    tokenizer: Tokenizer,
    encoder: BertEncoder,
}

struct TokenizedText {
    ids: Vec<u32>,
    /// Position of the text in the call.
    index: usize,
}

impl LocalEmbedder {
    /// Blocks for a third of a second to seconds. The weights are copied to memory rather than mapped: a write to a
    /// mapped file would change the vectors of a running server, or crash it.
    pub fn load(dir: &Path) -> Result<Self, LocalModelError> {
        let directory = ModelDirectory::read(dir)?;
        let expected = "it should hold the weights; where there is only pytorch_model.bin, load the directory with \
                        sentence-transformers and save it again with save_pretrained";
        let weights = read(&directory.weights, expected)?;
        let encoder = BertEncoder::new(&directory, &directory.weights, &weights)?;
        let name = model_name(&directory, &weights);
        drop(weights);
        let tokenizer = read_tokenizer(&directory)?;
        let dimension = directory.shape.hidden_size;
        let loaded = LoadedModel { directory, tokenizer, encoder };
        // Detects NaN weights before the first request.
        loaded
            .tokenize(&["word".to_owned()])
            .and_then(|inputs| loaded.encode(&inputs))
            .map_err(|error| malformed(&loaded.directory.weights, error))?;
        Ok(Self { model: EmbeddingModel { name, dimension }, loaded: Arc::new(loaded), workers: Workers::new() })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&LoadedModel) -> Result<T, EmbedError> + Send + 'static,
    ) -> Result<T, EmbedError> {
        let loaded = Arc::clone(&self.loaded);
        self.workers.run(move || work(&loaded)).await
    }

    async fn embed_all(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = vec![Vec::new(); texts.len()];
        let owned: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let inputs = self.run(move |loaded| loaded.tokenize(&owned)).await?;
        let encode = |batch: Vec<TokenizedText>| self.run(move |loaded| loaded.encode(&batch));
        // Only as many batches queue as there are workers, so that a query waits for one batch of a long import
        // (head-of-line blocking).
        let mut encoded = stream::iter(batches(inputs)).map(encode).buffer_unordered(self.workers.count());
        while let Some(batch) = encoded.try_next().await? {
            for (index, vector) in batch {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }
}

impl fmt::Debug for LocalEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEmbedder").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Embedder for LocalEmbedder {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(self.embed_all(texts))
    }

    fn embed_query<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<QueryVector, EmbedError>> {
        let text = text.to_owned();
        Box::pin(self.run(move |loaded| {
            let vocabulary_coverage = loaded.vocabulary_coverage(&text)?;
            let vector = loaded.encode(&loaded.tokenize(&[text])?)?.pop().map(|(_, vector)| vector);
            let vector = vector.ok_or_else(|| EmbedError::InvalidResponse("no vector".to_owned()))?;
            Ok(QueryVector { vector, vocabulary_coverage })
        }))
    }
}

impl LoadedModel {
    fn tokenize(&self, texts: &[String]) -> Result<Vec<TokenizedText>, EmbedError> {
        let encode = |(index, text): (usize, &String)| {
            let encoding = self.tokenizer.encode_fast(&*self.normalize_case(text), true).map_err(tokenizer_error)?;
            Ok(TokenizedText { ids: encoding.get_ids().to_vec(), index })
        };
        texts.iter().enumerate().map(encode).collect()
    }

    fn vocabulary_coverage(&self, text: &str) -> Result<f32, EmbedError> {
        let text = self.normalize_case(text);
        let encoding = self.tokenizer.encode(&*text, false).map_err(tokenizer_error)?;
        Ok(vocabulary::coverage(&self.tokenizer, &text, &encoding))
    }

    fn normalize_case<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.directory.is_lower_case { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) }
    }

    /// Each with the index of its text.
    fn encode(&self, batch: &[TokenizedText]) -> Result<Vec<(usize, Vec<f32>)>, EmbedError> {
        let ids: Vec<&[u32]> = batch.iter().map(|input| input.ids.as_slice()).collect();
        let tokens = self.encoder.forward(&ids).map_err(EmbedError::Local)?;
        let dimension = self.directory.shape.hidden_size;
        let mut end = 0;
        let pooled = batch.iter().map(|TokenizedText { ids, index }| {
            let begin = end;
            end += ids.len() * dimension;
            let vector = self.directory.pooling.pool(&tokens[begin..end], dimension);
            let zero = || EmbedError::InvalidResponse("a vector has no direction".to_owned());
            Ok((*index, normalize(vector).ok_or_else(zero)?))
        });
        pooled.collect()
    }
}

/// The tokenizer's message may hold the text.
fn tokenizer_error(_: tokenizers::Error) -> EmbedError {
    EmbedError::Local("a text cannot be tokenized".to_owned())
}

/// At least one text each.
fn batches(inputs: Vec<TokenizedText>) -> Vec<Vec<TokenizedText>> {
    let mut batches: Vec<Vec<TokenizedText>> = Vec::new();
    let mut tokens = 0;
    for input in inputs {
        tokens += input.ids.len();
        match batches.last_mut().filter(|_| tokens <= TOKENS_PER_BATCH) {
            Some(batch) => batch.push(input),
            None => {
                tokens = input.ids.len();
                batches.push(vec![input]);
            }
        }
    }
    batches
}

/// Named by weights rather than by directory: stored vectors stay valid when the directory moves, and become invalid
/// when its content changes.
fn model_name(directory: &ModelDirectory, weights: &[u8]) -> String {
    let ModelDirectory { model_type, shape, pooling, .. } = directory;
    let hash: String = Sha256::digest(weights).iter().map(|byte| format!("{byte:02x}")).collect();
    let (layers, hidden, pooling) = (shape.num_hidden_layers, shape.hidden_size, pooling.name());
    format!("{model_type}-{layers}x{hidden}-{pooling}-{}", &hash[..HASH_LETTERS])
}

/// With the directory's limit instead of the tokenizer's own, and without padding.
fn read_tokenizer(directory: &ModelDirectory) -> Result<Tokenizer, LocalModelError> {
    let path = &directory.tokenizer;
    let expected = "it should hold the fast tokenizer; where there is only vocab.txt, load the directory with \
                    sentence-transformers and save it again with save_pretrained";
    let mut tokenizer = Tokenizer::from_bytes(read(path, expected)?).map_err(|error| malformed(path, error))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| malformed(path, error))?;
    let special = tokenizer.encode_fast("", true).map_err(|error| malformed(path, error))?.len();
    let max_tokens = directory.max_tokens;
    if special == 0 {
        return Err(malformed(path, "it adds no special tokens, which BERT models need"));
    }
    if max_tokens <= special {
        return Err(malformed(
            &directory.config,
            format!("the longest input, of {max_tokens} tokens, leaves none for text"),
        ));
    }
    let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| malformed(path, error))?;
    let (tokens, known) = (tokenizer.get_vocab_size(true), directory.shape.vocab_size);
    if tokens > known {
        return Err(malformed(path, format!("it has {tokens} tokens, and config.json a vocab_size of {known}")));
    }
    Ok(tokenizer)
}

#[cfg(test)]
mod tests;
