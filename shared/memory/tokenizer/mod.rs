//! A text is normalized (NFKC, no accents, no case) and split into words (UAX #29). English is stemmed and loses its
//! function words. Scripts without spaces become overlapping pairs of characters: 高等数学 is 高等, 等数, 数学. No synonyms, no
//! stemming of other languages, no word positions.

mod english;

use std::mem;

use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};
use unicode_segmentation::UnicodeSegmentation as _;

use crate::language;

/// Increase it with every change of the terms: each user's inverted index is then rebuilt.
pub(super) const VERSION: i32 = 1;

/// Longer terms are truncated, in texts and queries alike.
const MAX_TERM_BYTES: usize = 64;

/// A compound of more parts is likely a hash, and its parts of one or two characters are dropped.
const MAX_PARTS: usize = 8;

/// In order, with repeats, never empty. A compound has the term of the whole without joiners, and those of its parts:
/// `GPT-4` and `GPT4` are both `gpt4`, `gpt`, `4`. Numbers have no term of the whole: `2023-05-08` is `2023`, `05`,
/// `08`. A text of function words alone keeps them. Texts that are equal under NFKC have equal terms.
#[must_use]
pub fn terms(text: &str) -> Vec<String> {
    let text = normalize(text);
    let mut scan = Scanner::default();
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

/// "resume" finds "résumé" (and и finds й). Apostrophes become plain, and invisible layout characters go.
fn normalize(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let is_accent = |c: &char| matches!(c, '\u{300}'..='\u{36F}');
    let plain = |c| if matches!(c, '\u{2019}' | '\u{2018}' | '\u{2BC}') { '\'' } else { c };
    let is_layout = |c: &char| matches!(c, '\u{AD}' | '\u{200C}' | '\u{200D}' | '\u{2060}' | '\u{FEFF}');
    text.nfkd().filter(|c| !is_accent(c) && !is_layout(c)).map(plain).nfc().collect()
}

/// Unicode's full case folding: by way of the upper case, ß becomes ss and ς becomes σ.
fn fold_case(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    text.chars().flat_map(char::to_lowercase).flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Scripts without spaces between words or, as Hangul, with endings attached to them.
fn is_unspaced(c: char) -> bool {
    language::is_han(c)
        || (c.is_alphanumeric()
            && matches!(c, '\u{3005}'..='\u{3007}' | '\u{3041}'..='\u{318F}' | '\u{31A0}'..='\u{31FF}'
                | '\u{AC00}'..='\u{D7FB}' | '\u{1100}'..='\u{11FF}' | '\u{A960}'..='\u{A97C}'
                | '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}'))
}

#[derive(Default)]
struct Scanner {
    terms: Vec<String>,
    function_words: Vec<String>,
    run: String,
    parts: Vec<String>,
    /// The next word belongs to the compound.
    is_joined: bool,
    /// `+`, `++` or `#` directly after the compound, as in `C++`.
    suffix: String,
    /// Only a full stop is in front of the compound, as in `.NET`.
    is_dotted: bool,
}

impl Scanner {
    /// For a segment without letters and digits; `before` is the character in front of it.
    fn separator(&mut self, segment: &str, before: char) {
        self.flush_run();
        match segment {
            "+" | "#" if !self.parts.is_empty() && !self.is_joined => self.suffix.push_str(segment),
            "-" | "\u{2010}" | "_" | "." | "@" | "&"
                if !self.parts.is_empty() && !self.is_joined && self.suffix.is_empty() =>
            {
                self.is_joined = true;
            }
            _ => {
                self.flush_compound();
                self.is_dotted = segment == "." && !before.is_alphanumeric() && before != '.';
            }
        }
    }

    fn word(&mut self, segment: &str) {
        let first = segment.chars().next().unwrap_or(' ');
        if !mem::take(&mut self.is_joined) && !self.parts.is_empty() {
            // "C++17" and "C++的" name the language, "a+b" is a sum.
            if !(is_unspaced(first) || self.suffix == "++" && first.is_numeric()) {
                self.suffix.clear();
            }
            self.flush_compound();
        }
        if segment.contains('\'') {
            let plain = fold_case(segment).replace('\'', "");
            if english::is_function_word(&plain) {
                self.flush_run();
                self.flush_compound();
                self.push(plain);
                return;
            }
        }
        self.split(english::without_clitic(segment));
    }

    /// Splits where the script changes, at joiners, in camelCase, and between letters and digits.
    fn split(&mut self, mut rest: &str) {
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
                    let letters = fold_case(&rest[..end]);
                    // "8th" in a date is the number, and "1990s" the decade.
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

    /// `1,000` is 1000, `3.14` stays, `1.2.3` and `1,2` are several numbers.
    fn number(&mut self, text: &str) {
        let is_grouped =
            text.split('.').next().unwrap_or(text).split([',', '\'']).skip(1).all(|group| group.len() == 3);
        let text = if is_grouped { text.replace([',', '\''], "") } else { text.to_owned() };
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
        let is_dotted = mem::take(&mut self.is_dotted);
        self.is_joined = false;
        if let [word] = parts.as_slice() {
            if word.ends_with(char::is_alphabetic) && matches!(suffix.as_str(), "+" | "++" | "#") {
                self.push(format!("{word}{suffix}"));
                // "C++" must not find "vitamin C".
                if word.chars().nth(1).is_none() {
                    return;
                }
            } else if is_dotted && word.starts_with(char::is_alphabetic) {
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

/// The leading letters and marks up to a hump of camelCase, in ASCII only: `camel|Case`, `HTTP|Server`, but `TVs`.
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

/// Digits with single separators in between.
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
