//! Removes quoted speech. A short quotation that is no sentence of a first person is a title or a term, and stays.

use std::sync::LazyLock;

use regex::Regex;

use super::{count_steps, cut};
use crate::language;

/// In characters. A longer quotation is speech rather than a title or a term.
const MAX_QUOTED_TERM: usize = 30;
const MAX_QUOTED_CHINESE_TERM: usize = 14;

/// Apostrophes and inline code: single marks count only at the bounds of words.
pub(super) static INLINE_QUOTATION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = concat!(
        r"`[^`\n]+`|\B`[^`]+`|(?:^|[\s(:：])'[^']+(?:'\p{L}[^']*)*'(?:$|[\s).,!?，。！？])",
        r"|‘[^’]+(?:’\p{L}[^’]*)*’(?:$|[\s).,!?，。！？])",
    );
    Regex::new(pattern).ok()
});

/// A quotation with one of these words is speech.
pub(super) static FIRST_PERSON: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(?:i|i'm|i’m|my|me|you|your|user|users|assistant|we|our)\b|我|你|您|咱|用户|助手").ok()
});

struct Quotation {
    start: usize,
    end: usize,
    is_speech: bool,
}

/// Quoted text may contain quotation marks itself. So if there is speech, all from its beginning to the end of the last
/// quotation is removed, and an open quotation extends to the end.
pub(super) fn remove_speech(text: &str) -> String {
    // Fails closed: without its pattern, which a test excludes, nothing counts as the user's own.
    let Some(inline) = INLINE_QUOTATION.as_ref() else { return String::new() };
    let text = cut(text, inline.find_iter(text).filter(|found| is_speech(found.as_str())).map(|found| found.range()));
    let quotations = quotations(&text);
    let Some(first) = quotations.iter().find(|quotation| quotation.is_speech) else { return text };
    let end = quotations.last().map_or(first.end, |last| last.end);
    cut(&text, std::iter::once(first.start..end))
}

fn is_speech(quotation: &str) -> bool {
    count_steps(quotation.len());
    let max_chars = if quotation.chars().any(language::is_han) { MAX_QUOTED_CHINESE_TERM } else { MAX_QUOTED_TERM };
    quotation.chars().count() > max_chars + 2 || FIRST_PERSON.as_ref().is_none_or(|person| person.is_match(quotation))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MarkRole {
    Open,
    Close,
    /// Between two letters, as in Chinese text with straight marks.
    Either,
}

/// The first mark of each pair; a straight mark is both.
const OPENING: [char; 8] = ['"', '“', '「', '『', '«', '《', '‹', '〝'];

/// Outermost quotations, in order. A mark that closes nothing ends a quotation that began with the first mark of all.
fn quotations(text: &str) -> Vec<Quotation> {
    let mut found: Vec<Quotation> = Vec::new();
    let mut open: Vec<(usize, usize)> = Vec::new();
    // Of each pair, so that a mark that closes nothing is known without a search: a message may open thousands.
    let mut open_count = [0_usize; OPENING.len()];
    let mut before = ' ';
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let after = chars.peek().map_or(' ', |(_, next)| *next);
        if let Some((pair, role)) = role(c, before, after) {
            let is_open = open_count[pair] > 0;
            if role == MarkRole::Open || role == MarkRole::Either && !is_open {
                open.push((pair, at));
                open_count[pair] += 1;
            } else if is_open {
                let mut start = at;
                while let Some((inner, inner_start)) = open.pop() {
                    count_steps(1);
                    open_count[inner] -= 1;
                    start = inner_start;
                    if inner == pair {
                        break;
                    }
                }
                if open.is_empty() {
                    let end = at + c.len_utf8();
                    found.push(Quotation { start, end, is_speech: is_speech(&text[start..end]) });
                }
            } else if open.is_empty()
                && let Some(first) = found.first()
            {
                found = vec![Quotation { start: first.start, end: at + c.len_utf8(), is_speech: true }];
            }
        }
        before = c;
    }
    if let Some((_, start)) = open.first() {
        found.push(Quotation { start: *start, end: text.len(), is_speech: true });
    }
    found
}

/// The index of the pair in [`OPENING`], and what the mark does between these two characters.
fn role(c: char, before: char, after: char) -> Option<(usize, MarkRole)> {
    const CLOSING: [char; OPENING.len()] = ['＂', '”', '」', '』', '»', '》', '›', '〞'];
    if matches!(c, '"' | '＂') {
        // An inch, or a second of arc.
        if before.is_ascii_digit() && !after.is_alphanumeric() {
            return None;
        }
        let role = match (before.is_alphanumeric(), after.is_alphanumeric()) {
            (false, true) => MarkRole::Open,
            (true, false) => MarkRole::Close,
            (true, true) => MarkRole::Either,
            (false, false) => match (before.is_whitespace(), after.is_whitespace()) {
                (true, false) => MarkRole::Open,
                (false, true) => MarkRole::Close,
                _ => MarkRole::Either,
            },
        };
        return Some((0, role));
    }
    let position = |marks: &[char]| marks.iter().position(|mark| *mark == c);
    let opens = position(&OPENING).map(|pair| (pair, MarkRole::Open));
    opens.or_else(|| position(&CLOSING).map(|pair| (pair, MarkRole::Close)))
}
