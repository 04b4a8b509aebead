//! Reads dates in English and Chinese text, in the user's calendar. One grammar per language; [`Tense`] decides what is
//! ambiguous, such as "Friday". No times of day, no recurring dates.

mod chinese;
mod days;
mod english;

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use days::{Anchor, Tense};

/// Bounds the work for a long text.
const MAX_SPANS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeSpan {
    pub(crate) from: Timestamp,
    /// Exclusive.
    pub(crate) before: Timestamp,
}

/// Whole days, without repeats. For ranking and not for filtering: a phrase may be about something else, and a memory
/// of one day may tell of another.
///
/// - Weeks begin on Monday (ISO 8601). "Last week" and "last month" are calendar units; "the past week" and "the last
///   two weeks" end today. "Two weeks ago" is the calendar week that contains the day 14 days ago, and "a few weeks
///   ago" is two to five of them.
/// - A day or month without a year is the latest that has begun. "Last March" is not the present month.
/// - A weekday is the latest, today included; "last Friday" is before today; 上周五 and "this Friday" are of that week.
/// - Seasons are those of the northern hemisphere, by months: summer is June to August.
/// - "Before May 8" gives that day. Only "since" extends a span until today.
pub(crate) fn past_spans(query: &str, now: Timestamp, zone: &TimeZone) -> Vec<TimeSpan> {
    let anchor = Anchor { today: now.to_zoned(zone.clone()).date(), tense: Tense::Past };
    let mut spans = Vec::new();
    for (days, _) in english::phrases(query, anchor).into_iter().chain(chinese::phrases(query, anchor)) {
        let instant = |date: Date| date.to_zoned(zone.clone()).ok().map(|midnight| midnight.timestamp());
        if let (Some(from), Some(before)) = (instant(days.from), instant(days.before)) {
            let span = TimeSpan { from, before };
            if !spans.contains(&span) {
                spans.push(span);
            }
            if spans.len() == MAX_SPANS {
                break;
            }
        }
    }
    spans
}

/// The first day that a text names, today or later, and its words. "Next Friday" is of next week; "this Friday" and
/// "Friday" are the next to come, today included.
pub(crate) fn upcoming_day(text: &str, today: Date) -> Option<(Date, &str)> {
    let anchor = Anchor { today, tense: Tense::Future };
    let phrases = chinese::phrases(text, anchor).into_iter().chain(english::phrases(text, anchor));
    phrases.filter_map(|(days, range)| Some((days.single()?, text.get(range)?))).find(|(day, _)| *day >= today)
}

#[cfg(test)]
mod tests;
