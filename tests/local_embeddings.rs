//! Vectors of all-MiniLM-L6-v2 against the reference library.

#![cfg(feature = "local-embeddings")]
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::path::PathBuf;

use agent_service::embedding::{Embedder as _, LocalEmbedder};
use serde::Deserialize;

/// `SentenceTransformer.encode` of all-MiniLM-L6-v2.
const GOLDEN: &str = include_str!("golden/all_minilm_l6_v2.json");

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    text: String,
    /// Repetitions of `text`, which keep the file small.
    times: usize,
    /// A signed byte for each dimension, in hexadecimal. The scale does not affect the cosine.
    vector: String,
}

impl Reference {
    fn vector(&self) -> Vec<f32> {
        let byte = |at: usize| u8::from_str_radix(&self.vector[at..at + 2], 16).unwrap().cast_signed();
        (0..self.vector.len()).step_by(2).map(|at| f32::from(byte(at))).collect()
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    assert_eq!(a.len(), b.len());
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

fn model() -> LocalEmbedder {
    let dir = std::env::var_os("EMBEDDING_MODEL_DIR").unwrap_or_default();
    LocalEmbedder::load(&PathBuf::from(dir)).unwrap()
}

#[tokio::test]
#[ignore = "needs the weights of all-MiniLM-L6-v2 in EMBEDDING_MODEL_DIR"]
async fn minilm_vectors_match_sentence_transformers() {
    let embedder = model();
    assert_eq!(embedder.model().dimension, 384);
    let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
    let texts: Vec<String> = golden.texts.iter().map(|reference| reference.text.repeat(reference.times)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = embedder.embed(&texts).await.unwrap();
    for ((text, reference), vector) in texts.iter().zip(&golden.texts).zip(&together) {
        let found = cosine(vector, &reference.vector());
        assert!(found >= 0.999, "cosine {found} for {text:.60?}");
        let alone = embedder.embed(&[text]).await.unwrap();
        let found = cosine(vector, &alone[0]);
        assert!(found >= 0.999_99, "cosine {found} between {text:.60?} alone and in a batch");
    }
}

#[tokio::test]
#[ignore = "needs the weights of all-MiniLM-L6-v2 in EMBEDDING_MODEL_DIR"]
async fn minilm_vocabulary_covers_english_only() {
    let embedder = model();
    for (text, least, most) in [
        ("What did I find hard in linear algebra?", 0.99, 1.0),
        ("eigenvalues and GPT-4", 0.8, 1.0),
        ("", 1.0, 1.0),
        ("?!", 1.0, 1.0),
        ("我总是搞混特征值和特征向量", 0.0, 0.4),
        ("Что такое собственные значения матрицы?", 0.0, 0.2),
        ("What is 特征值 in English?", 0.6, 0.95),
    ] {
        let query = embedder.embed_query(text).await.unwrap();
        assert!((least..=most).contains(&query.vocabulary_coverage), "{text}: {}", query.vocabulary_coverage);
        assert_eq!(query.vector, embedder.embed(&[text]).await.unwrap()[0], "{text}");
    }
}
