use jiff::{Timestamp, tz::TimeZone};

use super::*;

fn statement(text: &str) -> Statement {
    // A Monday.
    let said_at: Timestamp = "2026-11-23T02:00:00Z".parse().unwrap();
    let zone = TimeZone::get("Asia/Shanghai").unwrap();
    Statement { text: text.into(), language: Language::detect(text), said_at, zone }
}

async fn facts(text: &str) -> Vec<String> {
    let statement = statement(text);
    let facts = RuleExtractor.extract(&statement, &[]).await.unwrap();
    for fact in &facts {
        assert_eq!(fact.check(&statement), Ok(()), "{text}: {fact:?}");
    }
    facts.into_iter().map(|fact| fact.content).collect()
}

#[test]
fn all_patterns_compile() {
    assert!(NOT_STATED.is_some() && VAGUE.is_some());
    assert_eq!(RULES.len(), 10, "five topics in two languages");
}

#[tokio::test]
async fn rules_find_each_topic_in_both_languages() {
    for (text, expected) in [
        ("Hi, I'm Ann.", &["The user's name is Ann."][..]),
        ("My name is Bob and I live in New York.", &["The user's name is Bob.", "The user lives in New York."]),
        ("I've moved to Paris.", &["The user lives in Paris."]),
        ("I really like linear algebra.", &["The user likes linear algebra."]),
        ("I don't like coffee any more.", &["The user dislikes coffee."]),
        ("I'm allergic to nuts, what can I eat?", &["The user is allergic to nuts."]),
        ("I am not allergic to peanuts after all.", &["The user is not allergic to peanuts."]),
        ("My calculus exam is next Friday.", &["The user's calculus exam is on 2026-12-04."]),
        ("你好，我叫小明，我住在杭州。", &["用户的名字是小明。", "用户住在杭州。"]),
        ("我搬到上海了。", &["用户住在上海。"]),
        ("我喜欢用图解学习。", &["用户喜欢用图解学习。"]),
        ("我不太喜欢背单词。", &["用户不喜欢背单词。"]),
        ("我对牛奶过敏，早餐吃什么好？", &["用户对牛奶过敏。"]),
        ("其实我对花生不过敏。", &["用户对花生不过敏。"]),
        ("我下周五有高数考试。", &["用户的高数考试在2026年12月4日。"]),
        ("高数考试改到12月10号了", &["用户的高数考试在2026年12月10日。"]),
    ] {
        assert_eq!(facts(text).await, expected, "{text}");
    }
}

#[tokio::test]
async fn rules_ignore_questions_suppositions_and_others() {
    for text in [
        "What is my name?",
        "Do I like tea?",
        "If I lived in Paris, I would like French.",
        "I used to live in Rome.",
        "My sister is allergic to peanuts.",
        "My sister's exam is tomorrow.",
        "I love it!",
        "I like the way you explain.",
        "Call me later.",
        "我叫什么名字？",
        "我叫了外卖。",
        "我是不是住在北京？",
        "如果我住在北京，我会去爬长城。",
        "我妹妹对花生过敏。",
        "我喜欢你的讲解。",
        "我叫小明，用英语怎么说？",
    ] {
        assert_eq!(facts(text).await, [""; 0], "{text}");
    }
}

#[tokio::test]
async fn changed_statement_supersedes_the_known_fact() {
    let mut known = Vec::new();
    for (id, text) in
        [("home", "I live in Berlin."), ("tea", "I like tea."), ("exam", "My calculus exam is next Friday.")]
    {
        let Fact { content, metadata, .. } = find(&statement(text)).remove(0);
        known.push(KnownFact { id: id.into(), content, said_at: statement(text).said_at, metadata });
    }
    let status = |text: &str| status(&find(&statement(text)).remove(0), &known);
    assert_eq!(status("I'm based in Berlin now."), FactStatus::Duplicate("home".into()));
    assert_eq!(status("I moved to Rome."), FactStatus::Supersedes(vec!["home".into()]));
    assert_eq!(status("I don't like tea any more."), FactStatus::Supersedes(vec!["tea".into()]));
    assert_eq!(status("I like coffee."), FactStatus::New);
    assert_eq!(status("My calculus exam is on December 10."), FactStatus::Supersedes(vec!["exam".into()]));
}

#[tokio::test]
async fn summarizer_titles_and_lists_the_questions() {
    let turn = |user: &str| Exchange { user: user.into(), assistant: String::new() };
    assert_eq!(RuleSummarizer.generate_title(&turn("什么是极限？请举例。")).await.unwrap(), "什么是极限？");
    let questions = [turn("What is a limit? Tell me."), turn("And a series?")];
    let first = RuleSummarizer.summarize("", &questions).await.unwrap();
    assert_eq!(first, "The user asked, in this order:\n- What is a limit?\n- And a series?");
    let second = RuleSummarizer.summarize(&first, &[turn("Thanks! Bye.")]).await.unwrap();
    assert!(second.ends_with("- What is a limit?\n- And a series?\n- Thanks!"));
    let many: Vec<_> =
        (0..200).map(|n| turn(&format!("What is the meaning of the number {n} in this book?"))).collect();
    let summary = RuleSummarizer.summarize(&second, &many).await.unwrap();
    assert!(estimate_tokens(&summary) <= MAX_SUMMARY_TOKENS && summary.contains("number 199"), "the latest stay");
}
