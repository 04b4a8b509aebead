//! The times that a query speaks of: "last week", "in March", "上周五", "2023年5月".
//!
//! The rules are those of everyday speech about the past, since memories are of the past, in the user's calendar. They
//! choose what to rank higher and are no filter: a phrase may be about something else, and what is told on one day
//! may have happened on another.

mod chinese;
mod english;

use jiff::{
    Timestamp, ToSpan as _,
    civil::{Date, Weekday},
    tz::TimeZone,
};

/// A time from one instant up to, and not including, another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeSpan {
    /// Its first instant.
    pub from: Timestamp,
    /// The first instant after it.
    pub before: Timestamp,
}

/// Most times that are taken of one query: the first ones of a text that is no question any more.
const MAX_SPANS: usize = 16;

/// The times that a query names in English or Chinese, each once and no more than 16; whole days of the user's calendar.
///
/// - Weeks begin on Monday (ISO 8601). "Last week" and "last month" are those of the calendar; "the past week" and "the
///   last two weeks" end today. "Two weeks ago" is the calendar week that contains the day 14 days ago,
///   and "a few weeks ago" is two to five of them.
/// - A day or month without a year is the latest that has begun. "Last March" is not the present month.
/// - A weekday is the latest, today included; "last Friday" is before today; 上周五 and "this Friday" are of that week.
/// - Seasons are those of the northern hemisphere, by months: summer is June to August.
/// - What is before or after a time is not its span: "before May 8" gives that day. Only "since" reaches until today.
#[must_use]
pub fn spans(query: &str, now: Timestamp, zone: &TimeZone) -> Vec<TimeSpan> {
    let today = now.to_zoned(zone.clone()).date();
    let mut spans = Vec::new();
    for days in english::days(query, today).into_iter().chain(chinese::days(query, today)) {
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

/// Whole days, from one up to, and not including, another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Days {
    from: Date,
    before: Date,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Day,
    Week,
    Month,
    Year,
}

impl Days {
    /// Some units after a day, or before it where the number is negative; `None` beyond the calendar's end.
    fn shift(date: Date, unit: Unit, by: i32) -> Option<Date> {
        let span = match unit {
            Unit::Day => by.days(),
            Unit::Week => by.weeks(),
            Unit::Month => by.months(),
            Unit::Year => by.years(),
        };
        date.checked_add(span).ok()
    }

    fn of(from: Date, unit: Unit) -> Option<Self> {
        Some(Self { from, before: Self::shift(from, unit, 1)? })
    }

    /// The calendar's unit that lies some units before the present one.
    fn ago(today: Date, unit: Unit, count: i32) -> Option<Self> {
        let first = match unit {
            Unit::Day => today,
            Unit::Week => Self::shift(today, Unit::Day, -i32::from(today.weekday().to_monday_zero_offset()))?,
            Unit::Month => today.first_of_month(),
            Unit::Year => today.first_of_year(),
        };
        Self::of(Self::shift(first, unit, -count)?, unit)
    }

    /// Some units up to and with today.
    fn past(today: Date, unit: Unit, count: i32) -> Option<Self> {
        Self { from: Self::shift(today, unit, -count)?, before: today }.until(today)
    }

    fn until(self, today: Date) -> Option<Self> {
        Some(Self { before: Self::shift(today, Unit::Day, 1)?, ..self })
    }

    /// A day of the week that lies some weeks before the present one.
    fn weekday_of_week(today: Date, weeks_ago: i32, weekday: Weekday) -> Option<Self> {
        let monday = Self::ago(today, Unit::Week, weeks_ago)?.from;
        Self::of(Self::shift(monday, Unit::Day, weekday.to_monday_zero_offset().into())?, Unit::Day)
    }

    /// The latest such day of a week, today included.
    fn latest_weekday(today: Date, weekday: Weekday) -> Option<Self> {
        let week = i32::from(weekday.to_monday_zero_offset() > today.weekday().to_monday_zero_offset());
        Self::weekday_of_week(today, week, weekday)
    }

    /// Saturday and Sunday of the week that lies some weeks before the present one.
    fn weekend(today: Date, weeks_ago: i32) -> Option<Self> {
        let week = Self::ago(today, Unit::Week, weeks_ago)?;
        Some(Self { from: Self::shift(week.before, Unit::Day, -2)?, ..week })
    }

    fn year(year: i16) -> Option<Self> {
        Self::of(Date::new(year, 1, 1).ok()?, Unit::Year)
    }

    /// A month, or a day of it, in a year or, without one, the latest that has begun.
    fn named(today: Date, year: Option<i16>, month: i8, day: Option<i8>) -> Option<Self> {
        let unit = if day.is_some() { Unit::Day } else { Unit::Month };
        let date = |year| Date::new(year, month, day.unwrap_or(1)).ok();
        let from = match year {
            Some(year) => date(year),
            // February 29 is at most eight years back.
            None => (0..=8).filter_map(|back| date(today.year().checked_sub(back)?)).find(|date| *date <= today),
        };
        Self::of(from?, unit)
    }
}

/// A year as people write it.
fn year_from(number: i32) -> Option<i16> {
    i16::try_from(number).ok().filter(|year| (1900..=2100).contains(year))
}

/// A date of numbers, the year first: 2023-05-08, 2023/5/8, 2023.5.8, 2023-05.
fn numeric_date(text: &str, today: Date) -> Option<Days> {
    let separator = text.chars().find(|c| !c.is_ascii_digit())?;
    let mut numbers = text.split(separator).map(|number| number.parse::<i32>().ok());
    let (year, month, day) = (year_from(numbers.next()??)?, i8::try_from(numbers.next()??).ok()?, numbers.next());
    let day = match day {
        Some(day) => Some(i8::try_from(day?).ok()?),
        // 2023.05 is a number.
        None if separator == '.' => return None,
        None => None,
    };
    if numbers.next().is_some() { None } else { Days::named(today, Some(year), month, day) }
}

#[cfg(test)]
mod tests;
