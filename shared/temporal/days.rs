use std::ops::Range;

use jiff::{
    ToSpan as _,
    civil::{Date, Weekday},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tense {
    Past,
    Future,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Anchor {
    pub(super) today: Date,
    pub(super) tense: Tense,
}

impl Anchor {
    pub(super) fn is_future(self) -> bool {
        self.tense == Tense::Future
    }

    /// Today included.
    pub(super) fn weekday(self, weekday: Weekday) -> Option<Days> {
        let is_later = weekday.to_monday_zero_offset() > self.today.weekday().to_monday_zero_offset();
        match self.tense {
            Tense::Past => Days::weekday_of_week(self.today, i32::from(is_later), weekday),
            Tense::Future => self.weekday_of_week(0, weekday),
        }
    }

    /// In the future tense, "this Friday" said on a Saturday is of the next week.
    pub(super) fn weekday_of_week(self, weeks_ago: i32, weekday: Weekday) -> Option<Days> {
        let days = Days::weekday_of_week(self.today, weeks_ago, weekday)?;
        if self.is_future() && weeks_ago == 0 && days.from < self.today {
            return Days::weekday_of_week(self.today, -1, weekday);
        }
        Some(days)
    }

    /// Without a year, the latest that has begun or, in the future tense, the next.
    pub(super) fn named(self, year: Option<i16>, month: i8, day: Option<i8>) -> Option<Days> {
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

/// `before` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Days {
    pub(super) from: Date,
    pub(super) before: Date,
}

/// With its bytes in the text.
pub(super) type Phrase = (Days, Range<usize>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Day,
    Week,
    Month,
    Year,
}

impl Days {
    /// `None` beyond the calendar's end.
    pub(super) fn shift(date: Date, unit: Unit, by: i32) -> Option<Date> {
        let span = match unit {
            Unit::Day => by.days(),
            Unit::Week => by.weeks(),
            Unit::Month => by.months(),
            Unit::Year => by.years(),
        };
        date.checked_add(span).ok()
    }

    pub(super) fn unit_from(from: Date, unit: Unit) -> Option<Self> {
        Some(Self { from, before: Self::shift(from, unit, 1)? })
    }

    /// The calendar unit that lies `count` units before the present one.
    pub(super) fn ago(today: Date, unit: Unit, count: i32) -> Option<Self> {
        let first = match unit {
            Unit::Day => today,
            Unit::Week => Self::shift(today, Unit::Day, -i32::from(today.weekday().to_monday_zero_offset()))?,
            Unit::Month => today.first_of_month(),
            Unit::Year => today.first_of_year(),
        };
        Self::unit_from(Self::shift(first, unit, -count)?, unit)
    }

    /// The day that lies `count` units after today.
    pub(super) fn ahead(today: Date, unit: Unit, count: i32) -> Option<Self> {
        Self::unit_from(Self::shift(today, unit, count)?, Unit::Day)
    }

    /// Including today.
    pub(super) fn past(today: Date, unit: Unit, count: i32) -> Option<Self> {
        Self { from: Self::shift(today, unit, -count)?, before: today }.until(today)
    }

    pub(super) fn until(self, today: Date) -> Option<Self> {
        Some(Self { before: Self::shift(today, Unit::Day, 1)?, ..self })
    }

    pub(super) fn weekday_of_week(today: Date, weeks_ago: i32, weekday: Weekday) -> Option<Self> {
        let monday = Self::ago(today, Unit::Week, weeks_ago)?.from;
        Self::unit_from(Self::shift(monday, Unit::Day, weekday.to_monday_zero_offset().into())?, Unit::Day)
    }

    pub(super) fn weekend(today: Date, weeks_ago: i32) -> Option<Self> {
        let week = Self::ago(today, Unit::Week, weeks_ago)?;
        Some(Self { from: Self::shift(week.before, Unit::Day, -2)?, ..week })
    }

    pub(super) fn year(year: i16) -> Option<Self> {
        Self::unit_from(Date::new(year, 1, 1).ok()?, Unit::Year)
    }

    pub(super) fn single(self) -> Option<Date> {
        (self.from.tomorrow().ok()? == self.before).then_some(self.from)
    }
}

pub(super) fn year_from(number: i32) -> Option<i16> {
    i16::try_from(number).ok().filter(|year| (1900..=2100).contains(year))
}

/// 2023-05-08, 2023/5/8, 2023.5.8, 2023-05.
pub(super) fn numeric_date(text: &str, anchor: Anchor) -> Option<Days> {
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
