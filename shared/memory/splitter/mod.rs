//! Splits plain text or Markdown into chunks for an embedding model: at headings, then at paragraphs, sentences,
//! spaces, and at last graphemes. Chunks do not overlap, so that one sentence is one hit.

mod markdown;

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation as _;

use self::markdown::{BlockKind, Blocks, MAX_TITLE_CHARS, line_end};

/// About 250 tokens. A Latin letter weighs 1 (four make a token), a character of any other script 2.
const TARGET_WEIGHT: usize = 1_000;

/// For a code block in one piece, or a heading with its paragraph. Also bounds the characters of a chunk.
const MAX_WEIGHT: usize = 1_600;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk<'a> {
    /// Outermost first, as in `Guide > Setup`; empty before the first heading.
    pub section: String,
    /// Verbatim, with its headings; never blank.
    pub text: &'a str,
}

/// Linear in time. All of the document but white space is in exactly one chunk, in order. ATX and setext headings open
/// sections, except within fenced code (`CommonMark` 0.31, sections 4.2, 4.3, 4.5; a setext heading is one line here,
/// so that a rule below a paragraph makes none). Headings without text stay with the next section.
pub(super) fn split(content: &str) -> Vec<TextChunk<'_>> {
    let content = content.strip_prefix('\u{FEFF}').unwrap_or(content);
    let mut splitter = Splitter { content, chunks: Vec::new(), path: Vec::new(), open: None };
    for block in Blocks::new(content) {
        match block.kind {
            BlockKind::Heading(level, title) => splitter.add_heading(block.start..block.end, level, title),
            BlockKind::Text => splitter.add_text(block.start..block.end, TARGET_WEIGHT, sentence_end),
            BlockKind::Code => splitter.add_text(block.start..block.end, MAX_WEIGHT, line_end),
        }
    }
    splitter.close();
    splitter.chunks
}

fn weight(text: &str) -> usize {
    text.chars().map(weight_of).sum()
}

fn weight_of(c: char) -> usize {
    if c < '\u{250}' { 1 } else { 2 }
}

struct OpenChunk {
    range: Range<usize>,
    weight: usize,
    has_only_headings: bool,
}

struct Splitter<'a> {
    content: &'a str,
    chunks: Vec<TextChunk<'a>>,
    path: Vec<(usize, String)>,
    open: Option<OpenChunk>,
}

impl Splitter<'_> {
    fn add_heading(&mut self, range: Range<usize>, level: usize, title: &str) {
        if self.open.as_ref().is_some_and(|open| !open.has_only_headings) {
            self.close();
        }
        // A heading longer than a chunk is split like other text.
        self.add_text(range, TARGET_WEIGHT, line_end);
        if let Some(open) = &mut self.open {
            open.has_only_headings = true;
        }
        self.path.retain(|(above, _)| *above < level);
        self.path.push((level, title.chars().take(MAX_TITLE_CHARS).collect()));
    }

    /// Whole if it weighs at most `max_weight`, else in the pieces that `piece_end` finds.
    fn add_text(&mut self, range: Range<usize>, max_weight: usize, piece_end: fn(&str) -> usize) {
        let Range { start, end } = range;
        let block_weight = weight(&self.content[start..end]);
        if block_weight <= max_weight {
            return self.add_piece(start..end, block_weight);
        }
        let mut at = start;
        while at < end {
            let piece = at + piece_end(&self.content[at..end]);
            while at < piece {
                let cut = at + hard_cut(&self.content[at..piece]);
                self.add_piece(at..cut, weight(&self.content[at..cut]));
                at = cut;
            }
        }
    }

    /// `piece_weight` is at most [`MAX_WEIGHT`].
    fn add_piece(&mut self, range: Range<usize>, piece_weight: usize) {
        if let Some(open) = &mut self.open {
            let gap = self.content.get(open.range.end..range.start).map_or(0, weight);
            let total = open.weight + gap + piece_weight;
            // To keep a heading with its text is worth a larger chunk.
            if total <= if open.has_only_headings { MAX_WEIGHT } else { TARGET_WEIGHT } {
                (open.range.end, open.weight, open.has_only_headings) = (range.end, total, false);
                return;
            }
            self.close();
        }
        self.open = Some(OpenChunk { range, weight: piece_weight, has_only_headings: false });
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        // The indentation of the first line stays: it belongs to a list or to code.
        let text = self.content[open.range].trim_start_matches(['\n', '\r']).trim_end();
        if !text.trim_start().is_empty() {
            let titles: Vec<&str> = self.path.iter().map(|(_, title)| title.as_str()).collect();
            self.chunks.push(TextChunk { section: titles.join(" > "), text });
        }
    }
}

/// Includes the white space after it. List items and table rows end sentences as well.
fn sentence_end(text: &str) -> usize {
    /// Stand after a full stop in the same sentence.
    const CLOSING: &str = ".!?。！？…\"')]”’」』）】》";
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let is_wide = matches!(c, '。' | '！' | '？' | '；' | '…' | '｡');
        if c == '\n'
            && chars.peek().is_some_and(|(_, next)| matches!(next, '-' | '*' | '+' | '•' | '|' | '>' | '0'..='9'))
        {
            return at + 1;
        }
        if !is_wide && !matches!(c, '.' | '!' | '?') {
            continue;
        }
        while chars.next_if(|(_, next)| CLOSING.contains(*next)).is_some() {}
        let end = chars.peek().map_or(text.len(), |(next, _)| *next);
        let mut has_space = false;
        while chars.next_if(|(_, next)| next.is_whitespace()).is_some() {
            has_space = true;
        }
        let Some(&(next_at, next)) = chars.peek() else { return text.len() };
        // "3.14", "example.com", "e.g. this" and "Dr. No" go on.
        if is_wide
            || (has_space && !next.is_lowercase() && !(c == '.' && end == at + 1 && is_abbreviation(&text[..at])))
        {
            return next_at;
        }
    }
    text.len()
}

/// A title or a single capital letter before a full stop most likely ends no sentence.
fn is_abbreviation(text: &str) -> bool {
    // No abbreviation is longer; without the bound, the whole splitter would take quadratic time.
    let near = text.ceil_char_boundary(text.len().saturating_sub(8));
    let word = text[near..].rsplit(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    matches!(word, "Mr" | "Mrs" | "Ms" | "Dr" | "Prof" | "St" | "Mt" | "Jr" | "Sr" | "No" | "Fig" | "vs")
        || word.len() == 1 && word.bytes().all(|b| b.is_ascii_uppercase() && b != b'I')
}

/// All of the piece if it fits; else up to a space in the second half, a grapheme, or a character.
fn hard_cut(piece: &str) -> usize {
    let mut sum = 0;
    let mut chars = piece.char_indices();
    let Some((full, over)) = chars.find(|(_, c)| {
        sum += weight_of(*c);
        sum > TARGET_WEIGHT
    }) else {
        return piece.len();
    };
    let space = piece[..full].char_indices().rfind(|(_, c)| c.is_whitespace()).map_or(0, |(at, c)| at + c.len_utf8());
    if space > full / 2 {
        return space;
    }
    let window = &piece[..full + over.len_utf8()];
    window.grapheme_indices(true).next_back().map(|(at, _)| at).filter(|at| *at > 0).unwrap_or(full)
}

#[cfg(test)]
mod tests;
