//! Extracts facts by asking a model, and the one-question call that the summarizer shares. The answer must match the requested
//! JSON exactly; [`Fact::check`] then judges each fact.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use jiff::{ToSpan as _, civil::Date};
use minijinja::Environment;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::{
    error::LearnError,
    fact::{Extractor, Fact, FactKind, FactStatus, KnownFact, MAX_FACTS, Statement},
};
use crate::{
    facts::sentences,
    language::Language,
    llm::{ChatModel, Finish, Message, ModelEvent, ModelRequest},
    memory::{MAX_QUERY_BYTES, Metadata},
};

const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
const MAX_ANSWER_TOKENS: u32 = 1_500;
const MAX_TOPICS: usize = 6;
/// Dates with their weekdays that the prompt lists, because models are bad at date arithmetic.
const CALENDAR_DAYS: i32 = 21;

const ENGLISH: &str = include_str!("prompts/extract.en.md");
const CHINESE: &str = include_str!("prompts/extract.zh.md");

pub struct ModelExtractor {
    model: Arc<dyn ChatModel>,
}

#[derive(Serialize)]
struct ExtractionPrompt<'a> {
    today: String,
    calendar: Vec<String>,
    known_facts: Vec<PromptFact<'a>>,
    message: &'a str,
}

#[derive(Serialize)]
struct PromptFact<'a> {
    id: String,
    said_on: String,
    fact: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtractionAnswer {
    facts: Vec<AnswerFact>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFact {
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
    #[must_use]
    pub fn new(model: Arc<dyn ChatModel>) -> Self {
        Self { model }
    }
}

#[async_trait::async_trait]
impl Extractor for ModelExtractor {
    fn topics(&self, statement: &Statement) -> Vec<String> {
        let text = statement.text.as_str();
        let ranges = sentences(text);
        let by_sentence = ranges.iter().take(MAX_TOPICS).map(|range| &text[range.clone()]);
        let topics = if ranges.len() > 1 { by_sentence.collect() } else { vec![text] };
        topics.into_iter().map(|topic| topic[..topic.floor_char_boundary(MAX_QUERY_BYTES)].to_owned()).collect()
    }

    async fn extract(&self, statement: &Statement, known: &[KnownFact]) -> Result<Vec<Fact>, LearnError> {
        let data = serde_json::to_string(&ExtractionPrompt::new(statement, known))
            .map_err(|_| LearnError::Malformed("the prompt data cannot be serialized"))?;
        let instructions = prompt(statement.language.pick(ENGLISH, CHINESE), statement.language)?;
        let answer = complete(&self.model, instructions, data, MAX_ANSWER_TOKENS).await?;
        let answer: ExtractionAnswer = serde_json::from_str(without_fence(&answer))
            .map_err(|_| LearnError::Malformed("not the requested JSON"))?;
        if answer.facts.len() > MAX_FACTS {
            return Err(LearnError::Malformed("too many facts"));
        }
        let ids: HashMap<String, &str> =
            known.iter().enumerate().map(|(index, fact)| (alias(index), fact.id.as_str())).collect();
        answer.facts.into_iter().map(|fact| fact.parse(&ids)).collect()
    }
}

impl<'a> ExtractionPrompt<'a> {
    fn new(statement: &'a Statement, known: &'a [KnownFact]) -> Self {
        let day = |date: Date| date.strftime("%Y-%m-%d %A").to_string();
        let today = statement.today();
        let calendar = (1..=CALENDAR_DAYS).filter_map(|ahead| today.checked_add(ahead.days()).ok()).map(day).collect();
        let known_facts = known.iter().enumerate().map(|(index, fact)| PromptFact {
            id: alias(index),
            said_on: fact.said_at.to_zoned(statement.zone.clone()).date().to_string(),
            fact: &fact.content,
        });
        Self { today: day(today), calendar, known_facts: known_facts.collect(), message: &statement.text }
    }
}

/// The id of a known fact in the prompt: the model cannot name a memory that it was not shown.
fn alias(index: usize) -> String {
    format!("k{}", index + 1)
}

impl AnswerFact {
    /// `ids` maps the aliases of the prompt to ids of memories.
    fn parse(self, ids: &HashMap<String, &str>) -> Result<Fact, LearnError> {
        let known = |alias: &String| {
            let id = ids.get(alias).ok_or(LearnError::Malformed("unknown id of a known fact"))?;
            Ok::<_, LearnError>((*id).to_owned())
        };
        let status = match (&self.same_as, self.replaces.as_slice()) {
            (None, []) => FactStatus::New,
            (Some(same), []) => FactStatus::Duplicate(known(same)?),
            (None, replaced) => FactStatus::Supersedes(replaced.iter().map(known).collect::<Result<_, _>>()?),
            (Some(_), _) => return Err(LearnError::Malformed("a fact has both same_as and replaces")),
        };
        let date = self.date.map(|date| date.parse()).transpose();
        Ok(Fact {
            kind: self.kind,
            content: self.fact.trim().to_owned(),
            quote: self.quote,
            date: date.map_err(|_| LearnError::Malformed("a date is not YYYY-MM-DD"))?,
            status,
            metadata: Metadata::new(),
        })
    }
}

/// Removes the Markdown fence that models put around JSON.
fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```json").or_else(|| text.strip_prefix("```"));
    inner.and_then(|inner| inner.strip_suffix("```")).unwrap_or(text)
}

pub(super) fn prompt(template: &str, language: Language) -> Result<String, minijinja::Error> {
    let name = language.pick("en", "zh");
    Environment::new().render_named_str(name, template, minijinja::context! {})
}

pub(super) async fn complete(
    model: &Arc<dyn ChatModel>,
    instructions: String,
    data: String,
    max_tokens: u32,
) -> Result<String, LearnError> {
    let request = ModelRequest {
        user: None,
        model: None,
        messages: Arc::new(vec![Message::System(instructions), Message::User(data)]),
        temperature: Some(0.0),
        max_tokens: Some(max_tokens),
        tools: Arc::new([]),
        must_answer: true,
        deadline: Instant::now() + ANSWER_TIMEOUT,
    };
    let collected = async {
        let mut answer = model.clone().answer(request);
        let mut text = String::new();
        while let Some(event) = answer.next().await {
            match event? {
                ModelEvent::Delta(delta) => text.push_str(&delta),
                ModelEvent::Usage { .. } => {}
                ModelEvent::Finished { finish: Finish::Stop, .. } => return Ok(text),
                ModelEvent::Finished { finish: Finish::Length, .. } => {
                    return Err(LearnError::Malformed("longer than max_tokens"));
                }
                ModelEvent::Finished { finish: Finish::ContentFilter, .. } => {
                    return Err(LearnError::Malformed("cut off by the provider's content filter"));
                }
                ModelEvent::ToolsCalled { .. } => return Err(LearnError::Malformed("a tool call")),
            }
        }
        Err(LearnError::Malformed("the stream ended without a finish reason"))
    };
    timeout(ANSWER_TIMEOUT, collected).await.map_err(|_| LearnError::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> HashMap<String, &'static str> {
        [("k1".to_owned(), "m-1"), ("k2".to_owned(), "m-2")].into()
    }

    fn parse(json: &str) -> Result<Vec<Fact>, String> {
        let answer: ExtractionAnswer = serde_json::from_str(without_fence(json)).map_err(|error| error.to_string())?;
        let facts = answer.facts.into_iter().map(|fact| fact.parse(&ids()));
        facts.collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    #[test]
    fn prompts_render_without_template_comments() {
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
    fn answer_parses_with_or_without_code_fence() {
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
    fn answer_of_another_form_is_malformed() {
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
