//! Decides which text may become a fact about the user: their own words, and no instruction to the assistant. Pure functions of
//! text; extraction and the memory tools share them.

mod blocks;
mod confusables;
mod instruction_guard;
mod lines;
mod own_words;
mod quotations;
mod sentences;

pub(crate) use confusables::is_invisible;
pub(crate) use instruction_guard::{is_instruction, is_override};
pub(crate) use own_words::own_words;
pub(crate) use sentences::{normalized, sentences, sentences_around};

#[cfg(test)]
mod tests;

use std::ops::Range;

use regex::Regex;

/// A fact is one sentence.
const MAX_FACT_CHARS: usize = 400;

/// Neither blank nor long, without control and invisible characters.
pub(crate) fn is_one_sentence(fact: &str) -> bool {
    let is_forbidden = |c: char| c.is_control() || is_invisible(c);
    !fact.trim().is_empty() && fact.chars().count() <= MAX_FACT_CHARS && !fact.contains(is_forbidden)
}

/// The mark of a removed part, so that the words around it do not join into a new phrase.
const REMOVED: &str = " … ";

/// Removes ranges, which are in order and do not overlap. What follows one in a stranger's line stays a stranger's, although the
/// beginning of the line may be removed.
fn cut(text: &str, ranges: impl IntoIterator<Item = Range<usize>>) -> String {
    let mut rest = String::with_capacity(text.len());
    let mut copied = 0;
    let mut line = 0..0;
    let mut is_foreign = false;
    for range in ranges {
        rest.push_str(&text[copied..range.start]);
        rest.push_str(REMOVED);
        copied = range.end;
        if !line.contains(&copied) {
            line.start += text[line.start..copied].rfind('\n').map_or(0, |end| end + 1);
            line.end = text[copied..].find('\n').map_or(text.len(), |end| copied + end + 1);
            is_foreign = lines::is_foreign_start(text[line.clone()].trim_end_matches('\n'));
        }
        if is_foreign && line.start < copied {
            rest.push_str("\n> ");
        }
    }
    rest.push_str(&text[copied..]);
    rest
}

/// Counts the steps of scanners, so that a test can compare them with the length of a message.
#[cfg(not(test))]
const fn count_steps(_: usize) {}

#[cfg(test)]
use tests::count_steps;

fn remove_matches(text: &str, pattern: Option<&Regex>) -> String {
    // Fails closed: without its pattern, which a test excludes, nothing counts as the user's own.
    pattern.map_or_else(String::new, |pattern| cut(text, pattern.find_iter(text).map(|found| found.range())))
}
