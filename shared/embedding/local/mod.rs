//! Embeddings by a model in this process: any BERT-like sentence-transformers directory, on the CPU.
//!
//! It fetches nothing: the directory holds `model.safetensors`, `tokenizer.json` and the configurations beside them.
//! What some models want before a text ("query: ") is not put there.

mod directory;
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

pub use directory::LocalModelError;

use super::{EmbedError, Embedder, EmbeddingModel, QueryVector, normalize};
use directory::{ModelDirectory, malformed, read};
use model::BertEncoder;
use workers::Workers;

/// Tokens of one batch. Larger batches are no faster: products of this size keep a core busy, and a query waits for at most one.
const TOKENS_PER_BATCH: usize = 256;

/// Letters of the weights' hash in the model's name.
const HASH_LETTERS: usize = 12;

/// A model in this process.
pub struct LocalEmbedder {
    model: EmbeddingModel,
    loaded: Arc<Loaded>,
    workers: Workers,
}

struct Loaded {
    directory: ModelDirectory,
    tokenizer: Tokenizer,
    encoder: BertEncoder,
}

/// The tokens of one text.
struct Input {
    ids: Vec<u32>,
    /// Which text of the call it is.
    place: usize,
}

impl LocalEmbedder {
    /// Reads the model in `dir` and encodes a word with it. It blocks, for a third of a second with a small model and
    /// for seconds with a large one: call it before serving, or where blocking is allowed.
    ///
    /// The weights are copied to memory. Mapping the file would save a fraction of that, but a mapped file that someone
    /// writes to changes the vectors of a running server, or ends it.
    ///
    /// # Errors
    /// A file is missing or broken, or the model needs what is not implemented.
    pub fn load(dir: &Path) -> Result<Self, LocalModelError> {
        let directory = ModelDirectory::read(dir)?;
        let expected = "it should hold the weights; where there is only pytorch_model.bin, load the directory with \
                        sentence-transformers and save it again with save_pretrained";
        let weights = read(&directory.weights, expected)?;
        let encoder = BertEncoder::new(&directory, &directory.weights, &weights)?;
        let name = name(&directory, &weights);
        drop(weights);
        let tokenizer = tokenizer(&directory)?;
        let dimension = directory.shape.hidden_size;
        let loaded = Loaded { directory, tokenizer, encoder };
        // Weights that are not numbers are found now rather than at the first message.
        loaded
            .tokenise(&["word".to_owned()])
            .and_then(|inputs| loaded.encode(&inputs))
            .map_err(|error| malformed(&loaded.directory.weights, error))?;
        Ok(Self { model: EmbeddingModel { name, dimension }, loaded: Arc::new(loaded), workers: Workers::new() })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Loaded) -> Result<T, EmbedError> + Send + 'static,
    ) -> Result<T, EmbedError> {
        let loaded = Arc::clone(&self.loaded);
        self.workers.run(move || work(&loaded)).await
    }

    async fn embed_all(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = vec![Vec::new(); texts.len()];
        let owned: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let inputs = self.run(move |loaded| loaded.tokenise(&owned)).await?;
        let encode = |batch: Vec<Input>| self.run(move |loaded| loaded.encode(&batch));
        // Batches queue no further ahead than there are threads, so that a query waits for one batch of a long import
        // and not for all.
        let mut encoded = stream::iter(batches(inputs)).map(encode).buffer_unordered(self.workers.count());
        while let Some(batch) = encoded.try_next().await? {
            for (place, vector) in batch {
                vectors[place] = vector;
            }
        }
        Ok(vectors)
    }
}

impl fmt::Debug for LocalEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its vocabulary and its weights would say more than anyone wants to read.
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
            let known_share = loaded.known_share(&text)?;
            let vector = loaded.encode(&loaded.tokenise(&[text])?)?.pop().map(|(_, vector)| vector);
            let vector = vector.ok_or_else(|| EmbedError::InvalidResponse("no vector".to_owned()))?;
            Ok(QueryVector { vector, vocabulary_coverage: known_share })
        }))
    }
}

impl Loaded {
    fn tokenise(&self, texts: &[String]) -> Result<Vec<Input>, EmbedError> {
        let encode = |(place, text): (usize, &String)| {
            let encoding = self.tokenizer.encode_fast(&*self.cased(text), true).map_err(not_split)?;
            Ok(Input { ids: encoding.get_ids().to_vec(), place })
        };
        texts.iter().enumerate().map(encode).collect()
    }

    /// The share of a text that the model has words for.
    fn known_share(&self, text: &str) -> Result<f32, EmbedError> {
        let text = self.cased(text);
        let encoding = self.tokenizer.encode(&*text, false).map_err(not_split)?;
        Ok(vocabulary::known_share(&self.tokenizer, &text, &encoding))
    }

    /// A text with the letters that the model knows.
    fn cased<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.directory.lower_case { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) }
    }

    /// The vectors of a batch, each with its text's place.
    fn encode(&self, batch: &[Input]) -> Result<Vec<(usize, Vec<f32>)>, EmbedError> {
        let ids: Vec<&[u32]> = batch.iter().map(|input| input.ids.as_slice()).collect();
        let tokens = self.encoder.forward(&ids).map_err(EmbedError::Local)?;
        let dimension = self.directory.shape.hidden_size;
        let mut rest = tokens.as_slice().unwrap_or_default();
        let pooled = batch.iter().map(|Input { ids, place }| {
            let (text, others) = rest.split_at(ids.len() * dimension);
            rest = others;
            let vector = self.directory.pooling.pool(text, dimension);
            let zero = || EmbedError::InvalidResponse("a vector has no direction".to_owned());
            Ok((*place, normalize(vector).ok_or_else(zero)?))
        });
        pooled.collect()
    }
}

/// The tokenizer's own message may hold the text.
fn not_split(_: tokenizers::Error) -> EmbedError {
    EmbedError::Local("a text can not be split into tokens".to_owned())
}

/// Texts in batches of at most [`TOKENS_PER_BATCH`], but at least one text each.
fn batches(inputs: Vec<Input>) -> Vec<Vec<Input>> {
    let mut batches: Vec<Vec<Input>> = Vec::new();
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

/// A name of the model itself: a directory may be moved or called anything, and what was stored with its model is still
/// found; another model in its place has another name.
fn name(directory: &ModelDirectory, weights: &[u8]) -> String {
    let ModelDirectory { model_type, shape, pooling, .. } = directory;
    let hash: String = Sha256::digest(weights).iter().map(|byte| format!("{byte:02x}")).collect();
    let (layers, hidden, pooling) = (shape.num_hidden_layers, shape.hidden_size, pooling.name());
    format!("{model_type}-{layers}x{hidden}-{pooling}-{}", &hash[..HASH_LETTERS])
}

/// The tokenizer, with the directory's limit in place of its own and without padding, which batches are given later.
fn tokenizer(directory: &ModelDirectory) -> Result<Tokenizer, LocalModelError> {
    let path = &directory.tokenizer;
    let expected = "it should hold the fast tokenizer; where there is only vocab.txt, load the directory with \
                    sentence-transformers and save it again with save_pretrained";
    let mut tokenizer = Tokenizer::from_bytes(read(path, expected)?).map_err(|error| malformed(path, error))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| malformed(path, error))?;
    let special = tokenizer.encode_fast("", true).map_err(|error| malformed(path, error))?.len();
    let max_tokens = directory.max_tokens;
    if special == 0 {
        return Err(malformed(path, "it adds no special tokens, which BERT's relatives need"));
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
