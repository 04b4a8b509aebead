//! Facts by rules: what people commonly say of themselves, in English and in Chinese. They need no model and no key, find
//! less than a model does, and never guess.

mod chinese;
mod english;

use std::collections::BTreeMap;

use jiff::civil::Date;
use regex::{Captures, Regex};

use super::{
    Extractor, Fact, FactKind, FactStatus, KnownFact, LearnError, Statement,
    fact::MAX_FACTS,
    own_words::{folded, sentences},
};
use crate::{language::Language, memory::Metadata};

/// What a fact is about, in its metadata. Of two facts about the same the later one counts.
const SUBJECT: &str = "subject";
/// What it says of that, in its metadata.
const VALUE: &str = "value";
/// Most characters of what a rule takes out of a sentence.
const MAX_VALUE_CHARS: usize = 60;

/// Finds facts by rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct RuleExtractor;

/// What a rule found in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    kind: FactKind,
    /// What it is about, such as `home` or `taste:tea`.
    subject: String,
    /// What it says of that.
    value: String,
    /// The whole fact.
    content: String,
    date: Option<Date>,
    /// Where it was found.
    quote: String,
}

/// What a rule makes of a sentence that it matches.
struct Reading {
    subject: String,
    value: String,
    content: String,
}

/// What is made of the parts of a sentence; `None` = it only looked like one.
type Read = fn(&Parts<'_>) -> Option<Reading>;

/// A sentence that people say of themselves.
struct Rule {
    kind: FactKind,
    pattern: Regex,
    read: Read,
}

/// The named parts of a sentence.
struct Parts<'s>(Captures<'s>);

impl Parts<'_> {
    /// A part as it stands there; empty where the sentence has none.
    fn get(&self, name: &str) -> &str {
        self.0.name(name).map_or("", |part| part.as_str().trim_end_matches(['.', '!', ',', ' ']).trim_start())
    }
}

/// Rules with their patterns; a test shows that none is lost.
fn compiled(rules: Vec<(FactKind, String, Read)>) -> Vec<Rule> {
    rules
        .into_iter()
        .filter_map(|(kind, pattern, read)| Some(Rule { kind, pattern: Regex::new(&pattern).ok()?, read }))
        .collect()
}

impl Reading {
    fn new(subject: impl Into<String>, value: &str, content: impl Into<String>) -> Option<Self> {
        let is_short = (1..=MAX_VALUE_CHARS).contains(&value.chars().count());
        is_short.then(|| Self { subject: folded(&subject.into()), value: folded(value), content: content.into() })
    }
}

/// The first rule that reads a clause.
fn read(rules: &[Rule], clause: &str, quote: &str) -> Option<Found> {
    rules.iter().find_map(|rule| {
        let parts = Parts(rule.pattern.captures(clause)?);
        let Reading { subject, value, content } = (rule.read)(&parts)?;
        Some(Found { kind: rule.kind, subject, value, content, date: None, quote: quote.to_owned() })
    })
}

/// Everything that the rules find, each subject once and as it was said last.
fn find(said: &Statement) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for range in sentences(&said.text) {
        let sentence = said.text[range].trim();
        let new = match Language::detect(sentence) {
            Language::Chinese => chinese::find(sentence, said.today()),
            Language::English => english::find(sentence, said.today()),
        };
        for fact in new {
            found.retain(|earlier| earlier.subject != fact.subject);
            found.push(fact);
        }
    }
    found.truncate(MAX_FACTS);
    found
}

/// How a fact stands to those that are known.
fn standing(found: &Found, known: &[KnownFact]) -> FactStatus {
    let about_the_same: Vec<&KnownFact> =
        known.iter().filter(|fact| fact.metadata.get(SUBJECT) == Some(&found.subject)).collect();
    let says_the_same = |fact: &&KnownFact| fact.metadata.get(VALUE) == Some(&found.value);
    // Facts that no rule has made have no subject.
    let in_the_same_words = |fact: &&KnownFact| folded(&fact.content) == folded(&found.content);
    if let Some(same) =
        about_the_same.iter().copied().find(says_the_same).or_else(|| known.iter().find(in_the_same_words))
    {
        return FactStatus::Duplicate(same.id.clone());
    }
    if about_the_same.is_empty() {
        return FactStatus::New;
    }
    FactStatus::Supersedes(about_the_same.into_iter().map(|fact| fact.id.clone()).collect())
}

#[async_trait::async_trait]
impl Extractor for RuleExtractor {
    fn topics(&self, said: &Statement) -> Vec<String> {
        find(said).into_iter().map(|found| found.content).collect()
    }

    async fn extract(&self, said: &Statement, known: &[KnownFact]) -> Result<Vec<Fact>, LearnError> {
        let facts = find(said).into_iter().map(|found| {
            let status = standing(&found, known);
            let metadata: Metadata =
                BTreeMap::from([(SUBJECT.to_owned(), found.subject), (VALUE.to_owned(), found.value)]);
            Fact { kind: found.kind, content: found.content, quote: found.quote, date: found.date, status, metadata }
        });
        Ok(facts.collect())
    }
}

#[cfg(test)]
mod tests;
