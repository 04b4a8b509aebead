//! Cuts a document, plain text or Markdown, into chunks that an embedding model sees whole.
//!
//! Chunks end at headings; in a section at the ends of paragraphs; in a long paragraph at the ends of sentences; in a
//! long sentence at a space; and where there is none, between graphemes. They do not overlap, so that one sentence is
//! one hit; what a chunk belongs to is told by its section.

mod markdown;

use unicode_segmentation::UnicodeSegmentation as _;

use self::markdown::{BlockKind, Blocks};

/// Weight at which a chunk is full, about 250 tokens, which a model with a window of 256 sees whole. A Latin letter
/// weighs 1 (four make a token) and a character of any other script 2: 1,000 Latin or 500 Chinese characters.
const TARGET: usize = 1_000;

/// Most weight of a chunk: of a code block that stays in one piece, and of a heading with its paragraph. A character
/// weighs at least 1, so no chunk has more characters.
const LIMIT: usize = 1_600;

/// Most characters of a heading in a section's path.
const MAX_TITLE: usize = 120;

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk<'a> {
    /// The headings above it, outermost first, as in `Guide > Setup`; empty before the first heading.
    pub section: String,
    /// The text as it stands in the document, with its headings; never blank.
    pub text: &'a str,
}

/// Cuts a document into chunks of at most 1,600 characters each, in time linear in its length.
///
/// All of the document but white space is in exactly one chunk, in order. ATX and setext headings open sections,
/// except within fenced code (`CommonMark` 0.31, sections 4.2, 4.3, 4.5; a setext heading is one line here, so that a
/// rule below a paragraph makes none). Headings without a text of their own stay with what follows.
#[must_use]
pub fn split(content: &str) -> Vec<TextChunk<'_>> {
    let content = content.strip_prefix('\u{FEFF}').unwrap_or(content);
    let mut splitter = Splitter { content, chunks: Vec::new(), path: Vec::new(), open: None };
    for block in Blocks::of(content) {
        match block.kind {
            BlockKind::Heading(level, title) => splitter.heading(block.start, block.end, level, title),
            BlockKind::Text => splitter.text(block.start, block.end, TARGET, sentence_end),
            BlockKind::Code => splitter.text(block.start, block.end, LIMIT, line_end),
        }
    }
    splitter.close();
    splitter.chunks
}

/// How much of a model's window a text takes; see [`TARGET`].
fn weight(text: &str) -> usize {
    text.chars().map(weight_of).sum()
}

fn weight_of(c: char) -> usize {
    if c < '\u{250}' { 1 } else { 2 }
}

/// The chunk at hand: a range of the content.
struct Open {
    start: usize,
    end: usize,
    weight: usize,
    /// Whether there is nothing but headings in it yet.
    headings_only: bool,
}

struct Splitter<'a> {
    content: &'a str,
    chunks: Vec<TextChunk<'a>>,
    /// The headings above the text at hand, with their levels.
    path: Vec<(usize, String)>,
    open: Option<Open>,
}

impl Splitter<'_> {
    fn heading(&mut self, start: usize, end: usize, level: usize, title: &str) {
        if self.open.as_ref().is_some_and(|open| !open.headings_only) {
            self.close();
        }
        // Text of a heading longer than a chunk is cut like any other.
        self.text(start, end, TARGET, line_end);
        if let Some(open) = &mut self.open {
            open.headings_only = true;
        }
        self.path.retain(|(above, _)| *above < level);
        self.path.push((level, title.chars().take(MAX_TITLE).collect()));
    }

    /// Adds a block: whole if it weighs at most `whole`, else in the pieces that `piece_end` finds.
    fn text(&mut self, start: usize, end: usize, whole: usize, piece_end: fn(&str) -> usize) {
        let weight_of_block = weight(&self.content[start..end]);
        if weight_of_block <= whole {
            return self.piece(start, end, weight_of_block);
        }
        let mut at = start;
        while at < end {
            let piece = at + piece_end(&self.content[at..end]);
            while at < piece {
                let cut = at + hard_cut(&self.content[at..piece]);
                self.piece(at, cut, weight(&self.content[at..cut]));
                at = cut;
            }
        }
    }

    /// Adds a piece that weighs at most [`LIMIT`] to the chunk at hand, or opens a new one.
    fn piece(&mut self, start: usize, end: usize, weight_of_piece: usize) {
        if let Some(open) = &mut self.open {
            let gap = if open.end < start { weight(&self.content[open.end..start]) } else { 0 };
            let total = open.weight + gap + weight_of_piece;
            // A heading is worth more with its text than a chunk of the exact size.
            if total <= if open.headings_only { LIMIT } else { TARGET } {
                (open.end, open.weight, open.headings_only) = (end, total, false);
                return;
            }
            self.close();
        }
        self.open = Some(Open { start, end, weight: weight_of_piece, headings_only: false });
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        // The indentation of a first line is kept: it belongs to a list or to code.
        let text = self.content[open.start..open.end].trim_start_matches(['\n', '\r']).trim_end();
        if !text.trim_start().is_empty() {
            let titles: Vec<&str> = self.path.iter().map(|(_, title)| title.as_str()).collect();
            self.chunks.push(TextChunk { section: titles.join(" > "), text });
        }
    }
}

/// The end of the first line.
fn line_end(text: &str) -> usize {
    text.find('\n').map_or(text.len(), |at| at + 1)
}

/// The end of the first sentence with the white space after it; an item of a list or a row of a table ends one as well.
fn sentence_end(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let wide = matches!(c, '。' | '！' | '？' | '；' | '…' | '｡');
        if c == '\n'
            && chars.peek().is_some_and(|(_, next)| matches!(next, '-' | '*' | '+' | '•' | '|' | '>' | '0'..='9'))
        {
            return at + 1;
        }
        if !wide && !matches!(c, '.' | '!' | '?') {
            continue;
        }
        let closes = |c: char| {
            matches!(
                c,
                '.' | '!'
                    | '?'
                    | '。'
                    | '！'
                    | '？'
                    | '…'
                    | '"'
                    | '\''
                    | ')'
                    | ']'
                    | '”'
                    | '’'
                    | '」'
                    | '』'
                    | '）'
                    | '】'
                    | '》'
            )
        };
        while chars.next_if(|(_, next)| closes(*next)).is_some() {}
        let end = chars.peek().map_or(text.len(), |(next, _)| *next);
        let mut spaced = false;
        while chars.next_if(|(_, next)| next.is_whitespace()).is_some() {
            spaced = true;
        }
        let Some(&(next_at, next)) = chars.peek() else { return text.len() };
        // "3.14", "example.com", "e.g. this" and "Dr. No" go on.
        if wide || (spaced && !next.is_lowercase() && !(c == '.' && end == at + 1 && is_abbreviation(&text[..at]))) {
            return next_at;
        }
    }
    text.len()
}

/// Whether a full stop after this text most likely ends no sentence: after a title, or a single capital letter.
fn is_abbreviation(text: &str) -> bool {
    // No abbreviation is longer, and looking back further would cost the length of the text at each full stop.
    let near = text.ceil_char_boundary(text.len().saturating_sub(8));
    let word = text[near..].rsplit(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    matches!(word, "Mr" | "Mrs" | "Ms" | "Dr" | "Prof" | "St" | "Mt" | "Jr" | "Sr" | "No" | "Fig" | "vs")
        || word.len() == 1 && word.bytes().all(|b| b.is_ascii_uppercase() && b != b'I')
}

/// How much of a piece goes into one chunk: all that weighs at most [`TARGET`]; else up to a space, if one is in the
/// second half; else up to a grapheme; and if that weighs more than a chunk, up to a character.
fn hard_cut(piece: &str) -> usize {
    let mut sum = 0;
    let mut chars = piece.char_indices();
    let Some((full, over)) = chars.find(|(_, c)| {
        sum += weight_of(*c);
        sum > TARGET
    }) else {
        return piece.len();
    };
    let space = piece[..full].char_indices().rfind(|(_, c)| c.is_whitespace()).map_or(0, |(at, c)| at + c.len_utf8());
    if space > full / 2 {
        return space;
    }
    // With the first character that is too much: the grapheme that it is in begins where the cut is.
    let window = &piece[..full + over.len_utf8()];
    window.grapheme_indices(true).next_back().map(|(at, _)| at).filter(|at| *at > 0).unwrap_or(full)
}

#[cfg(test)]
mod tests;
