//! A tokenizer splits words of an unknown language into letters, and vectors of those mean little.

use std::collections::BTreeMap;

use tokenizers::{Encoding, ModelWrapper, Tokenizer};

/// For a known word of several pieces. WordPiece falls back to single letters for unknown words; other models fall back
/// to bytes, and have valid pieces of one letter for Chinese.
fn min_letters_per_piece(tokenizer: &Tokenizer) -> usize {
    match tokenizer.get_model() {
        ModelWrapper::WordPiece(_) => 2,
        _ => 1,
    }
}

/// The share of letters and digits in words of the vocabulary; 1 for a text without any.
pub(super) fn coverage(tokenizer: &Tokenizer, text: &str, encoding: &Encoding) -> f32 {
    #[derive(Default)]
    struct WordPieces {
        letters: usize,
        pieces: usize,
        is_unknown: bool,
    }
    let mut words: BTreeMap<u32, WordPieces> = BTreeMap::new();
    let tokens = encoding.get_tokens().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids());
    for ((token, (start, end)), word) in tokens {
        // Special tokens belong to no word.
        let Some(word) = word else { continue };
        let word = words.entry(*word).or_default();
        word.letters += text.get(*start..*end).unwrap_or_default().chars().filter(|c| c.is_alphanumeric()).count();
        word.pieces += 1;
        word.is_unknown |= matches!(token.as_str(), "[UNK]" | "<unk>");
    }
    let min_letters = min_letters_per_piece(tokenizer);
    let is_known =
        |word: &&WordPieces| !word.is_unknown && (word.pieces == 1 || word.letters >= min_letters * word.pieces);
    let total: usize = words.values().map(|word| word.letters).sum();
    let known: usize = words.values().filter(is_known).map(|word| word.letters).sum();
    if total == 0 { 1.0 } else { known as f32 / total as f32 }
}
