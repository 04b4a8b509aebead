//! Bounds what one request adds to the memory. It is counted before any work begins: a request within the budgets succeeds, and one
//! beyond them always fails.
//!
//! The inverted index has a posting for each distinct term of a memory, so terms, not bytes, are what a write costs.

use super::{MemoryError, NewMemory, index_input::IndexInput};
use crate::error::{InvalidArgument, Problem};

/// Distinct terms of one memory. A text of 64,000 bytes has more only if hardly any word or pair of characters repeats.
pub const MAX_MEMORY_TERMS: usize = 16_000;
/// Distinct terms of each memory or chunk of a request, added up.
pub const MAX_REQUEST_TERMS: usize = 500_000;
/// Of a document.
pub const MAX_DOCUMENT_CHUNKS: usize = 20_000;
/// Tags and metadata of a document, which are stored with each of its chunks: bytes of all of them.
pub(super) const MAX_LABEL_BYTES: usize = 20_000_000;
/// Stored turns are indexed again where a turn is written before them: bytes of those that one request may affect.
pub(super) const MAX_FOLLOWING_BYTES: usize = 500_000;

/// A byte has at most two terms, and a spelled date at most 50. So a request of so few bytes is within the budgets.
const MAX_UNCOUNTED_BYTES: usize = MAX_MEMORY_TERMS / 2 - 50;
/// Longer requests are counted beside the tasks of the runtime.
const MAX_INLINE_BYTES: usize = 32_000;

/// The terms that a memory has in the index, without those of the turns before it.
#[must_use]
pub fn count_terms(content: &str, speaker: &str) -> usize {
    IndexInput { content, speaker, ..IndexInput::default() }.terms().frequencies.len()
}

pub(super) async fn check_memories(memories: Vec<NewMemory>) -> Result<Vec<NewMemory>, MemoryError> {
    let bytes: usize = memories.iter().map(indexed_bytes).sum();
    if bytes <= MAX_UNCOUNTED_BYTES {
        return Ok(memories);
    }
    if bytes <= MAX_INLINE_BYTES {
        count_memories(&memories)?;
        return Ok(memories);
    }
    let counted = tokio::task::spawn_blocking(move || count_memories(&memories).map(|()| memories));
    Ok(counted.await.map_err(|_| MemoryError::Internal)??)
}

fn indexed_bytes(memory: &NewMemory) -> usize {
    memory.content.len() + memory.speaker().len()
}

fn count_memories(memories: &[NewMemory]) -> Result<(), InvalidArgument> {
    let mut request = RequestTerms::new(memories.iter().map(indexed_bytes).sum());
    for (index, memory) in memories.iter().enumerate() {
        let terms = count_terms(&memory.content, memory.speaker());
        check_memory_terms(&format!("memories[{index}].content"), terms)?;
        request.add("memories", terms, indexed_bytes(memory))?;
    }
    Ok(())
}

/// For the content of one memory.
pub(super) fn check_memory(field: &str, content: &str) -> Result<(), InvalidArgument> {
    check_memory_terms(field, count_terms(content, ""))
}

fn check_memory_terms(field: &str, terms: usize) -> Result<(), InvalidArgument> {
    if terms > MAX_MEMORY_TERMS {
        let problem = Problem::TooManyTermsInMemory { found: terms, limit: MAX_MEMORY_TERMS };
        return Err(InvalidArgument::new(field, problem));
    }
    Ok(())
}

/// The beginning of a text, with as many terms as a memory may have.
pub(crate) fn truncate_to_terms(mut text: &str) -> &str {
    // A term has two bytes at least.
    while text.len() > 2 * MAX_MEMORY_TERMS && count_terms(text, "") > MAX_MEMORY_TERMS / 8 * 7 {
        text = &text[..text.floor_char_boundary(text.len() / 8 * 7)];
    }
    text
}

/// Adds up the terms of a request, and stops where they are too many: the rest is estimated by its bytes.
pub(super) struct RequestTerms {
    terms: usize,
    bytes: usize,
    all_bytes: usize,
}

impl RequestTerms {
    pub(super) fn new(all_bytes: usize) -> Self {
        Self { terms: 0, bytes: 0, all_bytes }
    }

    pub(super) fn add(&mut self, field: &str, terms: usize, bytes: usize) -> Result<(), InvalidArgument> {
        self.terms += terms;
        self.bytes += bytes;
        if self.terms <= MAX_REQUEST_TERMS {
            return Ok(());
        }
        let found = self.terms.saturating_mul(self.all_bytes.max(self.bytes)) / self.bytes.max(1);
        Err(InvalidArgument::new(field, Problem::TooManyTerms { found, limit: MAX_REQUEST_TERMS }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Metadata;

    /// Words of five letters, all different.
    fn words(from: usize, count: usize) -> String {
        let word = |number: usize| {
            let letters =
                (0..5).map(|place| char::from(b'a' + u8::try_from(number / 26_usize.pow(place) % 26).unwrap()));
            // No two consonants and vowels that a stemmer would cut.
            letters.chain("zq".chars()).collect::<String>()
        };
        (from..from + count).map(word).collect::<Vec<_>>().join(" ")
    }

    fn memory(content: String) -> NewMemory {
        NewMemory {
            id: None,
            content,
            source_type: "note".to_owned(),
            tags: Vec::new(),
            created_at: None,
            metadata: Metadata::new(),
            supersedes: Vec::new(),
        }
    }

    #[tokio::test]
    async fn request_beyond_a_budget_is_refused_with_its_figures() {
        let memories: Vec<_> = (0..250).map(|number| memory(words(number * 8_000, 8_000))).collect();
        let Err(MemoryError::Invalid(error)) = check_memories(memories.clone()).await else { panic!("not refused") };
        let Problem::TooManyTerms { found, limit: MAX_REQUEST_TERMS } = error.problem else { panic!("{error}") };
        // Five terms are of the date.
        assert!((1_990_000..=2_010_000).contains(&found), "{found}");
        assert_eq!(error.field, "memories");
        let fitting: Vec<_> = memories.into_iter().take(62).collect();
        assert_eq!(check_memories(fitting).await.unwrap().len(), 62);
    }

    #[tokio::test]
    async fn memory_with_too_many_terms_is_named() {
        let pairs: String = ('\u{4E00}'..).take(MAX_MEMORY_TERMS + 2).collect();
        for (content, is_refused) in [(pairs.clone(), true), ("数学".repeat(10_000), false)] {
            let checked = check_memories(vec![memory("fine".to_owned()), memory(content)]).await;
            match checked {
                Err(MemoryError::Invalid(error)) if is_refused => assert_eq!(error.field, "memories[1].content"),
                checked => assert!(checked.is_ok() && !is_refused),
            }
        }
        let truncated = truncate_to_terms(&pairs);
        assert!(pairs.starts_with(truncated) && truncated.len() > pairs.len() / 2);
        check_memory("content", truncated).unwrap();
    }

    #[test]
    fn text_has_at_most_two_terms_a_byte() {
        // Compatibility characters become up to 18 others, and joiners between parts add the whole.
        let contexts: [fn(char) -> String; 4] =
            [|c| c.to_string(), |c| format!("{c}{c}"), |c| format!("\u{4E00}{c}"), |c| format!("a1{c}")];
        for c in '\u{1}'..='\u{2FFFF}' {
            for context in contexts {
                let text = context(c);
                let terms = crate::memory::tokenizer::terms(&text).len();
                assert!(terms <= 2 * text.len(), "{text:?} has {terms} terms");
            }
        }
    }

    #[tokio::test]
    async fn long_speakers_are_counted_beside_the_runtime() {
        let mut of_speaker = memory("hello".to_owned());
        of_speaker.metadata.insert("speaker".to_owned(), "kat ".repeat(16_000));
        let mut checked = Box::pin(check_memories(vec![of_speaker]));
        assert!(futures_util::poll!(&mut checked).is_pending(), "counted within the first poll");
        checked.await.unwrap();
    }

    #[tokio::test]
    async fn terms_of_the_speaker_count() {
        let mut of_speaker = memory("hello".to_owned());
        let pairs: String = ('\u{4E00}'..).take(MAX_MEMORY_TERMS + 2).collect();
        of_speaker.metadata.insert("speaker".to_owned(), pairs);
        assert!(matches!(check_memories(vec![of_speaker]).await, Err(MemoryError::Invalid(_))));
    }
}
