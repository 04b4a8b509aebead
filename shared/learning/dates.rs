//! Days that people speak of when they tell what is to come: "next Friday", "in three weeks", "下周五", "12月5日".
//!
//! The memory's own reading of times is about the past; here a day without a year or a week is the next one.

use std::sync::LazyLock;

use jiff::{
    ToSpan as _,
    civil::{Date, Weekday},
};
use regex::{Captures, Regex};

static ENGLISH: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let month = r"(?P<NAME>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?";
    let pattern = [
        r"(?i)\b(?:",
        r"(?P<iso>(?P<y>20\d\d)[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2}))",
        r"|(?P<after>(?:the )?day after tomorrow)|(?P<tomorrow>tomorrow)|(?P<today>today|tonight)",
        r"|in (?:about )?(?P<count>\d{1,3}|an?|one|two|three|four|five|six|seven|eight|nine|ten|twelve) (?P<unit>day|week|month|year)s?(?: time)?",
        r"|(?P<which>next|this|coming|this coming|on|by)? ?(?P<weekday>monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
        &format!(r"|{} (?:the )?(?P<d1>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?P<y1>20\d\d))?", month.replace("NAME", "m1")),
        &format!(r"|(?P<d2>\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{}(?:,? (?P<y2>20\d\d))?", month.replace("NAME", "m2")),
        r")\b",
    ]
    .concat();
    Regex::new(&pattern).ok()
});

static CHINESE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let number = r"\d{1,3}|[一二两三四五六七八九十]{1,3}";
    let pattern = [
        r"(?P<after>大后天|后天)|(?P<tomorrow>明天|明日|明晚|明早)|(?P<today>今天|今日|今晚)",
        &format!(r"|(?P<count>{number})(?P<unit>天|日|个?星期|周|个?礼拜|个月|年)(?:之后|以后|后)"),
        r"|(?P<which>下下个?|下个?|这个?|本)?(?:周|星期|礼拜)(?P<weekday>[一二三四五六日天])",
        &format!(r"|(?:(?P<y>20\d\d)年|(?P<year>明年|今年))?(?P<m>{number})月(?P<d>{number})(?:日|号)?"),
        &format!(r"|(?P<month>下个?月|这个月|本月)(?P<d1>{number})(?:日|号)"),
        r"|(?P<y1>20\d\d)[-/.](?P<m1>\d{1,2})[-/.](?P<d2>\d{1,2})",
    ]
    .concat();
    Regex::new(&pattern).ok()
});

/// The first day that a text names, and the words that name it.
pub(super) fn day(text: &str, today: Date) -> Option<(Date, &str)> {
    let english = found(&ENGLISH, text, |words| english(words, today));
    let chinese = found(&CHINESE, text, |words| chinese(words, today));
    chinese.or(english)
}

/// A text without the day that it names.
pub(super) fn without_day(text: &str, today: Date) -> String {
    match day(text, today) {
        Some((_, words)) => text.replacen(words, "", 1),
        None => text.to_owned(),
    }
}

fn found<'t>(
    pattern: &LazyLock<Option<Regex>>,
    text: &'t str,
    read: impl Fn(&Captures<'t>) -> Option<Date>,
) -> Option<(Date, &'t str)> {
    let pattern = pattern.as_ref()?;
    pattern.captures_iter(text).find_map(|words| Some((read(&words)?, words.get(0)?.as_str())))
}

fn english(words: &Captures<'_>, today: Date) -> Option<Date> {
    let named = |name: &str| words.name(name).map(|part| part.as_str().to_ascii_lowercase());
    let digits = |name: &str| named(name)?.parse::<i16>().ok();
    if let (Some(year), Some(month), Some(day)) = (digits("y"), digits("m"), digits("d")) {
        return date(year, month, day);
    }
    if let Some(days) = near(words) {
        return today.checked_add(days.days()).ok();
    }
    if let (Some(count), Some(unit)) = (named("count"), named("unit")) {
        const COUNTS: [&str; 13] =
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
        let count = match count.as_str() {
            "a" | "an" => 1,
            word => match COUNTS.iter().position(|name| *name == word) {
                Some(count) => i32::try_from(count).ok()?,
                None => word.parse().ok()?,
            },
        };
        return after(today, count, &unit);
    }
    if let Some(name) = named("weekday") {
        const NAMES: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
        let offset = i8::try_from(NAMES.iter().position(|day| *day == name)?).ok()?;
        // "Next Friday" is that of the next week, any other the next one to come.
        return weekday(today, offset, i32::from(named("which").as_deref() == Some("next")));
    }
    for (month, day, year) in [("m1", "d1", "y1"), ("m2", "d2", "y2")] {
        if let (Some(month), Some(day)) = (named(month), digits(day)) {
            return in_year(today, digits(year), month_of(&month)?, day);
        }
    }
    None
}

fn chinese(words: &Captures<'_>, today: Date) -> Option<Date> {
    let named = |name: &str| words.name(name).map(|part| part.as_str());
    let number = |name: &str| named(name).and_then(number);
    if let Some(days) = near(words) {
        return today.checked_add(days.days()).ok();
    }
    if let (Some(count), Some(unit)) = (number("count"), named("unit")) {
        let unit = match unit.trim_start_matches('个') {
            "天" | "日" => "day",
            "月" => "month",
            "年" => "year",
            _ => "week",
        };
        return after(today, count.into(), unit);
    }
    if let Some(name) = named("weekday") {
        let name = if name == "天" { "日" } else { name };
        let offset = i8::try_from("一二三四五六日".chars().position(|day| name.starts_with(day))?).ok()?;
        let which = named("which").unwrap_or_default();
        let weeks = match which.trim_end_matches('个') {
            "下下" => 2,
            "下" => 1,
            _ => 0,
        };
        return weekday(today, offset, weeks);
    }
    if let (Some(month), Some(day)) = (number("m"), number("d")) {
        let year = match named("year") {
            Some("明年") => Some(today.year().checked_add(1)?),
            Some(_) => Some(today.year()),
            None => named("y").and_then(|year| year.parse().ok()),
        };
        return in_year(today, year, month, day);
    }
    if let (Some(month), Some(day)) = (named("month"), number("d1")) {
        let first = today.first_of_month().checked_add(i32::from(month.starts_with('下')).months()).ok()?;
        return date(first.year(), first.month().into(), day);
    }
    date(named("y1")?.parse().ok()?, number("m1")?, number("d2")?)
}

fn near(words: &Captures<'_>) -> Option<i32> {
    let after = words.name("after").map(|after| 2 + i32::from(after.as_str().starts_with('大')));
    after.or(words.name("tomorrow").map(|_| 1)).or(words.name("today").map(|_| 0))
}

fn date(year: i16, month: i16, day: i16) -> Option<Date> {
    Date::new(year, month.try_into().ok()?, day.try_into().ok()?).ok()
}

/// A day of a year or, without one, the next such day.
fn in_year(today: Date, year: Option<i16>, month: i16, day: i16) -> Option<Date> {
    match year {
        Some(year) => date(year, month, day),
        None => (0..=8).filter_map(|ahead| date(today.year() + ahead, month, day)).find(|date| *date >= today),
    }
}

fn after(today: Date, count: i32, unit: &str) -> Option<Date> {
    let span = match unit {
        "day" => count.days(),
        "week" => count.weeks(),
        "month" => count.months(),
        _ => count.years(),
    };
    today.checked_add(span).ok()
}

/// A day of the week some weeks ahead. In the present week it may be past: "this Friday" said on a Saturday is that of the
/// next week, and so is a bare "Friday".
fn weekday(today: Date, offset: i8, weeks: i32) -> Option<Date> {
    let weekday = Weekday::from_monday_zero_offset(offset).ok()?;
    let monday = today.checked_sub(i32::from(today.weekday().to_monday_zero_offset()).days()).ok()?;
    let date = monday.checked_add((i32::from(weekday.to_monday_zero_offset()) + 7 * weeks).days()).ok()?;
    if date < today { date.checked_add(7.days()).ok() } else { Some(date) }
}

fn month_of(name: &str) -> Option<i16> {
    const NAMES: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    i16::try_from(NAMES.iter().position(|month| name.starts_with(month))? + 1).ok()
}

/// A number below 100 in Arabic or Chinese digits.
pub(super) fn number(text: &str) -> Option<i16> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let digit = |c: char| "零一二三四五六七八九".chars().position(|digit| digit == if c == '两' { '二' } else { c });
    let whole = |text: &str| text.chars().try_fold(0, |sum, c| Some(sum * 10 + i16::try_from(digit(c)?).ok()?));
    match text.split_once('十') {
        Some((tens, ones)) => Some((if tens.is_empty() { 1 } else { whole(tens)? }) * 10 + whole(ones)?),
        None => whole(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Monday.
    const TODAY: Date = jiff::civil::date(2026, 11, 23);

    fn day_of(text: &str) -> String {
        day(text, TODAY).map_or_else(|| "none".to_owned(), |(day, _)| day.to_string())
    }

    #[test]
    fn a_day_to_come_is_found_in_english() {
        for (text, expected) in [
            ("my exam is tomorrow", "2026-11-24"),
            ("the day after tomorrow", "2026-11-25"),
            ("on Friday at ten", "2026-11-27"),
            ("this Friday", "2026-11-27"),
            ("next Friday", "2026-12-04"),
            ("on Monday", "2026-11-23"),
            ("in three weeks", "2026-12-14"),
            ("in 10 days", "2026-12-03"),
            ("in a month", "2026-12-23"),
            ("on June 5th", "2027-06-05"),
            ("5 December", "2026-12-05"),
            ("the 5th of March 2028", "2028-03-05"),
            ("Dec 24, 2027", "2027-12-24"),
            ("2027-02-03", "2027-02-03"),
            ("I may go in the second march", "none"),
            ("on February 30", "none"),
        ] {
            assert_eq!(day_of(text), expected, "{text}");
        }
    }

    #[test]
    fn a_day_to_come_is_found_in_chinese() {
        for (text, expected) in [
            ("明天考试", "2026-11-24"),
            ("后天", "2026-11-25"),
            ("大后天", "2026-11-26"),
            ("下周五有考试", "2026-12-04"),
            ("这周五", "2026-11-27"),
            ("周日", "2026-11-29"),
            ("下下周一", "2026-12-07"),
            ("三天后", "2026-11-26"),
            ("两周后", "2026-12-07"),
            ("两个月以后", "2027-01-23"),
            ("12月5日", "2026-12-05"),
            ("十二月二十五号", "2026-12-25"),
            ("6月7号高考", "2027-06-07"),
            ("明年6月7日", "2027-06-07"),
            ("2027年1月9日", "2027-01-09"),
            ("下个月3号", "2026-12-03"),
            ("2027/3/1", "2027-03-01"),
            ("每天都要学习", "none"),
        ] {
            assert_eq!(day_of(text), expected, "{text}");
        }
        assert_eq!(without_day("高数考试在下周五上午", TODAY), "高数考试在上午");
    }
}
