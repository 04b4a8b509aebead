//! Facts as a model finds them. What it gives is checked against what it was asked for, and then by [`Fact::check`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use jiff::{ToSpan as _, civil::Date};
use minijinja::Environment;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::{
    Extractor, Fact, FactKind, FactStatus, KnownFact, LearnError, Statement, fact::MAX_FACTS, own_words::sentences,
};
use crate::{
    language::Language,
    llm::{ChatModel, Finish, Message, ModelEvent, ModelRequest},
    memory::{MAX_QUERY_BYTES, Metadata},
};

/// Longest that one answer may take.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Most tokens of the answer with facts.
const MAX_TOKENS: u32 = 1_500;
/// Most sentences by which known facts are looked up.
const MAX_TOPICS: usize = 6;
/// Days of the calendar that the model is given, so that it need not reckon.
const CALENDAR_DAYS: i32 = 21;

const ENGLISH: &str = include_str!("prompts/extract.en.md");
const CHINESE: &str = include_str!("prompts/extract.zh.md");

/// Finds facts by asking a model.
pub struct ModelExtractor {
    model: Arc<dyn ChatModel>,
}

/// What the model is told, as JSON.
#[derive(Serialize)]
struct Question<'a> {
    today: String,
    calendar: Vec<String>,
    known_facts: Vec<KnownFactOfQuestion<'a>>,
    message: &'a str,
}

#[derive(Serialize)]
struct KnownFactOfQuestion<'a> {
    id: String,
    said_on: String,
    fact: &'a str,
}

/// What the model has to give.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    facts: Vec<FactOfAnswer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FactOfAnswer {
    kind: FactKind,
    fact: String,
    quote: String,
    #[serde(default)]
    date: Option<String>,
    #[serde(default)]
    same_as: Option<String>,
    #[serde(default)]
    replaces: Vec<String>,
}

impl ModelExtractor {
    /// An extractor that asks this model, where a request names none.
    #[must_use]
    pub fn new(model: Arc<dyn ChatModel>) -> Self {
        Self { model }
    }
}

#[async_trait::async_trait]
impl Extractor for ModelExtractor {
    fn topics(&self, said: &Statement) -> Vec<String> {
        let words = said.text.as_str();
        let ranges = sentences(words);
        // A long message is about several things, each of which may be known.
        let each = ranges.iter().take(MAX_TOPICS).map(|range| &words[range.clone()]);
        let topics = if ranges.len() > 1 { each.collect() } else { vec![words] };
        topics.into_iter().map(|topic| topic[..topic.floor_char_boundary(MAX_QUERY_BYTES)].to_owned()).collect()
    }

    async fn extract(&self, said: &Statement, known: &[KnownFact]) -> Result<Vec<Fact>, LearnError> {
        let question = serde_json::to_string(&Question::new(said, known))
            .map_err(|_| LearnError::Malformed("the question can not be written"))?;
        let instructions = prompt(said.language.pick(ENGLISH, CHINESE), said.language)?;
        let answer = ask(&self.model, instructions, question, MAX_TOKENS).await?;
        let answer: Answer = serde_json::from_str(without_fence(&answer))
            .map_err(|_| LearnError::Malformed("it is no JSON of the form that was asked for"))?;
        if answer.facts.len() > MAX_FACTS {
            return Err(LearnError::Malformed("there are too many facts"));
        }
        let offered: HashMap<String, &str> =
            known.iter().enumerate().map(|(index, fact)| (name(index), fact.id.as_str())).collect();
        answer.facts.into_iter().map(|fact| fact.parse(&offered)).collect()
    }
}

impl<'a> Question<'a> {
    fn new(said: &'a Statement, known: &'a [KnownFact]) -> Self {
        let day = |date: Date| date.strftime("%Y-%m-%d %A").to_string();
        let today = said.today();
        let calendar = (1..=CALENDAR_DAYS).filter_map(|ahead| today.checked_add(ahead.days()).ok()).map(day).collect();
        let known_facts = known.iter().enumerate().map(|(index, fact)| KnownFactOfQuestion {
            id: name(index),
            said_on: fact.said_at.to_zoned(said.zone.clone()).date().to_string(),
            fact: &fact.content,
        });
        Self { today: day(today), calendar, known_facts: known_facts.collect(), message: &said.text }
    }
}

/// What a known fact is called in the question: short, and so that no other can be guessed.
fn name(index: usize) -> String {
    format!("k{}", index + 1)
}

impl FactOfAnswer {
    fn parse(self, offered: &HashMap<String, &str>) -> Result<Fact, LearnError> {
        let known = |name: &String| {
            let id = offered.get(name).ok_or(LearnError::Malformed("it names a fact that it was not given"))?;
            Ok::<_, LearnError>((*id).to_owned())
        };
        let standing = match (&self.same_as, self.replaces.as_slice()) {
            (None, []) => FactStatus::New,
            (Some(same), []) => FactStatus::Duplicate(known(same)?),
            (None, replaced) => FactStatus::Supersedes(replaced.iter().map(known).collect::<Result<_, _>>()?),
            (Some(_), _) => return Err(LearnError::Malformed("a fact repeats one and replaces another")),
        };
        let date = self.date.map(|date| date.parse()).transpose();
        Ok(Fact {
            kind: self.kind,
            content: self.fact.trim().to_owned(),
            quote: self.quote,
            date: date.map_err(|_| LearnError::Malformed("a date is none"))?,
            status: standing,
            metadata: Metadata::new(),
        })
    }
}

/// The text without the fence of code that models like to put around JSON.
fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```json").or_else(|| text.strip_prefix("```"));
    inner.and_then(|inner| inner.strip_suffix("```")).unwrap_or(text)
}

/// A prompt for one language.
pub(super) fn prompt(template: &str, language: Language) -> Result<String, minijinja::Error> {
    let name = language.pick("en", "zh");
    Environment::new().render_named_str(name, template, minijinja::context! {})
}

/// The whole answer of a model that is told one thing.
pub(super) async fn ask(
    model: &Arc<dyn ChatModel>,
    instructions: String,
    data: String,
    max_tokens: u32,
) -> Result<String, LearnError> {
    let request = ModelRequest {
        model: None,
        messages: Arc::new(vec![Message::System(instructions), Message::User(data)]),
        temperature: Some(0.0),
        max_tokens: Some(max_tokens),
        tools: Arc::new([]),
        must_answer: true,
        deadline: Instant::now() + TIMEOUT,
    };
    let answered = async {
        let mut answer = model.clone().answer(request);
        let mut text = String::new();
        while let Some(event) = answer.next().await {
            match event? {
                ModelEvent::Delta(delta) => text.push_str(&delta),
                ModelEvent::Usage { .. } => {}
                ModelEvent::Finished { finish: Finish::Stop, .. } => return Ok(text),
                ModelEvent::Finished { finish: Finish::Length, .. } => {
                    return Err(LearnError::Malformed("it is longer than it may be"));
                }
                ModelEvent::Finished { finish: Finish::ContentFilter, .. } => {
                    return Err(LearnError::Malformed("the provider's filter cut it"));
                }
                ModelEvent::ToolsCalled { .. } => return Err(LearnError::Malformed("it called a tool")),
            }
        }
        Err(LearnError::Malformed("it has no end"))
    };
    timeout(TIMEOUT, answered).await.map_err(|_| LearnError::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered() -> HashMap<String, &'static str> {
        [("k1".to_owned(), "m-1"), ("k2".to_owned(), "m-2")].into()
    }

    fn parse(json: &str) -> Result<Vec<Fact>, String> {
        let answer: Answer = serde_json::from_str(without_fence(json)).map_err(|error| error.to_string())?;
        let facts = answer.facts.into_iter().map(|fact| fact.parse(&offered()));
        facts.collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    #[test]
    fn the_prompts_can_be_made_and_show_no_marks_of_their_template() {
        for (template, language) in [(ENGLISH, Language::English), (CHINESE, Language::Chinese)] {
            let prompt = prompt(template, language).unwrap();
            assert_eq!(Language::detect(&prompt), language);
            assert!(!prompt.contains("{#") && prompt.contains("\"facts\""));
            for kind in ["identity", "preference", "goal", "event", "education", "work", "place", "language", "health"]
            {
                assert!(prompt.contains(&format!("`{kind}`")), "{kind}");
            }
        }
    }

    #[test]
    fn an_answer_of_the_right_form_is_read_with_or_without_a_fence() {
        let json = r#"{"facts": [{"kind": "place", "fact": "The user lives in Rome.", "quote": "I live in Rome",
                       "date": "2026-12-04", "same_as": null, "replaces": ["k2"]}]}"#;
        for json in [json.to_owned(), format!("```json\n{json}\n```")] {
            let facts = parse(&json).unwrap();
            assert_eq!(facts[0].status, FactStatus::Supersedes(vec!["m-2".into()]));
            assert_eq!(facts[0].date.unwrap().to_string(), "2026-12-04");
        }
        assert_eq!(parse(r#"{"facts": []}"#).unwrap(), []);
    }

    #[test]
    fn anything_else_is_malformed() {
        for json in [
            "",
            "There is nothing to remember.",
            "{}",
            "[]",
            r#"{"facts": null}"#,
            r#"{"facts": [], "note": "x"}"#,
            r#"{"facts": ["The user lives in Rome."]}"#,
            r#"{"facts": [{"kind": "secret", "fact": "f", "quote": "q"}]}"#,
            r#"{"facts": [{"kind": "place", "fact": "f"}]}"#,
            r#"{"facts": [{"kind": "place", "fact": "f", "quote": "q", "same_as": "k9"}]}"#,
            r#"{"facts": [{"kind": "place", "fact": "f", "quote": "q", "replaces": ["m-1"]}]}"#,
            r#"{"facts": [{"kind": "place", "fact": "f", "quote": "q", "same_as": "k1", "replaces": ["k2"]}]}"#,
            r#"{"facts": [{"kind": "place", "fact": "f", "quote": "q", "date": "next Friday"}]}"#,
            r#"{"facts": []} and that is all"#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }
}
