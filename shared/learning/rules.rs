//! Demo mode's extractor and summarizer: a few patterns in English and Chinese that show the loop (learn, use, correct) without a
//! model. They cover name, home, likes, allergies and exam dates, and a change of each; for anything else, configure a model.

use std::sync::LazyLock;

use jiff::civil::Date;
use regex::{Captures, Regex};

use super::{
    error::LearnError,
    fact::{Extractor, Fact, FactKind, FactStatus, KnownFact, MAX_FACTS, Statement},
    limits::MAX_SUMMARY_TOKENS,
    summarizer::{Exchange, Summarizer, clean_title, ellipsize},
};
use crate::{
    facts::{normalized, sentences},
    language::Language,
    llm::estimate_tokens,
    memory::Metadata,
    temporal,
};

/// Metadata key. Of two facts with the same subject the later one supersedes the earlier.
const SUBJECT: &str = "subject";
const SUMMARY_LINE_CHARS: usize = 80;

/// Suppositions, reported speech and the past: the sentence states nothing about the user as of now.
static NOT_STATED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(?:if|suppose|imagine|pretend|used to|would|wish|maybe|perhaps|was|says?|said|not sure)\b|如果|假如|假设|要是|以前|曾经|也许|可能|怎么(?:说|写|翻译)").ok()
});
/// Values that mean nothing without their context, or are about the assistant.
static VAGUE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)^(?:it|this|that|these|those|them|your?|how|what|when|the way|to)\b|^[你您这那它他她什]").ok()
});

/// The group `v` of the pattern is the value, a match of `not` negates the statement.
struct Rule {
    kind: FactKind,
    subject: &'static str,
    /// Affirmative and negated, as strftime formats; `{v}` stands for the value. A negation without a content is ignored.
    contents: [&'static str; 2],
    pattern: Regex,
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    const NAME: &str = r"(?P<v>\p{Lu}[\p{L}'-]*(?: \p{Lu}[\p{L}'-]*){0,4})";
    const I: &str = "(?: now| currently| really| also| still| just| actually| recently| always)*";
    const END: &str =
        r"(?: (?:any ?more|now|a lot|very much|too|after all|by the way|because|but|so|and i)\b|[.,;:!…]|$)";
    const ZH_END: &str = "(?:了|吧|就好|就行|[，。！；,!…]|$)";
    let rule = |kind, subject, contents, pattern: String| {
        Some(Rule { kind, subject, contents, pattern: Regex::new(&pattern).ok()? })
    };
    use FactKind::{Event, Health, Identity, Place, Preference};
    let rules = [
        rule(
            Identity,
            "name",
            ["The user's name is {v}.", ""],
            format!(r"\b(?i:my name is(?: now)?|call me|(?:hi|hello|hey),? (?:i'm|i am)) {NAME}"),
        ),
        rule(
            Identity,
            "name",
            ["用户的名字是{v}。", ""],
            format!(
                r"(?:我(?:的名字(?:是|叫)|改名叫|叫)|(?:^|请|，)(?:叫|称呼)我)(?P<v>[\p{{Han}}--[了什我你您他她它起不]]\p{{Han}}{{1,3}}?){ZH_END}"
            ),
        ),
        rule(
            Place,
            "home",
            ["The user lives in {v}.", ""],
            format!(r"\b(?i:i(?:'m|'ve| am| have)?{I} (?:live|living|based|moved|relocated) (?:in|to)) {NAME}"),
        ),
        rule(
            Place,
            "home",
            ["用户住在{v}。", ""],
            format!(r"我(?:现在|已经|目前|刚)*(?:家在|住在|搬到了?|搬去)(?P<v>\p{{Han}}{{2,8}}?){ZH_END}"),
        ),
        rule(
            Preference,
            "taste:{v}",
            ["The user likes {v}.", "The user dislikes {v}."],
            format!(
                r"(?i)\bi{I}(?P<not> don't| do not| no longer)?{I} (?:like|love|enjoy) (?P<v>[\p{{L}}\d' -]{{2,60}}?){END}"
            ),
        ),
        rule(
            Preference,
            "taste:{v}",
            ["用户喜欢{v}。", "用户不喜欢{v}。"],
            format!(
                r"我(?:现在|其实|真的|非常|特别|很|也|还|最|比较)*(?P<not>不(?:太|再)?)?(?:喜欢|爱)(?P<v>[\p{{Han}}\w《》]{{1,30}}?){ZH_END}"
            ),
        ),
        rule(
            Health,
            "allergy:{v}",
            ["The user is allergic to {v}.", "The user is not allergic to {v}."],
            format!(r"(?i)\bi(?:'m| am){I}(?P<not> not| no longer)?{I} allergic to (?P<v>[\p{{L}}' -]{{2,60}}?){END}"),
        ),
        rule(
            Health,
            "allergy:{v}",
            ["用户对{v}过敏。", "用户对{v}不过敏。"],
            r"我对(?P<v>[\p{Han}\w]{1,12}?)(?:其实|现在|已经)?(?P<not>不再?)?过敏".to_owned(),
        ),
        rule(
            Event,
            "event:{v}",
            ["The user's {v} is on %Y-%m-%d.", ""],
            r"(?i)\b(?:my|i have an?|i have the) (?P<v>(?:[\p{L}-]+ ){0,3}?(?:exam|test))\b".to_owned(),
        ),
        rule(
            Event,
            "event:{v}",
            ["用户的{v}在%Y年%-m月%-d日。", ""],
            r"(?:^|有|的|，|我)(?P<v>[\p{Han}\w--[有的我]]{1,8}?考试)".to_owned(),
        ),
    ];
    rules.into_iter().flatten().collect()
});

impl Rule {
    fn find(&self, stated: &str, today: Date) -> Vec<Fact> {
        let (text, date) = if self.kind == FactKind::Event {
            let Some((date, words)) = temporal::upcoming_day(stated, today) else { return Vec::new() };
            (stated.replacen(words, "", 1), Some(date))
        } else {
            (stated.to_owned(), None)
        };
        self.pattern.captures_iter(&text).filter_map(|captures| self.read(&captures, date, stated)).collect()
    }

    fn read(&self, captures: &Captures<'_>, date: Option<Date>, quote: &str) -> Option<Fact> {
        let value = captures["v"].trim();
        let content = self.contents[usize::from(captures.name("not").is_some())];
        if content.is_empty() || VAGUE.as_ref().is_none_or(|vague| vague.is_match(value)) {
            return None;
        }
        let content = date.map_or_else(|| content.to_owned(), |date| date.strftime(content).to_string());
        let subject = self.subject.replace("{v}", &normalized(value));
        Some(Fact {
            kind: self.kind,
            content: content.replace("{v}", value),
            quote: quote.to_owned(),
            date,
            status: FactStatus::New,
            metadata: Metadata::from([(SUBJECT.to_owned(), subject)]),
        })
    }
}

/// The facts in a statement, each subject once and as it was said last.
fn find(statement: &Statement) -> Vec<Fact> {
    let mut facts: Vec<Fact> = Vec::new();
    for range in sentences(&statement.text) {
        let sentence = statement.text[range].trim().replace('’', "'");
        // "I'm allergic to nuts, what can I eat?" states something before its question.
        let stated = match sentence.split_once([',', '，']) {
            Some((stated, _)) if sentence.ends_with(['?', '？']) => stated,
            None if sentence.ends_with(['?', '？']) => continue,
            _ => &sentence,
        };
        if NOT_STATED.as_ref().is_none_or(|pattern| pattern.is_match(&sentence)) {
            continue;
        }
        for fact in RULES.iter().flat_map(|rule| rule.find(stated, statement.today())) {
            facts.retain(|earlier| earlier.metadata != fact.metadata);
            facts.push(fact);
        }
    }
    facts.truncate(MAX_FACTS);
    facts
}

fn status(fact: &Fact, known: &[KnownFact]) -> FactStatus {
    let content = normalized(&fact.content);
    if let Some(duplicate) = known.iter().find(|known| normalized(&known.content) == content) {
        return FactStatus::Duplicate(duplicate.id.clone());
    }
    let same_subject = known.iter().filter(|known| known.metadata.get(SUBJECT) == fact.metadata.get(SUBJECT));
    let ids: Vec<String> = same_subject.map(|known| known.id.clone()).collect();
    if ids.is_empty() { FactStatus::New } else { FactStatus::Supersedes(ids) }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct RuleExtractor;

#[async_trait::async_trait]
impl Extractor for RuleExtractor {
    fn topics(&self, statement: &Statement) -> Vec<String> {
        find(statement).into_iter().map(|fact| fact.content).collect()
    }

    async fn extract(&self, statement: &Statement, known: &[KnownFact]) -> Result<Vec<Fact>, LearnError> {
        Ok(find(statement).into_iter().map(|fact| Fact { status: status(&fact, known), ..fact }).collect())
    }
}

/// Takes the title from the first question, and lists the questions as the summary.
#[derive(Debug, Clone, Copy, Default)]
pub struct RuleSummarizer;

#[async_trait::async_trait]
impl Summarizer for RuleSummarizer {
    async fn generate_title(&self, first: &Exchange) -> Result<String, LearnError> {
        clean_title(first_sentence(&first.user)).ok_or(LearnError::Malformed("the title is blank"))
    }

    async fn summarize(&self, previous: &str, turns: &[Exchange]) -> Result<String, LearnError> {
        let user = turns.last().map_or(previous, |turn| turn.user.as_str());
        let heading = Language::detect(user).pick("The user asked, in this order:", "用户依次问过：");
        let asked = turns.iter().map(|turn| format!("- {}", ellipsize(first_sentence(&turn.user), SUMMARY_LINE_CHARS)));
        let previous = previous.lines().filter(|line| line.starts_with("- ")).map(str::to_owned);
        let mut lines: Vec<String> = previous.chain(asked).collect();
        let tokens = |lines: &[String]| lines.iter().map(|line| estimate_tokens(line) + 1).sum::<u32>();
        while lines.len() > 1 && tokens(&lines) + estimate_tokens(heading) > MAX_SUMMARY_TOKENS {
            lines.remove(0);
        }
        Ok(format!("{heading}\n{}", lines.join("\n")))
    }
}

fn first_sentence(text: &str) -> &str {
    let line = text.lines().map(str::trim).find(|line| line.contains(char::is_alphanumeric)).unwrap_or_default();
    sentences(line).into_iter().next().map_or(line, |range| line[range].trim())
}

#[cfg(test)]
mod tests;
