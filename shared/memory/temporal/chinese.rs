//! Times in Chinese, simplified or traditional.

use jiff::civil::{Date, Weekday};

use super::{Days, Unit, year_from};

pub(super) fn days(query: &str, today: Date) -> Vec<Days> {
    let query: String = query.chars().map(plain).collect();
    let mut found = Vec::new();
    let mut before = ' ';
    let mut rest = query.as_str();
    while let Some(c) = rest.chars().next() {
        let after = match phrase(rest, before, today) {
            Some((days, after)) => {
                found.push(days);
                after
            }
            // A number is read as a whole or not at all: 12月 is not 2月.
            None => match number(rest) {
                Some((_, after)) => after,
                None => &rest[c.len_utf8()..],
            },
        };
        before = rest[..rest.len() - after.len()].chars().next_back().unwrap_or(' ');
        rest = after;
    }
    found
}

/// The simplified and narrow form of those characters that times are written with.
fn plain(c: char) -> char {
    match c {
        '週' => '周',
        '個' => '个',
        '這' => '这',
        '號' => '号',
        '禮' => '礼',
        '過' => '过',
        '兩' => '两',
        '０'..='９' => char::from_u32(u32::from(c) - 0xFF10 + u32::from('0')).unwrap_or(c),
        _ => c,
    }
}

/// The time that a text begins with, and the text after it.
fn phrase(text: &str, before: char, today: Date) -> Option<(Days, &str)> {
    const DAYS: &[(&str, i32)] = &[
        ("大前天", 3),
        ("今天", 0),
        ("今日", 0),
        ("今早", 0),
        ("今晚", 0),
        ("昨天", 1),
        ("昨日", 1),
        ("昨晚", 1),
        ("昨夜", 1),
        ("前天", 2),
    ];
    const YEARS: &[(&str, i32)] = &[("今年", 0), ("去年", 1), ("前年", 2)];
    const WEEKS: &[(&str, i32)] = &[("上上", 2), ("上", 1), ("这", 0), ("本", 0)];
    let prefixed = |names: &[(&str, i32)]| names.iter().find_map(|(name, ago)| Some((*ago, text.strip_prefix(name)?)));

    if let Some((ago, rest)) = prefixed(DAYS) {
        // 目前天气 is "the weather at present", 以前天天 "formerly every day".
        let is_word = !(text.starts_with("前天") && matches!(before, '目' | '以' | '之' | '从' | '提'));
        return Some((Days::ago(today, Unit::Day, ago)?, rest)).filter(|_| is_word);
    }
    // 三年前年底 reads as "three years ago, at the end of the year".
    if let Some((ago, rest)) = prefixed(YEARS) {
        let year = today.year().checked_sub(i16::try_from(ago).ok()?)?;
        return month_and_day(rest, Some(year), today).or(Some((Days::year(year)?, rest)));
    }
    if let Some((ago, rest)) = prefixed(WEEKS) {
        let unit = rest.strip_prefix('个').unwrap_or(rest);
        if let Some(rest) = unit.strip_prefix('月') {
            let month = Days::ago(today, Unit::Month, ago)?;
            let day = number(rest).and_then(|(day, rest)| Some((day, after_day(rest)?)));
            return match day {
                Some((day, rest)) => {
                    let (year, month) = (month.from.year(), month.from.month());
                    Some((Days::named(today, Some(year), month, Some(i8::try_from(day).ok()?))?, rest))
                }
                None => Some((month, rest)),
            };
        }
        let rest = week(unit)?;
        return match (rest.strip_prefix('末'), weekday(rest)) {
            (Some(rest), _) => Some((Days::weekend(today, ago)?, rest)),
            (_, Some((weekday, rest))) => Some((Days::weekday_of_week(today, ago, weekday)?, rest)),
            // 本周期 is "this period".
            _ if rest.starts_with('期') => None,
            _ => Some((Days::ago(today, Unit::Week, ago)?, rest)),
        };
    }
    if let Some(rest) = ["最近", "过去", "近"].iter().find_map(|name| text.strip_prefix(name)) {
        let (count, rest) = number(rest)?;
        let (unit, rest) = counted_unit(rest)?;
        return Some((Days::past(today, unit, small(count)?)?, rest));
    }
    if let Some(rest) = week(text) {
        // 每周五 is every Friday, 一周三次 is three times a week, 下周五 is yet to come.
        let is_repeated = matches!(before, '每' | '各' | '下' | '半' | '整' | '第' | '个') || digit(before).is_some();
        let (weekday, rest) = weekday(rest)?;
        let is_count = rest.starts_with(['次', '天', '个', '节', '年', '遍', '期']);
        return Some((Days::latest_weekday(today, weekday)?, rest)).filter(|_| !is_repeated && !is_count);
    }
    if before == '第' || digit(before).is_some() {
        return None;
    }
    let (count, rest) = number(text)?;
    if let Some(year) = rest.strip_prefix('年').and_then(|_| year_from(count)) {
        let rest = rest.strip_prefix('年')?;
        return month_and_day(rest, Some(year), today).or(Some((Days::year(year)?, rest)));
    }
    if let Some((unit, rest)) = counted_unit(rest) {
        let rest = ["之前", "以前", "前"].iter().find_map(|ago| rest.strip_prefix(ago))?;
        return Some((Days::ago(today, unit, small(count)?)?, rest));
    }
    month_and_day(text, None, today)
}

/// 5月, 五月份, 5月8日, 5月8号.
fn month_and_day(text: &str, year: Option<i16>, today: Date) -> Option<(Days, &str)> {
    let (month, rest) = number(text)?;
    let month = i8::try_from(month).ok()?;
    let rest = rest.strip_prefix('月')?;
    if let Some((day, rest)) = number(rest).and_then(|(day, rest)| Some((i8::try_from(day).ok()?, after_day(rest)?))) {
        return Some((Days::named(today, year, month, Some(day))?, rest));
    }
    Some((Days::named(today, year, month, None)?, rest))
}

fn after_day(text: &str) -> Option<&str> {
    text.strip_prefix(['日', '号'])
}

/// What follows the word for a week.
fn week(text: &str) -> Option<&str> {
    ["周", "星期", "礼拜"].iter().find_map(|name| text.strip_prefix(name))
}

fn weekday(text: &str) -> Option<(Weekday, &str)> {
    let name = text.chars().next()?;
    let offset = "一二三四五六日".chars().position(|other| other == if name == '天' { '日' } else { name })?;
    Some((Weekday::from_monday_zero_offset(offset.try_into().ok()?).ok()?, &text[name.len_utf8()..]))
}

/// A unit after a number: 天, 周, 个月.
fn counted_unit(text: &str) -> Option<(Unit, &str)> {
    if let Some(rest) = week(text.strip_prefix('个').unwrap_or(text)) {
        return Some((Unit::Week, rest));
    }
    [("天", Unit::Day), ("日", Unit::Day), ("个月", Unit::Month), ("年", Unit::Year)]
        .iter()
        .find_map(|(name, unit)| Some((*unit, text.strip_prefix(name)?)))
}

/// A count that a calendar can go back by.
fn small(count: i32) -> Option<i32> {
    (0..=9_999).contains(&count).then_some(count)
}

fn digit(c: char) -> Option<i32> {
    let value = match c {
        '0'..='9' => u32::from(c) - u32::from('0'),
        '〇' | '零' => 0,
        '一' => 1,
        '二' | '两' => 2,
        '三' => 3,
        '四' => 4,
        '五' => 5,
        '六' => 6,
        '七' => 7,
        '八' => 8,
        '九' => 9,
        '十' => 10,
        _ => return None,
    };
    i32::try_from(value).ok()
}

/// The number that a text begins with, in Arabic or Chinese digits, and the text after it: 12, 十二, 二十一, 二〇二三.
/// One that is too long to count by is −1.
fn number(text: &str) -> Option<(i32, &str)> {
    let end = text.char_indices().find(|(_, c)| digit(*c).is_none()).map_or(text.len(), |(at, _)| at);
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return None;
    }
    // No number of a date has more digits.
    if digits.chars().count() > 4 {
        return Some((-1, rest));
    }
    let plain = |digits: &str| digits.chars().filter_map(digit).fold(0, |sum, digit| sum * 10 + digit);
    let value = match digits.split_once('十') {
        Some((tens, ones)) => (if tens.is_empty() { 1 } else { plain(tens) }) * 10 + plain(ones),
        None => plain(digits),
    };
    Some((value, rest))
}
