//! Splits a text into chunks, for a typewriter effect.

use unicode_segmentation::UnicodeSegmentation as _;

const CHUNK_GRAPHEMES: usize = 10;

/// Byte offsets. A grapheme cluster, such as an emoji or a letter with its accent, is never split.
pub(super) fn chunk_ends(text: &str) -> Vec<usize> {
    let mut ends: Vec<usize> = text.grapheme_indices(true).map(|(at, _)| at).step_by(CHUNK_GRAPHEMES).skip(1).collect();
    if !text.is_empty() {
        ends.push(text.len());
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &str) -> Vec<&str> {
        let mut from = 0;
        chunk_ends(text).into_iter().map(|end| &text[std::mem::replace(&mut from, end)..end]).collect()
    }

    #[test]
    fn chunks_join_to_the_text_without_split_graphemes() {
        let text = "家庭👨‍👩‍👧‍👦".repeat(7) + "e\u{301}tude";
        let chunks = chunks(&text);
        assert_eq!(chunks.concat(), text);
        let whole: Vec<_> = text.graphemes(true).collect();
        let pieces: Vec<_> = chunks.iter().flat_map(|chunk| chunk.graphemes(true)).collect();
        assert_eq!(pieces, whole);
        assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.graphemes(true).count() == CHUNK_GRAPHEMES));
    }

    #[test]
    fn empty_text_has_no_chunks() {
        assert!(chunk_ends("").is_empty());
    }
}
