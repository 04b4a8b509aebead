//! The built-in embedder for demo mode and tests: feature hashing of words and character n-grams. Its vectors reflect
//! spelling, not meaning, and are the same on every machine.

use futures_util::future::BoxFuture;
use tokio::task::yield_now;
use unicode_segmentation::UnicodeSegmentation as _;

use super::{EmbedError, Embedder, EmbeddingModel, normalize};
use crate::language::is_han;

const DIMENSION: usize = 384;

const WORD_WEIGHT: f32 = 1.0;
const NGRAM_WEIGHT: f32 = 0.35;
const HAN_PAIR_WEIGHT: f32 = 0.8;
const HAN_WEIGHT: f32 = 0.3;

/// N-grams relate "eigenvalue" to "eigenvalues".
const NGRAM_LETTERS: usize = 4;

const STOP_WORDS: &[&str] = &[
    "a", "about", "am", "an", "and", "are", "as", "at", "be", "but", "by", "can", "did", "do", "does", "for", "from",
    "had", "has", "have", "he", "her", "his", "how", "i", "i'm", "if", "in", "is", "it", "its", "me", "my", "not",
    "of", "on", "or", "our", "she", "so", "that", "the", "their", "them", "they", "this", "to", "was", "we", "were",
    "what", "when", "where", "which", "who", "why", "will", "with", "you", "your",
];

#[derive(Debug)]
pub struct HashedEmbedder {
    model: EmbeddingModel,
}

impl HashedEmbedder {
    #[must_use]
    pub fn new() -> Self {
        Self { model: EmbeddingModel { name: "hashed-ngrams-1".to_owned(), dimension: DIMENSION } }
    }
}

impl Default for HashedEmbedder {
    fn default() -> Self {
        Self::new()
    }
}

impl Embedder for HashedEmbedder {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move {
            let mut vectors = Vec::with_capacity(texts.len());
            for text in texts {
                vectors.push(embed(text));
                // A text takes some milliseconds at most; a thousand would block the other tasks of this thread.
                yield_now().await;
            }
            Ok(vectors)
        })
    }
}

fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0.0; DIMENSION];
    let text = text.to_lowercase();
    let mut previous_han = None;
    for (at, word) in text.unicode_word_indices() {
        let mut letters = word.chars();
        if let (Some(c), None) = (letters.next(), letters.next())
            && is_han(c)
        {
            add(&mut vector, word, HAN_WEIGHT);
            if let Some(start) = previous_han.filter(|start| at - start <= 4) {
                add(&mut vector, &text[start..at + word.len()], HAN_PAIR_WEIGHT);
            }
            previous_han = Some(at);
            continue;
        }
        previous_han = None;
        if STOP_WORDS.binary_search(&word).is_ok() {
            continue;
        }
        add(&mut vector, word, WORD_WEIGHT);
        let ends: Vec<usize> = word.char_indices().map(|(at, _)| at).chain([word.len()]).collect();
        for ngram in ends.windows(NGRAM_LETTERS + 1) {
            add(&mut vector, &word[ngram[0]..ngram[NGRAM_LETTERS]], NGRAM_WEIGHT);
        }
    }
    normalize(vector).unwrap_or_else(|| {
        // Only punctuation or stop words: the whole text is the only feature.
        let mut vector = vec![0.0; DIMENSION];
        add(&mut vector, &text, WORD_WEIGHT);
        vector
    })
}

/// The hash gives index and sign, so that collisions cancel out on average.
fn add(vector: &mut [f32], feature: &str, weight: f32) {
    let hash = fnv1a(feature.as_bytes());
    let sign = if hash & 1 == 0 { 1.0 } else { -1.0 };
    vector[(hash >> 1) as usize % DIMENSION] += sign * weight;
}

/// 64-bit FNV-1a with a final mix, because its low bits are weak. The standard library's hash may change between
/// versions; stored vectors must not.
fn fnv1a(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(a: &str, b: &str) -> f32 {
        embed(a).iter().zip(embed(b)).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn stop_words_are_sorted() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn vector_of_any_text_has_length_one() {
        for text in ["", " ", "?!", "the", "linear algebra", "线性代数", "🎓"] {
            let length: f32 = embed(text).iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{text:?}");
        }
    }

    #[test]
    fn shared_words_bring_texts_nearer() {
        let memory = "I mix up eigenvalues and eigenvectors";
        assert!(cosine("what is an eigenvector?", memory) > cosine("how do plants grow?", memory) + 0.2);
        assert!(
            cosine("特征值怎么求", "我总是搞混特征值和特征向量")
                > cosine("今天天气怎么样", "我总是搞混特征值和特征向量") + 0.2
        );
    }
}
