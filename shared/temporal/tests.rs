use jiff::civil::date;
use proptest::prelude::*;

use super::*;

const SHANGHAI: &str = "Asia/Shanghai";

fn at(query: &str, now: Date, zone: &str) -> String {
    let zone = TimeZone::get(zone).unwrap();
    let now = now.at(12, 0, 0, 0).to_zoned(zone.clone()).unwrap().timestamp();
    let day = |instant: Timestamp| instant.to_zoned(zone.clone()).date().to_string();
    let spans = past_spans(query, now, &zone);
    spans.iter().map(|span| format!("{}..{}", day(span.from), day(span.before))).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn assert_spans(now: Date, cases: &[(&str, &str)]) {
    for (query, expected) in cases {
        assert_eq!(at(query, now, SHANGHAI), *expected, "{query}");
    }
}

#[test]
fn past_english_phrases_follow_the_calendar() {
    assert_spans(
        date(2024, 3, 13),
        &[
            ("What did I eat today?", "2024-03-13..2024-03-14"),
            ("yesterday's homework", "2024-03-12..2024-03-13"),
            ("the day before yesterday", "2024-03-11..2024-03-12"),
            ("this morning", "2024-03-13..2024-03-14"),
            ("last night", "2024-03-12..2024-03-13"),
            ("What did we do last week?", "2024-03-04..2024-03-11"),
            ("this week", "2024-03-11..2024-03-18"),
            ("last weekend", "2024-03-09..2024-03-11"),
            ("last month", "2024-02-01..2024-03-01"),
            ("this month", "2024-03-01..2024-04-01"),
            ("last year", "2023-01-01..2024-01-01"),
            ("the past week", "2024-03-06..2024-03-14"),
            ("in the last 3 months", "2023-12-13..2024-03-14"),
            ("two weeks ago", "2024-02-26..2024-03-04"),
            ("3 days ago", "2024-03-10..2024-03-11"),
            ("a month ago", "2024-02-01..2024-03-01"),
            ("a few days ago", "2024-03-08..2024-03-12"),
            ("a couple of years ago", "2022-01-01..2023-01-01"),
            ("last Friday", "2024-03-08..2024-03-09"),
            ("last Wednesday", "2024-03-06..2024-03-07"),
            ("on Wednesday", "2024-03-13..2024-03-14"),
            ("on Thursday", "2024-03-07..2024-03-08"),
            ("this Friday", "2024-03-15..2024-03-16"),
            ("last summer", "2023-06-01..2023-09-01"),
            ("last winter", "2023-12-01..2024-03-01"),
            ("this spring", "2024-03-01..2024-06-01"),
            ("yesterday and last week", "2024-03-12..2024-03-13 2024-03-04..2024-03-11"),
            ("today, today", "2024-03-13..2024-03-14"),
            ("since last month", "2024-02-01..2024-03-14"),
            ("since 2023", "2023-01-01..2024-03-14"),
        ],
    );
}

#[test]
fn past_english_date_without_year_is_the_latest() {
    assert_spans(
        date(2024, 3, 13),
        &[
            ("in March", "2024-03-01..2024-04-01"),
            ("in march?", "2024-03-01..2024-04-01"),
            ("last March", "2023-03-01..2023-04-01"),
            ("in April", "2023-04-01..2023-05-01"),
            ("in Dec", "2023-12-01..2024-01-01"),
            ("in May 2023", "2023-05-01..2023-06-01"),
            ("may 2023", "2023-05-01..2023-06-01"),
            ("on 8 May 2023", "2023-05-08..2023-05-09"),
            ("the 8th of May, 2023", "2023-05-08..2023-05-09"),
            ("May 8, 2023", "2023-05-08..2023-05-09"),
            ("On Monday, May 8th, 2023", "2023-05-08..2023-05-09"),
            ("March 14", "2023-03-14..2023-03-15"),
            ("March 13", "2024-03-13..2024-03-14"),
            ("February 29", "2024-02-29..2024-03-01"),
            ("2023-05-08 and 2023/5/9", "2023-05-08..2023-05-09 2023-05-09..2023-05-10"),
            ("2023-05", "2023-05-01..2023-06-01"),
            ("in 2022", "2022-01-01..2023-01-01"),
            ("the summer of 2022", "2022-01-01..2023-01-01"),
        ],
    );
    assert_spans(date(2023, 3, 1), &[("on February 29", "2020-02-29..2020-03-01")]);
}

#[test]
fn past_chinese_phrases_follow_the_calendar() {
    assert_spans(
        date(2024, 3, 13),
        &[
            ("我今天吃了什么", "2024-03-13..2024-03-14"),
            ("昨天的作业", "2024-03-12..2024-03-13"),
            ("前天呢", "2024-03-11..2024-03-12"),
            ("大前天", "2024-03-10..2024-03-11"),
            ("上周我们去哪儿了", "2024-03-04..2024-03-11"),
            ("上上个星期", "2024-02-26..2024-03-04"),
            ("这周", "2024-03-11..2024-03-18"),
            ("本周", "2024-03-11..2024-03-18"),
            ("上周五", "2024-03-08..2024-03-09"),
            ("上個禮拜天", "2024-03-10..2024-03-11"),
            ("上周末", "2024-03-09..2024-03-11"),
            ("周五", "2024-03-08..2024-03-09"),
            ("星期三", "2024-03-13..2024-03-14"),
            ("上个月", "2024-02-01..2024-03-01"),
            ("上个月5号", "2024-02-05..2024-02-06"),
            ("本月", "2024-03-01..2024-04-01"),
            ("去年", "2023-01-01..2024-01-01"),
            ("今年", "2024-01-01..2025-01-01"),
            ("去年三月", "2023-03-01..2023-04-01"),
            ("三天前", "2024-03-10..2024-03-11"),
            ("两周前", "2024-02-26..2024-03-04"),
            ("2个月之前", "2024-01-01..2024-02-01"),
            ("十年前", "2014-01-01..2015-01-01"),
            ("最近三天", "2024-03-10..2024-03-14"),
            ("三月", "2024-03-01..2024-04-01"),
            ("十二月", "2023-12-01..2024-01-01"),
            ("1月", "2024-01-01..2024-02-01"),
            ("二月份", "2024-02-01..2024-03-01"),
            ("2023年5月", "2023-05-01..2023-06-01"),
            ("２０２３年５月８日", "2023-05-08..2023-05-09"),
            ("二〇二三年五月八号", "2023-05-08..2023-05-09"),
            ("5月8日", "2023-05-08..2023-05-09"),
            ("2022年的事", "2022-01-01..2023-01-01"),
        ],
    );
}

#[test]
fn past_lookalikes_have_no_span() {
    for query in [
        "May I ask you something?",
        "It may 5 times fail",
        "this may be it",
        "we march on, they march 20 miles",
        "Sunday school",
        "What does April like? A photo of June",
        "my last name and the last day of school",
        "the second, at the last minute",
        "2023 pages, in 2000 words",
        "the last week of term",
        "a week, two months, day by day",
        "room 2023.05, version 1.2.3, 2023-13-01, 2023-02-30, 31 June",
        "第一天",
        "第三周五个人",
        "每周五，一周三次",
        "目前天气",
        "三年，两个月，五天",
        "2023页，13月",
        "岁月，每月",
        "",
    ] {
        assert_eq!(at(query, date(2024, 3, 13), SHANGHAI), "", "{query}");
    }
}

#[test]
fn past_spans_respect_month_and_year_borders() {
    assert_spans(
        date(2024, 1, 1),
        &[
            ("yesterday", "2023-12-31..2024-01-01"),
            ("last week", "2023-12-25..2024-01-01"),
            ("last month", "2023-12-01..2024-01-01"),
            ("last December", "2023-12-01..2024-01-01"),
            ("last winter", "2022-12-01..2023-03-01"),
            ("this winter", "2023-12-01..2024-03-01"),
            ("in January", "2024-01-01..2024-02-01"),
            ("上周日", "2023-12-31..2024-01-01"),
        ],
    );
    // A month before the 31st, and a Sunday, which ends its week.
    assert_spans(
        date(2024, 3, 31),
        &[
            ("a month ago", "2024-02-01..2024-03-01"),
            ("the past month", "2024-02-29..2024-04-01"),
            ("this week", "2024-03-25..2024-04-01"),
            ("周一", "2024-03-25..2024-03-26"),
        ],
    );
}

#[test]
fn past_days_follow_the_zone_across_clock_changes() {
    let zone = TimeZone::get("America/New_York").unwrap();
    let hours = |query, now: &str| {
        let spans = past_spans(query, now.parse().unwrap(), &zone);
        spans.iter().map(|span| (span.before.as_second() - span.from.as_second()) / 3_600).collect::<Vec<_>>()
    };
    assert_eq!(hours("yesterday", "2024-03-11T12:00:00Z"), [23]);
    assert_eq!(hours("yesterday", "2024-11-04T12:00:00Z"), [25]);
    let late = past_spans("today", "2024-06-02T02:00:00Z".parse().unwrap(), &zone);
    assert_eq!(late[0].from, "2024-06-01T04:00:00Z".parse().unwrap());
    // In São Paulo, midnight of this day did not exist.
    assert_eq!(at("yesterday", date(2018, 11, 5), "America/Sao_Paulo"), "2018-11-04..2018-11-05");
}

proptest! {
    #[test]
    fn past_spans_of_any_text_are_not_empty(
        words in prop::collection::vec(
            "\\PC{0,5}|last|this|past|since|in|on|ago|[0-9]{1,5}|two|weeks?|years|May|march|winter|Friday\
             |20[0-9]{2}-[0-9]{1,2}-[0-9]{1,2}\
             |上|这|个|周|月|年|日|前|天|去年|最近|[0-9一二十两]{1,5}", 0..12),
        space in "[ ]?",
        now in Timestamp::MIN.as_second()..=Timestamp::MAX.as_second(),
    ) {
        let now = Timestamp::from_second(now).unwrap();
        for span in past_spans(&words.join(&space), now, &TimeZone::fixed(jiff::tz::offset(-8))) {
            prop_assert!(span.from < span.before);
        }
    }
}

#[test]
fn past_spans_are_limited_to_the_first_16() {
    let text = (1..=28).map(|day| format!("2023-05-{day:02}")).collect::<Vec<_>>().join(", ");
    let named = at(&text, date(2024, 3, 13), SHANGHAI);
    assert_eq!(named.split(' ').count(), 16);
    assert!(named.starts_with("2023-05-01..2023-05-02 2023-05-02"), "{named}");
}

const MONDAY: Date = date(2026, 11, 23);

#[track_caller]
fn assert_upcoming(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let day = upcoming_day(text, MONDAY).map_or_else(|| "none".to_owned(), |(day, _)| day.to_string());
        assert_eq!(day, *expected, "{text}");
    }
}

#[test]
fn upcoming_english_day_is_found() {
    assert_upcoming(&[
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
        ("yesterday they moved it from 2026-11-02 to Friday", "2026-11-27"),
        ("I may go in the second march", "none"),
        ("on February 30", "none"),
        ("in May 2027", "none"),
    ]);
}

#[test]
fn upcoming_chinese_day_is_found() {
    assert_upcoming(&[
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
        ("12月5考试", "2026-12-05"),
        ("十二月二十五号", "2026-12-25"),
        ("6月7号高考", "2027-06-07"),
        ("明年6月7日", "2027-06-07"),
        ("2027年1月9日", "2027-01-09"),
        ("下个月3号", "2026-12-03"),
        ("2027/3/1", "2027-03-01"),
        ("每天都要学习", "none"),
    ]);
}

#[test]
fn upcoming_day_names_its_words() {
    for (text, words) in [
        ("my exam is on Friday, May 5 2028.", "on Friday, May 5 2028"),
        ("exam in about two weeks' time", "in about two weeks' time"),
        ("高数考试在下周五上午", "下周五"),
        ("考试是１２月５号哦", "１２月５号"),
    ] {
        assert_eq!(upcoming_day(text, MONDAY).map(|(_, words)| words), Some(words), "{text}");
    }
}

#[test]
fn upcoming_weekday_that_has_passed_is_of_next_week() {
    let saturday = date(2026, 11, 28);
    for text in ["this Friday", "Friday", "on Friday", "这周五", "周五"] {
        assert_eq!(upcoming_day(text, saturday).map(|(day, _)| day), Some(date(2026, 12, 4)), "{text}");
    }
}
