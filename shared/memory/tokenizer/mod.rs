//! Text to search terms, for stored texts and queries alike.
//!
//! A text is normalised (NFKC, no accents, no case), cut into words (UAX #29), and each word into the spellings that
//! it may be looked for by. English is stemmed and loses its function words. Scripts written without spaces become
//! overlapping pairs of characters, which needs no dictionary: 高等数学 is 高等, 等数, 数学.
//!
//! The tokeniser knows no synonyms, no inflection of other languages, and does not keep the order of words.

mod english;

use std::mem;

use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};
use unicode_segmentation::UnicodeSegmentation as _;

use crate::language;

/// Which rules made a term. Terms of different versions may not match: a new version re-indexes what is stored.
pub const VERSION: i32 = 1;

/// Most bytes of a term. Longer ones are cut, in texts and queries alike.
pub const MAX_TERM_BYTES: usize = 64;

/// A compound of more parts is a hash or the like, whose single letters and digits tell nothing.
const MAX_PARTS: usize = 8;

/// The search terms of a text in the order of their appearance, with repeats.
///
/// A compound gives the term of the whole, without its joiners, and those of its parts: `GPT-4` and `GPT4` are both
/// `gpt4`, `gpt`, `4`, and the query `gpt 4` finds them by their parts. Numbers alone make no whole: `2023-05-08` is
/// `2023`, `05`, `08`. A text of nothing but function words keeps them, any other loses them; so does a query, and
/// one of only function words finds the texts of only function words.
///
/// No term is empty or longer than [`MAX_TERM_BYTES`]. Texts that are equal under NFKC have equal terms.
#[must_use]
pub fn terms(text: &str) -> Vec<String> {
    let text = normalised(text);
    let mut scan = Scan::default();
    let mut before = ' ';
    for segment in text.split_word_bounds() {
        if segment.contains(char::is_alphanumeric) {
            scan.word(segment);
        } else {
            scan.separator(segment, before);
        }
        before = segment.chars().next_back().unwrap_or(' ');
    }
    scan.finish()
}

/// The text in NFKC, without accents, so that "résumé" is found by "resume" (and й by и), with the plain apostrophe for
/// the typographic one, and without characters that only steer the layout.
fn normalised(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let is_accent = |c: &char| matches!(c, '\u{300}'..='\u{36F}');
    let plain = |c| if matches!(c, '\u{2019}' | '\u{2018}' | '\u{2BC}') { '\'' } else { c };
    let is_layout = |c: &char| matches!(c, '\u{AD}' | '\u{200C}' | '\u{200D}' | '\u{2060}' | '\u{FEFF}');
    text.nfkd().filter(|c| !is_accent(c) && !is_layout(c)).map(plain).nfc().collect()
}

/// Without case, as in Unicode's full case folding: by way of the upper case, ß meets SS and ς meets σ. It is made of
/// the standard library's mappings, so no table of a further crate can be of another Unicode version.
fn folded(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    text.chars().flat_map(char::to_lowercase).flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Whether a character is of a script that puts no space between words, or, as Hangul, adds its endings to them:
/// Han, Kana, Bopomofo, Hangul, Thai, Lao, Burmese, Khmer.
fn is_unspaced(c: char) -> bool {
    language::is_han(c)
        || (c.is_alphanumeric()
            && matches!(c, '\u{3005}'..='\u{3007}' | '\u{3041}'..='\u{318F}' | '\u{31A0}'..='\u{31FF}'
                | '\u{AC00}'..='\u{D7FB}' | '\u{1100}'..='\u{11FF}' | '\u{A960}'..='\u{A97C}'
                | '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}'))
}

/// What is known between two segments.
#[derive(Default)]
struct Scan {
    terms: Vec<String>,
    function_words: Vec<String>,
    /// Characters of a script without spaces, in sequence.
    run: String,
    /// The parts of the compound at hand, without case.
    parts: Vec<String>,
    /// Whether a joiner stands after the compound, so that it goes on with the next word.
    joined: bool,
    /// `+`, `++` or `#` directly after the compound, as in `C++`.
    suffix: String,
    /// Whether only a full stop stands before the compound, as in `.NET`.
    dotted: bool,
}

impl Scan {
    /// Takes a segment without letters and digits, and the character before it.
    fn separator(&mut self, segment: &str, before: char) {
        self.flush_run();
        match segment {
            "+" | "#" if !self.parts.is_empty() && !self.joined => self.suffix.push_str(segment),
            "-" | "\u{2010}" | "_" | "." | "@" | "&"
                if !self.parts.is_empty() && !self.joined && self.suffix.is_empty() =>
            {
                self.joined = true;
            }
            _ => {
                self.flush_compound();
                self.dotted = segment == "." && !before.is_alphanumeric() && before != '.';
            }
        }
    }

    /// Takes a segment with letters or digits.
    fn word(&mut self, segment: &str) {
        let first = segment.chars().next().unwrap_or(' ');
        if !mem::take(&mut self.joined) && !self.parts.is_empty() {
            // "C++17" and "C++的" name the language, "a+b" is a sum.
            if !(is_unspaced(first) || self.suffix == "++" && first.is_numeric()) {
                self.suffix.clear();
            }
            self.flush_compound();
        }
        if segment.contains('\'') {
            let plain = folded(segment).replace('\'', "");
            if english::is_function_word(&plain) {
                self.flush_run();
                self.flush_compound();
                self.push(plain);
                return;
            }
        }
        self.pieces(english::without_clitic(segment));
    }

    /// Cuts a segment where the script changes, at joiners, at the humps of camelCase, and between letters and digits.
    fn pieces(&mut self, mut rest: &str) {
        let mut after_number = false;
        while let Some(c) = rest.chars().next() {
            let mut end = c.len_utf8();
            if is_unspaced(c) {
                self.flush_compound();
                self.run.push(c);
            } else {
                self.flush_run();
                if c.is_numeric() {
                    end = number_end(rest);
                    self.number(&rest[..end]);
                } else if c.is_alphabetic() {
                    end = letters_end(rest);
                    let letters = folded(&rest[..end]);
                    // "8th" is the number, as in a date, and "1990s" the decade.
                    if !(after_number && matches!(letters.as_str(), "st" | "nd" | "rd" | "th" | "s")) {
                        self.parts.push(letters);
                    }
                } else if !matches!(c, '.' | '_' | '\'') {
                    self.flush_compound();
                }
            }
            after_number = c.is_numeric();
            rest = &rest[end..];
        }
    }

    /// Takes digits with full stops, commas and apostrophes between them: `1,000` is 1000, `3.14` stays, and in
    /// `1.2.3` or `1,2` are several numbers.
    fn number(&mut self, text: &str) {
        let grouped = text.split('.').next().unwrap_or(text).split([',', '\'']).skip(1).all(|group| group.len() == 3);
        let text = if grouped { text.replace([',', '\''], "") } else { text.to_owned() };
        for number in text.split([',', '\'']) {
            if number.matches('.').count() == 1 {
                self.parts.push(number.to_owned());
            } else {
                self.parts.extend(number.split('.').map(str::to_owned));
            }
        }
    }

    fn flush_run(&mut self) {
        let run = mem::take(&mut self.run);
        let mut last = None;
        for (at, c) in run.char_indices() {
            if let Some(start) = last.replace(at) {
                self.terms.push(run[start..at + c.len_utf8()].to_owned());
            }
        }
        if last == Some(0) {
            self.terms.push(run);
        }
    }

    fn flush_compound(&mut self) {
        let mut parts = mem::take(&mut self.parts);
        let suffix = mem::take(&mut self.suffix);
        let dotted = mem::take(&mut self.dotted);
        self.joined = false;
        if let [word] = parts.as_slice() {
            if word.ends_with(char::is_alphabetic) && matches!(suffix.as_str(), "+" | "++" | "#") {
                self.push(format!("{word}{suffix}"));
                // The C of C++ would find vitamins.
                if word.chars().nth(1).is_none() {
                    return;
                }
            } else if dotted && word.starts_with(char::is_alphabetic) {
                self.push(format!(".{word}"));
            }
        } else if parts.iter().any(|part| part.contains(char::is_alphabetic)) {
            self.push(parts.concat());
            if parts.len() > MAX_PARTS {
                parts.retain(|part| part.len() >= 3);
            }
        }
        for part in parts {
            self.push(part);
        }
    }

    fn push(&mut self, mut word: String) {
        word.truncate(word.floor_char_boundary(MAX_TERM_BYTES));
        if english::is_function_word(&word) {
            self.function_words.push(word);
        } else {
            self.terms.push(english::stem(&word).into_owned());
        }
    }

    fn finish(mut self) -> Vec<String> {
        self.flush_run();
        self.flush_compound();
        if self.terms.is_empty() { self.function_words } else { self.terms }
    }
}

/// The length of the letters and their marks that a text begins with, up to a hump: `camel|Case`, `HTTP|Server`. "TVs"
/// has none, and only ASCII is looked at.
fn letters_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let lower = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_lowercase);
    let upper = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_uppercase);
    let ends = |at: usize, c: char| {
        let letter = (c.is_alphabetic() && !is_unspaced(c)) || is_combining_mark(c);
        let hump = || at > 0 && upper(at) && (lower(at - 1) || (upper(at - 1) && lower(at + 1) && lower(at + 2)));
        !letter || hump()
    };
    text.char_indices().find(|(at, c)| ends(*at, *c)).map_or(text.len(), |(at, _)| at)
}

/// The length of the number that a text begins with: digits, and single separators between them.
fn number_end(text: &str) -> usize {
    let mut end = 0;
    let mut separator = false;
    for (at, c) in text.char_indices() {
        if c.is_numeric() {
            end = at + c.len_utf8();
            separator = false;
        } else if separator || !matches!(c, '.' | ',' | '\'') {
            break;
        } else {
            separator = true;
        }
    }
    end
}

#[cfg(test)]
mod tests;
