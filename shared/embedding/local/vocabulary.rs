//! How much of a text a model has words for. A model that was never taught a language cuts its words to letters, and its
//! vectors of them mean next to nothing.

use std::collections::BTreeMap;

use tokenizers::{Encoding, ModelWrapper, Tokenizer};

/// Letters that the pieces of a known word have on average, at least. A word that is one piece is known in any case.
///
/// WordPiece falls back to single letters for what it does not know. Other models fall back to bytes, and have good pieces of
/// one letter for Chinese.
fn least_letters(tokenizer: &Tokenizer) -> usize {
    match tokenizer.get_model() {
        ModelWrapper::WordPiece(_) => 2,
        _ => 1,
    }
}

/// The share of a text's letters and digits that stand in words of the vocabulary, 0 to 1; 1 where there are none.
pub(super) fn known_share(tokenizer: &Tokenizer, text: &str, encoding: &Encoding) -> f32 {
    #[derive(Default)]
    struct Word {
        letters: usize,
        pieces: usize,
        unknown: bool,
    }
    let mut words: BTreeMap<u32, Word> = BTreeMap::new();
    let tokens = encoding.get_tokens().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids());
    for ((token, (start, end)), word) in tokens {
        // Special tokens are in no word.
        let Some(word) = word else { continue };
        let word = words.entry(*word).or_default();
        word.letters += text.get(*start..*end).unwrap_or_default().chars().filter(|c| c.is_alphanumeric()).count();
        word.pieces += 1;
        word.unknown |= matches!(token.as_str(), "[UNK]" | "<unk>");
    }
    let least = least_letters(tokenizer);
    let is_known = |word: &&Word| !word.unknown && (word.pieces == 1 || word.letters >= least * word.pieces);
    let all: usize = words.values().map(|word| word.letters).sum();
    let known: usize = words.values().filter(is_known).map(|word| word.letters).sum();
    if all == 0 { 1.0 } else { known as f32 / all as f32 }
}
