use jiff::civil::{Date, Weekday};

use super::days::{Anchor, Days, Phrase, Unit, numeric_date, year_from};

/// Punctuation that ends a phrase is a word without letters.
struct Word<'a> {
    lower: String,
    is_capitalized: bool,
    text: &'a str,
    start: usize,
}

pub(super) fn phrases(text: &str, anchor: Anchor) -> Vec<Phrase> {
    let words = words(text);
    let mut phrases = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let Some((days, length)) = phrase(&words[at..], anchor) else {
            at += 1;
            continue;
        };
        // "Since May" is read as a whole, "since last May" in two.
        let is_since = words[at.saturating_sub(1)..=at].iter().any(|word| word.lower == "since");
        let days = if is_since { days.until(anchor.today).filter(|days| days.from < days.before) } else { Some(days) };
        let last = &words[at + length - 1];
        phrases.extend(days.map(|days| (days, words[at].start..last.start + last.text.len())));
        at += length;
    }
    phrases
}

fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let bytes = rest.as_bytes();
        let mut end = c.len_utf8();
        if c.is_ascii_alphanumeric() {
            let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
            // The separators of a numeric date are part of the word.
            let is_inside = |at: usize| {
                bytes[at].is_ascii_alphanumeric()
                    || (matches!(bytes[at], b'-' | b'/' | b'.') && is_digit(at - 1) && is_digit(at + 1))
            };
            end = (1..bytes.len()).find(|at| !is_inside(*at)).unwrap_or(bytes.len());
        }
        // Spaces, commas, apostrophes and hyphens occur inside phrases.
        if !(c.is_whitespace() || matches!(c, ',' | '\'' | '’' | '-')) {
            let word = &rest[..end];
            let start = text.len() - rest.len();
            words.push(Word {
                lower: word.to_ascii_lowercase(),
                is_capitalized: c.is_ascii_uppercase(),
                text: word,
                start,
            });
        }
        rest = &rest[end..];
    }
    words
}

/// With its number of words.
fn phrase(words: &[Word<'_>], anchor: Anchor) -> Option<(Days, usize)> {
    if anchor.is_future()
        && let Some(upcoming) = upcoming_phrase(words, anchor)
    {
        return Some(upcoming);
    }
    let today = anchor.today;
    let word = |at: usize| words.get(at).map_or("", |word| word.lower.as_str());
    let days = |days: Option<Days>, length| days.map(|days| (days, length));
    let ago = |unit, count, length| days(Days::ago(today, unit, count), length);
    match (word(0), word(1), word(2)) {
        ("today" | "tonight", ..) => ago(Unit::Day, 0, 1),
        ("yesterday", ..) => ago(Unit::Day, 1, 1),
        ("day", "before", "yesterday") => ago(Unit::Day, 2, 3),
        ("this", "morning" | "afternoon" | "evening", _) => ago(Unit::Day, 0, 2),
        ("last", "night", _) => ago(Unit::Day, 1, 2),
        ("few", unit, "ago") => {
            let (first, last) = (Days::ago(today, unit_of(unit)?, 5)?, Days::ago(today, unit_of(unit)?, 2)?);
            Some((Days { before: last.before, ..first }, 3))
        }
        ("couple", "of", unit) if word(3) == "ago" => ago(unit_of(unit)?, 2, 4),
        (count, unit, "ago") if unit_of(unit).is_some() => ago(unit_of(unit)?, count_of(count)?, 3),
        // "The last week of June" is another one.
        ("last" | "previous" | "past" | "this", _, "of") => None,
        ("last" | "previous" | "past", count, unit) if unit_of(unit).is_some() => {
            days(Days::past(today, unit_of(unit)?, count_of(count)?), 3)
        }
        ("past", "day" | "week" | "month" | "year", _) => days(Days::past(today, unit_of(word(1))?, 1), 2),
        ("last" | "previous", "week" | "month" | "year", _) => ago(unit_of(word(1))?, 1, 2),
        ("this", "week" | "month" | "year", _) => ago(unit_of(word(1))?, 0, 2),
        (which @ ("last" | "previous" | "past" | "this"), name, _) => {
            days(with_determiner(which == "this", name, words.get(1)?.is_capitalized, anchor), 2)
        }
        // A date after a weekday is more precise.
        ("on", name, _) if weekday(name).is_some() => match date(words.get(2..)?, anchor) {
            Some((days, length)) => Some((days, length + 2)),
            None => days(anchor.weekday(weekday(name)?), 2),
        },
        ("in" | "during" | "since" | "until" | "throughout" | "early" | "late" | "mid" | "of", ..) => {
            date(words.get(1..)?, anchor)
                .or_else(|| after_preposition(words, anchor))
                .map(|(days, length)| (days, length + 1))
        }
        _ => date(words, anchor),
    }
}

fn upcoming_phrase(words: &[Word<'_>], anchor: Anchor) -> Option<(Days, usize)> {
    let today = anchor.today;
    let word = |at: usize| words.get(at).map_or("", |word| word.lower.as_str());
    match (word(0), word(1), word(2)) {
        ("tomorrow", ..) => return Some((Days::ahead(today, Unit::Day, 1)?, 1)),
        ("day", "after", "tomorrow") => return Some((Days::ahead(today, Unit::Day, 2)?, 3)),
        ("the", "day", "after") if word(3) == "tomorrow" => return Some((Days::ahead(today, Unit::Day, 2)?, 4)),
        ("in", ..) => {
            let count = if word(1) == "about" { 2 } else { 1 };
            let days = Days::ahead(today, unit_of(word(count + 1))?, count_of(word(count))?)?;
            return Some((days, count + 2 + usize::from(word(count + 2) == "time")));
        }
        _ => {}
    }
    let (at, weeks_ago) = match (word(0), word(1)) {
        ("next", _) => (1, -1),
        ("this", "coming") => (2, 0),
        ("this" | "coming" | "on" | "by", _) => (1, 0),
        _ => (0, 0),
    };
    let weekday = weekday(word(at))?;
    match date(&words[at + 1..], anchor) {
        Some((days, length)) => Some((days, at + 1 + length)),
        None => Some((anchor.weekday_of_week(weeks_ago, weekday)?, at + 1)),
    }
}

/// The preposition distinguishes a year or month from a number or a name.
fn after_preposition(words: &[Word<'_>], anchor: Anchor) -> Option<(Days, usize)> {
    let (preposition, name) = (words.first()?, words.get(1)?);
    if let Some(year) = whole_number(&name.lower).and_then(year_from) {
        let counted =
            ["words", "pages", "steps", "miles", "dollars", "people", "lines", "characters", "calories", "years"];
        let is_count = words.get(2).is_some_and(|next| counted.contains(&next.lower.as_str()));
        return if is_count { None } else { Some((Days::year(year)?, 1)) };
    }
    // April and June are persons as well: "a photo of April".
    if preposition.lower == "of" {
        return None;
    }
    Some((anchor.named(None, month(&name.lower)?, None)?, 1))
}

fn with_determiner(is_this: bool, name: &str, is_capitalized: bool, anchor: Anchor) -> Option<Days> {
    let today = anchor.today;
    if let Some(weekday) = weekday(name) {
        return if is_this {
            Days::weekday_of_week(today, 0, weekday)
        } else {
            Anchor { today: Days::ago(today, Unit::Day, 1)?.from, ..anchor }.weekday(weekday)
        };
    }
    let in_year = |month: i8, months: i32| {
        let from = Date::new(today.year(), month, 1).ok()?;
        // The winter of January and February began in the year before.
        let mut back = i32::from(months > 1 && month == 12 && today.month() < 3);
        // In January, "last December" is that of the year before, and "this December" the next.
        if !is_this && Days::shift(from, Unit::Month, months - 12 * back)? > today {
            back += 1;
        }
        let from = Days::shift(from, Unit::Year, -back)?;
        Some(Days { from, before: Days::shift(from, Unit::Month, months)? })
    };
    match name {
        "weekend" => Days::weekend(today, i32::from(!is_this)),
        "spring" => in_year(3, 3),
        "summer" => in_year(6, 3),
        "autumn" | "fall" => in_year(9, 3),
        "winter" => in_year(12, 3),
        // "This may be" has a verb.
        _ if is_capitalized || !is_verb(name) => in_year(month(name)?, 1),
        _ => None,
    }
}

/// 8 May 2023, 8th of May, May 8, May 2023, 2023-05-08.
fn date(words: &[Word<'_>], anchor: Anchor) -> Option<(Days, usize)> {
    let first = words.first()?;
    if let Some(days) = numeric_date(first.text, anchor) {
        return Some((days, 1));
    }
    let lower = |at: usize| words.get(at).map_or("", |word| word.lower.as_str());
    let year = |at: usize| whole_number(lower(at)).and_then(year_from);
    let (month, day, next, name) = if let Some(day) = day_of_month(&first.lower) {
        let at = if lower(1) == "of" { 2 } else { 1 };
        (month(lower(at))?, Some(day), at + 1, words.get(at)?)
    } else {
        let day = day_of_month(lower(1));
        (month(&first.lower)?, day, if day.is_some() { 2 } else { 1 }, first)
    };
    let year = year(next);
    // "We may 5 times" and "the march 20 miles long" have neither a capital nor a year.
    if year.is_none() && (day.is_none() || (is_verb(&name.lower) && !name.is_capitalized)) {
        return None;
    }
    Some((anchor.named(year, month, day)?, next + usize::from(year.is_some())))
}

fn is_verb(month: &str) -> bool {
    matches!(month, "may" | "march")
}

fn unit_of(word: &str) -> Option<Unit> {
    match word {
        "day" | "days" => Some(Unit::Day),
        "week" | "weeks" => Some(Unit::Week),
        "month" | "months" => Some(Unit::Month),
        "year" | "years" => Some(Unit::Year),
        _ => None,
    }
}

fn whole_number(word: &str) -> Option<i32> {
    // More digits are neither a count nor a year.
    (word.len() <= 4 && word.bytes().all(|b| b.is_ascii_digit())).then(|| word.parse().ok())?
}

fn count_of(word: &str) -> Option<i32> {
    const WORDS: [&str; 13] =
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
    match word {
        "a" | "an" => Some(1),
        "few" => Some(3),
        _ => whole_number(word).or_else(|| WORDS.iter().position(|name| *name == word)?.try_into().ok()),
    }
}

fn day_of_month(word: &str) -> Option<i8> {
    let digits = ["st", "nd", "rd", "th"].iter().find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(word);
    if digits.len() > 2 {
        return None;
    }
    digits.parse().ok().filter(|day| (1..=31).contains(day))
}

fn weekday(word: &str) -> Option<Weekday> {
    const NAMES: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    Weekday::from_monday_zero_offset(NAMES.iter().position(|name| *name == word)?.try_into().ok()?).ok()
}

fn month(word: &str) -> Option<i8> {
    const NAMES: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let named = |name: &&str| {
        *name == word || (word.len() == 3 && name.starts_with(word)) || (word == "sept" && *name == "september")
    };
    i8::try_from(NAMES.iter().position(named)? + 1).ok()
}
