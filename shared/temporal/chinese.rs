use jiff::civil::Weekday;

use super::days::{Anchor, Days, Phrase, Unit, year_from};

pub(super) fn phrases(text: &str, anchor: Anchor) -> Vec<Phrase> {
    // One character becomes one character, so that positions in both texts correspond.
    let plain: String = text.chars().map(plain).collect();
    let mut phrases = Vec::new();
    let mut before = ' ';
    let (mut rest, mut start) = (plain.as_str(), 0);
    while let Some(c) = rest.chars().next() {
        let found = phrase(rest, before, anchor);
        let after = match (&found, number(rest)) {
            (Some((_, after)), _) => after,
            // A number is read as a whole or not at all: 12月 is not 2月.
            (None, Some((_, after))) => after,
            (None, None) => &rest[c.len_utf8()..],
        };
        let read = &rest[..rest.len() - after.len()];
        let end = start + text[start..].chars().take(read.chars().count()).map(char::len_utf8).sum::<usize>();
        phrases.extend(found.map(|(days, _)| (days, start..end)));
        before = read.chars().next_back().unwrap_or(' ');
        (rest, start) = (after, end);
    }
    phrases
}

/// Simplified and half-width.
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

/// `before` is the character in front of `text`. Returns the rest, too.
fn phrase(text: &str, before: char, anchor: Anchor) -> Option<(Days, &str)> {
    let today = anchor.today;
    if let Some((ago, rest)) = relative(text, anchor, DAYS, DAYS_AHEAD) {
        // 目前天气 is "the weather at present", 以前天天 "formerly every day".
        let is_word = !(text.starts_with("前天") && matches!(before, '目' | '以' | '之' | '从' | '提'));
        return Some((Days::ago(today, Unit::Day, ago)?, rest)).filter(|_| is_word);
    }
    // 三年前年底 reads as "three years ago, at the end of the year".
    if let Some((ago, rest)) = relative(text, anchor, YEARS, YEARS_AHEAD) {
        let year = today.year().checked_sub(i16::try_from(ago).ok()?)?;
        return month_and_day(rest, Some(year), anchor).or(Some((Days::year(year)?, rest)));
    }
    if let Some((ago, rest)) = relative(text, anchor, WEEKS, WEEKS_AHEAD) {
        return week_or_month(rest, ago, anchor);
    }
    if let Some(rest) = strip_any(text, &["最近", "过去", "近"]) {
        let (count, rest) = number(rest)?;
        let (unit, rest) = counted_unit(rest)?;
        return Some((Days::past(today, unit, small(count)?)?, rest));
    }
    if let Some(rest) = week(text) {
        // 每周五 is every Friday, 一周三次 is three times a week, 下周五 is yet to come.
        let is_repeated = matches!(before, '每' | '各' | '下' | '半' | '整' | '第' | '个') || digit(before).is_some();
        let (weekday, rest) = weekday(rest)?;
        let is_count = rest.starts_with(['次', '天', '个', '节', '年', '遍', '期']);
        return Some((anchor.weekday(weekday)?, rest)).filter(|_| !is_repeated && !is_count);
    }
    if before == '第' || digit(before).is_some() {
        return None;
    }
    let (count, rest) = number(text)?;
    if let Some(year) = rest.strip_prefix('年').and_then(|_| year_from(count)) {
        let rest = rest.strip_prefix('年')?;
        return month_and_day(rest, Some(year), anchor).or(Some((Days::year(year)?, rest)));
    }
    if let Some((unit, rest)) = counted_unit(rest) {
        if anchor.is_future()
            && let Some(rest) = strip_any(rest, &["之后", "以后", "后"])
        {
            return Some((Days::ahead(today, unit, small(count)?)?, rest));
        }
        let rest = strip_any(rest, &["之前", "以前", "前"])?;
        return Some((Days::ago(today, unit, small(count)?)?, rest));
    }
    month_and_day(text, None, anchor)
}

/// Units before the present one; negative numbers are for the future tense.
type Offsets = &'static [(&'static str, i32)];

const DAYS: Offsets = &[
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
const DAYS_AHEAD: Offsets = &[("大后天", -3), ("后天", -2), ("明天", -1), ("明日", -1), ("明晚", -1), ("明早", -1)];
const YEARS: Offsets = &[("今年", 0), ("去年", 1), ("前年", 2)];
const YEARS_AHEAD: Offsets = &[("明年", -1)];
const WEEKS: Offsets = &[("上上", 2), ("上", 1), ("这", 0), ("本", 0)];
const WEEKS_AHEAD: Offsets = &[("下下", -2), ("下", -1)];

fn relative(text: &str, anchor: Anchor, past: Offsets, ahead: Offsets) -> Option<(i32, &str)> {
    let ahead = if anchor.is_future() { ahead } else { &[] };
    past.iter().chain(ahead).find_map(|(name, ago)| Some((*ago, text.strip_prefix(name)?)))
}

fn strip_any<'t>(text: &'t str, prefixes: &[&str]) -> Option<&'t str> {
    prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))
}

/// `text` follows 上, 这 or 下.
fn week_or_month(text: &str, ago: i32, anchor: Anchor) -> Option<(Days, &str)> {
    let unit = text.strip_prefix('个').unwrap_or(text);
    if let Some(rest) = unit.strip_prefix('月') {
        let month = Days::ago(anchor.today, Unit::Month, ago)?;
        let day = number(rest).and_then(|(day, rest)| Some((day, after_day(rest)?)));
        return match day {
            Some((day, rest)) => {
                let (year, month) = (month.from.year(), month.from.month());
                Some((anchor.named(Some(year), month, Some(i8::try_from(day).ok()?))?, rest))
            }
            None => Some((month, rest)),
        };
    }
    let rest = week(unit)?;
    match (rest.strip_prefix('末'), weekday(rest)) {
        (Some(rest), _) => Some((Days::weekend(anchor.today, ago)?, rest)),
        (_, Some((weekday, rest))) => Some((anchor.weekday_of_week(ago, weekday)?, rest)),
        // 本周期 is "this period".
        _ if rest.starts_with('期') => None,
        _ => Some((Days::ago(anchor.today, Unit::Week, ago)?, rest)),
    }
}

/// In the future tense, 5月8 as well as 5月8日.
fn month_and_day(text: &str, year: Option<i16>, anchor: Anchor) -> Option<(Days, &str)> {
    let (month, rest) = number(text)?;
    let month = i8::try_from(month).ok()?;
    let rest = rest.strip_prefix('月')?;
    let day = number(rest).and_then(|(day, rest)| {
        let rest = after_day(rest).or(anchor.is_future().then_some(rest))?;
        Some((i8::try_from(day).ok()?, rest))
    });
    match day {
        Some((day, rest)) => Some((anchor.named(year, month, Some(day))?, rest)),
        None => Some((anchor.named(year, month, None)?, rest)),
    }
}

fn after_day(text: &str) -> Option<&str> {
    text.strip_prefix(['日', '号'])
}

fn week(text: &str) -> Option<&str> {
    strip_any(text, &["周", "星期", "礼拜"])
}

fn weekday(text: &str) -> Option<(Weekday, &str)> {
    let name = text.chars().next()?;
    let offset = "一二三四五六日".chars().position(|other| other == if name == '天' { '日' } else { name })?;
    Some((Weekday::from_monday_zero_offset(offset.try_into().ok()?).ok()?, &text[name.len_utf8()..]))
}

fn counted_unit(text: &str) -> Option<(Unit, &str)> {
    if let Some(rest) = week(text.strip_prefix('个').unwrap_or(text)) {
        return Some((Unit::Week, rest));
    }
    [("天", Unit::Day), ("日", Unit::Day), ("个月", Unit::Month), ("年", Unit::Year)]
        .iter()
        .find_map(|(name, unit)| Some((*unit, text.strip_prefix(name)?)))
}

/// Excludes the -1 of [`number`].
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

/// 12, 十二, 二十一 or 二〇二三, and the rest. A number of more than four digits is -1.
fn number(text: &str) -> Option<(i32, &str)> {
    let end = text.char_indices().find(|(_, c)| digit(*c).is_none()).map_or(text.len(), |(at, _)| at);
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return None;
    }
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
