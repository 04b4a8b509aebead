//! What of a memory can be found: not its text alone, but also when it was, who said it, what was said before it, and under
//! which headings it stands.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};

use super::tokenizer;

/// How much the words of the turns before a turn count, the latest first. A short turn ("Yes, last summer!") is understood
/// by what it answers.
pub(super) const PRECEDING_TURN_WEIGHTS: [f32; 2] = [0.5, 0.25];

/// A memory as the index sees it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct IndexInput<'a> {
    pub(super) content: &'a str,
    /// When it was.
    pub(super) created_at: Timestamp,
    /// Who said it, or empty.
    pub(super) speaker: &'a str,
    /// The title of its document, or empty.
    pub(super) title: &'a str,
    /// The headings above it, or empty.
    pub(super) section: &'a str,
    /// What was said before it in the same conversation, the latest first.
    pub(super) preceding_turns: &'a [String],
}

/// The terms of a memory.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TermFrequencies {
    /// How often each stands in it; what counts in part is counted in part.
    pub(super) frequencies: BTreeMap<String, f32>,
    /// How many there are, repeats counted.
    pub(super) length: f32,
}

impl IndexInput<'_> {
    /// What the keyword index holds.
    pub(super) fn terms(&self) -> TermFrequencies {
        let mut terms = TermFrequencies::default();
        terms.add(self.content, 1.0);
        terms.add(&date(self.created_at, self.content), 1.0);
        for heading in [self.speaker, self.title, self.section] {
            terms.add(heading, 1.0);
        }
        for (text, weight) in self.preceding_turns.iter().zip(PRECEDING_TURN_WEIGHTS) {
            terms.add(text, weight);
        }
        terms
    }
}

impl TermFrequencies {
    fn add(&mut self, text: &str, weight: f32) {
        for token in tokenizer::terms(text) {
            *self.frequencies.entry(token).or_default() += weight;
            self.length += weight;
        }
    }
}

/// What the vector of a text is of: the text, below the headings that it stands under.
pub(super) fn vector_text(title: &str, section: &str, content: &str) -> String {
    let headings: Vec<&str> = [title, section].into_iter().filter(|heading| !heading.is_empty()).collect();
    if headings.is_empty() { content.to_owned() } else { format!("{}\n{content}", headings.join(" > ")) }
}

/// A day in words, in the script of a text.
fn date(time: Timestamp, text: &str) -> String {
    const DAYS: [&str; 7] = ["一", "二", "三", "四", "五", "六", "日"];
    let day = time.to_zoned(TimeZone::UTC);
    if text.chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c)) {
        let weekday = DAYS[usize::from(day.weekday().to_monday_zero_offset().unsigned_abs()) % 7];
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
    fn a_day_is_written_in_the_script_of_the_text() {
        let monday = at("2023-05-08T13:56:00Z");
        assert_eq!(date(monday, "Hey Mel!"), "8 May 2023 Monday");
        assert_eq!(date(monday, "今天学了 GPT-4"), "2023年5月8日 星期一");
        assert_eq!(date(at("2023-05-14T13:56:00Z"), "周末"), "2023年5月14日 星期日");
    }

    #[test]
    fn who_when_where_and_what_was_said_before_count_as_well_and_the_latter_in_part() {
        let before = ["zork kat".to_owned(), "zork".to_owned(), "unseen".to_owned()];
        let indexed = IndexInput {
            content: "kat",
            created_at: at("2023-05-08T13:56:00Z"),
            speaker: "Caroline",
            title: "Guide",
            section: "Setup",
            preceding_turns: &before,
        };
        let terms = indexed.terms();
        let of = |term: &str| terms.frequencies.get(term).copied().unwrap_or_default();
        assert_eq!(
            (of("kat"), of("zork"), of("carolin"), of("setup"), of("2023"), of("unseen")),
            (1.5, 0.75, 1.0, 1.0, 1.0, 0.0)
        );
        assert!((terms.length - terms.frequencies.values().sum::<f32>()).abs() < f32::EPSILON);
    }
}
