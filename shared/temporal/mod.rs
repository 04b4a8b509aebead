//! Reads dates and times from English and Chinese text, in the user's calendar.
//!
//! [`past_spans`] reads a query about the past ("last week", "上周五"), [`upcoming_day`] a statement about the future
//! ("next Friday", "12月5日"). Both use one grammar per language; [`Tense`] decides what is ambiguous, such as "Friday".
//! It does not parse times of day or recurring dates.

mod chinese;
mod english;

use std::ops::Range;

use jiff::{
    Timestamp, ToSpan as _,
    civil::{Date, Weekday},
    tz::TimeZone,
};

/// Bounds the work for a long text.
const MAX_SPANS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeSpan {
    pub(crate) from: Timestamp,
    /// Exclusive.
    pub(crate) before: Timestamp,
}

/// The spans that a query names, without repeats and at most 16; whole days in `zone`. They are for ranking and not for
/// filtering: a phrase may be about something else, and a memory of one day may tell of another.
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

/// The first day that a text names, today or later, and the words that name it.
///
/// A day without a year is the next one. "Next Friday" is of next week; "this Friday" and "Friday" are the next to come,
/// today included.
pub(crate) fn upcoming_day(text: &str, today: Date) -> Option<(Date, &str)> {
    let anchor = Anchor { today, tense: Tense::Future };
    let phrases = chinese::phrases(text, anchor).into_iter().chain(english::phrases(text, anchor));
    phrases.filter_map(|(days, range)| Some((days.single()?, text.get(range)?))).find(|(day, _)| *day >= today)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tense {
    Past,
    Future,
}

/// The day on which a text is read, and the tense in which it is read.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    today: Date,
    tense: Tense,
}

impl Anchor {
    fn is_future(self) -> bool {
        self.tense == Tense::Future
    }

    /// The latest such weekday or, in the future tense, the next one; today included.
    fn weekday(self, weekday: Weekday) -> Option<Days> {
        let is_later = weekday.to_monday_zero_offset() > self.today.weekday().to_monday_zero_offset();
        match self.tense {
            Tense::Past => Days::weekday_of_week(self.today, i32::from(is_later), weekday),
            Tense::Future => self.weekday_of_week(0, weekday),
        }
    }

    /// In the future tense, "this Friday" said on a Saturday is of the next week.
    fn weekday_of_week(self, weeks_ago: i32, weekday: Weekday) -> Option<Days> {
        let days = Days::weekday_of_week(self.today, weeks_ago, weekday)?;
        if self.is_future() && weeks_ago == 0 && days.from < self.today {
            return Days::weekday_of_week(self.today, -1, weekday);
        }
        Some(days)
    }

    /// A month, or a day of it. Without a year it is the latest that has begun or, in the future tense, the next.
    fn named(self, year: Option<i16>, month: i8, day: Option<i8>) -> Option<Days> {
        // A February 29 is at most eight years away.
        const MAX_YEARS: i16 = 8;
        let unit = if day.is_some() { Unit::Day } else { Unit::Month };
        let date = |year| Date::new(year, month, day.unwrap_or(1)).ok();
        let this_year = self.today.year();
        let from = match (year, self.tense) {
            (Some(year), _) => date(year),
            (None, Tense::Past) => {
                (0..=MAX_YEARS).filter_map(|years| date(this_year.checked_sub(years)?)).find(|date| *date <= self.today)
            }
            (None, Tense::Future) => {
                (0..=MAX_YEARS).filter_map(|years| date(this_year.checked_add(years)?)).find(|date| *date >= self.today)
            }
        };
        Days::unit_from(from?, unit)
    }
}

/// Whole days; `before` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Days {
    from: Date,
    before: Date,
}

/// A phrase with its bytes in the text.
type Phrase = (Days, Range<usize>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Day,
    Week,
    Month,
    Year,
}

impl Days {
    /// `None` beyond the calendar's end.
    fn shift(date: Date, unit: Unit, by: i32) -> Option<Date> {
        let span = match unit {
            Unit::Day => by.days(),
            Unit::Week => by.weeks(),
            Unit::Month => by.months(),
            Unit::Year => by.years(),
        };
        date.checked_add(span).ok()
    }

    fn unit_from(from: Date, unit: Unit) -> Option<Self> {
        Some(Self { from, before: Self::shift(from, unit, 1)? })
    }

    /// The calendar unit that lies `count` units before the present one.
    fn ago(today: Date, unit: Unit, count: i32) -> Option<Self> {
        let first = match unit {
            Unit::Day => today,
            Unit::Week => Self::shift(today, Unit::Day, -i32::from(today.weekday().to_monday_zero_offset()))?,
            Unit::Month => today.first_of_month(),
            Unit::Year => today.first_of_year(),
        };
        Self::unit_from(Self::shift(first, unit, -count)?, unit)
    }

    /// The day that lies `count` units after today.
    fn ahead(today: Date, unit: Unit, count: i32) -> Option<Self> {
        Self::unit_from(Self::shift(today, unit, count)?, Unit::Day)
    }

    /// The last `count` units up to and including today.
    fn past(today: Date, unit: Unit, count: i32) -> Option<Self> {
        Self { from: Self::shift(today, unit, -count)?, before: today }.until(today)
    }

    fn until(self, today: Date) -> Option<Self> {
        Some(Self { before: Self::shift(today, Unit::Day, 1)?, ..self })
    }

    fn weekday_of_week(today: Date, weeks_ago: i32, weekday: Weekday) -> Option<Self> {
        let monday = Self::ago(today, Unit::Week, weeks_ago)?.from;
        Self::unit_from(Self::shift(monday, Unit::Day, weekday.to_monday_zero_offset().into())?, Unit::Day)
    }

    /// Saturday and Sunday.
    fn weekend(today: Date, weeks_ago: i32) -> Option<Self> {
        let week = Self::ago(today, Unit::Week, weeks_ago)?;
        Some(Self { from: Self::shift(week.before, Unit::Day, -2)?, ..week })
    }

    fn year(year: i16) -> Option<Self> {
        Self::unit_from(Date::new(year, 1, 1).ok()?, Unit::Year)
    }

    /// The day, if it is one alone.
    fn single(self) -> Option<Date> {
        (self.from.tomorrow().ok()? == self.before).then_some(self.from)
    }
}

fn year_from(number: i32) -> Option<i16> {
    i16::try_from(number).ok().filter(|year| (1900..=2100).contains(year))
}

/// A date of numbers, the year first: 2023-05-08, 2023/5/8, 2023.5.8, 2023-05.
fn numeric_date(text: &str, anchor: Anchor) -> Option<Days> {
    let separator = text.chars().find(|c| !c.is_ascii_digit())?;
    let mut numbers = text.split(separator).map(|number| number.parse::<i32>().ok());
    let (year, month, day) = (year_from(numbers.next()??)?, i8::try_from(numbers.next()??).ok()?, numbers.next());
    let day = match day {
        Some(day) => Some(i8::try_from(day?).ok()?),
        // 2023.05 is a number.
        None if separator == '.' => return None,
        None => None,
    };
    if numbers.next().is_some() { None } else { anchor.named(Some(year), month, day) }
}

#[cfg(test)]
mod tests;
