//! Sentences, and text normalized for comparisons.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization as _;

/// For comparisons: NFKC, lower case, single spaces, plain quotation marks.
pub(crate) fn normalized(text: &str) -> String {
    let plain = text.nfkc().map(plain_quote);
    collapse_spaces(plain.flat_map(char::to_lowercase))
}

pub(super) const fn plain_quote(c: char) -> char {
    match c {
        '\u{2018}' | '\u{2019}' | '\u{2BC}' => '\'',
        '\u{201C}' | '\u{201D}' => '"',
        c => c,
    }
}

pub(super) fn collapse_spaces(chars: impl Iterator<Item = char>) -> String {
    let mut collapsed = String::new();
    for c in chars {
        if !c.is_whitespace() {
            collapsed.push(c);
        } else if !collapsed.ends_with(' ') {
            collapsed.push(' ');
        }
    }
    collapsed.trim().to_owned()
}

/// The sentences that contain the quotation, normalized; `None` if the text does not contain it.
pub(crate) fn sentences_around(text: &str, quote: &str) -> Option<String> {
    let (text, quote) = (normalized(text), normalized(quote));
    if quote.is_empty() {
        return None;
    }
    let at = text.find(&quote)?;
    let touched = sentences(&text).into_iter().filter(|range| range.start < at + quote.len() && at < range.end);
    Some(touched.map(|range| &text[range]).collect::<Vec<_>>().join(" "))
}

/// Byte ranges of the sentences. A full stop ends one only before white space, so that 3.5 is one number.
pub(crate) fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let ends = match c {
            '。' | '！' | '？' | '；' | '!' | '?' | ';' | '\n' | '…' => true,
            '.' => next.is_none_or(char::is_whitespace),
            _ => false,
        };
        if ends && !matches!(next, Some('。' | '！' | '？' | '!' | '?' | '.')) {
            let end = at + c.len_utf8();
            found.push(start..end);
            start = end;
        }
    }
    found.push(start..text.len());
    found.retain(|range| text[range.clone()].chars().any(char::is_alphanumeric));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotation_matches_across_spaces_width_and_marks() {
        let said = "I’m  a\nＦＵＬＬ nurse. And 16!";
        assert_eq!(sentences_around(said, "i'm a full nurse").as_deref(), Some("i'm a full nurse."));
        assert_eq!(sentences_around(said, "nurse. and 16").as_deref(), Some("i'm a full nurse.  and 16!"));
        assert_eq!(sentences_around(said, "doctor"), None);
        assert_eq!(sentences_around(said, "  "), None);
    }

    #[test]
    fn sentences_do_not_end_inside_a_number() {
        let of =
            |text: &str| sentences(text).into_iter().map(|range| text[range].trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(of("I got 3.5. Good?! 好。再见"), ["I got 3.5.", "Good?!", "好。", "再见"]);
    }
}
