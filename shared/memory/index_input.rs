//! The text by which a memory is found.

use std::collections::{BTreeMap, HashSet};

use jiff::{Timestamp, tz::TimeZone};

use super::tokenizer;

/// Latest turn first. A short turn ("Yes, last summer!") is understood by what it answers.
const PRECEDING_TURN_WEIGHTS: [f32; 2] = [0.5, 0.25];
/// A longer turn is understood by itself, and has no terms of the turns before it.
pub(super) const MAX_BYTES_WITH_PRECEDING_TURNS: usize = 4_000;
/// Of a turn before, the beginning counts. Bounds what each turn adds to the index of those that follow.
pub(super) const PRECEDING_TURN_CHARS: usize = 1_500;
const MAX_PRECEDING_TERMS: usize = 200;

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct IndexInput<'a> {
    pub(super) content: &'a str,
    pub(super) created_at: Timestamp,
    pub(super) speaker: &'a str,
    pub(super) title: &'a str,
    pub(super) section: &'a str,
    /// The latest first.
    pub(super) preceding_turns: &'a [String],
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct TermFrequencies {
    /// Fractions come from the turns before.
    pub(super) frequencies: BTreeMap<String, f32>,
    pub(super) length: f32,
}

impl IndexInput<'_> {
    pub(super) fn terms(&self) -> TermFrequencies {
        let mut terms = TermFrequencies::default();
        terms.add(self.content, 1.0);
        terms.add(&spelled_date(self.created_at, self.content), 1.0);
        for heading in [self.speaker, self.title, self.section] {
            terms.add(heading, 1.0);
        }
        for (text, weight) in self.preceding_turns.iter().zip(PRECEDING_TURN_WEIGHTS) {
            terms.add_beginning(text, weight);
        }
        terms
    }
}

impl TermFrequencies {
    fn add_beginning(&mut self, text: &str, weight: f32) {
        let mut distinct = HashSet::new();
        for term in tokenizer::terms(text) {
            if distinct.len() == MAX_PRECEDING_TERMS && !distinct.contains(&term) {
                break;
            }
            *self.frequencies.entry(term.clone()).or_default() += weight;
            self.length += weight;
            distinct.insert(term);
        }
    }

    fn add(&mut self, text: &str, weight: f32) {
        for term in tokenizer::terms(text) {
            *self.frequencies.entry(term).or_default() += weight;
            self.length += weight;
        }
    }
}

pub(super) fn vector_text(title: &str, section: &str, content: &str) -> String {
    let headings: Vec<&str> = [title, section].into_iter().filter(|heading| !heading.is_empty()).collect();
    if headings.is_empty() { content.to_owned() } else { format!("{}\n{content}", headings.join(" > ")) }
}

/// In UTC, and in Chinese or English as `text` is.
fn spelled_date(time: Timestamp, text: &str) -> String {
    const WEEKDAYS: [&str; 7] = ["一", "二", "三", "四", "五", "六", "日"];
    let day = time.to_zoned(TimeZone::UTC);
    if text.chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c)) {
        let weekday = WEEKDAYS[usize::from(day.weekday().to_monday_zero_offset().unsigned_abs()) % 7];
        format!("{}年{}月{}日 星期{weekday}", day.year(), day.month(), day.day())
    } else {
        day.strftime("%-d %B %Y %A").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    #[test]
    fn date_is_spelled_in_the_script_of_the_text() {
        let monday = at("2023-05-08T13:56:00Z");
        assert_eq!(spelled_date(monday, "Hey Mel!"), "8 May 2023 Monday");
        assert_eq!(spelled_date(monday, "今天学了 GPT-4"), "2023年5月8日 星期一");
        assert_eq!(spelled_date(at("2023-05-14T13:56:00Z"), "周末"), "2023年5月14日 星期日");
    }

    #[test]
    fn index_input_weighs_preceding_turns_less() {
        let preceding_turns = ["zork kat".to_owned(), "zork".to_owned(), "unseen".to_owned()];
        let input = IndexInput {
            content: "kat",
            created_at: at("2023-05-08T13:56:00Z"),
            speaker: "Caroline",
            title: "Guide",
            section: "Setup",
            preceding_turns: &preceding_turns,
        };
        let terms = input.terms();
        let frequency = |term: &str| terms.frequencies.get(term).copied().unwrap_or_default();
        assert_eq!(
            ["kat", "zork", "carolin", "setup", "2023", "unseen"].map(frequency),
            [1.5, 0.75, 1.0, 1.0, 1.0, 0.0]
        );
        assert!((terms.length - terms.frequencies.values().sum::<f32>()).abs() < f32::EPSILON);
    }

    #[test]
    fn preceding_turn_adds_a_bounded_number_of_terms() {
        let long = ('\u{4E00}'..).take(10_000).collect::<String>();
        let preceding_turns = [long.clone(), long];
        let input = IndexInput { content: "kat", preceding_turns: &preceding_turns, ..IndexInput::default() };
        let alone = IndexInput { content: "kat", ..IndexInput::default() };
        assert_eq!(input.terms().frequencies.len(), alone.terms().frequencies.len() + MAX_PRECEDING_TERMS);
    }
}
