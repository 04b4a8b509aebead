//! Canned answers for demo mode: no key, no cost, deterministic.

use std::{fs, path::Path, sync::Arc, time::Duration};

use async_stream::stream;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::{
    model::{ChatModel, Finish, Message, ModelEvent, ModelRequest, ModelStream},
    pace::chunk_ends,
};
use crate::language::Language;

const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

pub const DEMO_MODEL: &str = "demo";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoResponses {
    responses: Vec<CannedResponse>,
    fallback: FallbackAnswers,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CannedResponse {
    questions: Vec<String>,
    answer: CannedAnswer,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FallbackAnswers {
    zh: CannedAnswer,
    en: CannedAnswer,
}

/// A text and the byte offsets at which its chunks end, split once and not per turn.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "String")]
struct CannedAnswer(Arc<(String, Vec<usize>)>);

impl From<String> for CannedAnswer {
    fn from(text: String) -> Self {
        let ends = chunk_ends(&text);
        Self(Arc::new((text, ends)))
    }
}

impl CannedAnswer {
    fn text(&self) -> &str {
        &self.0.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DemoResponsesError {
    #[error("DEMO_RESPONSES_FILE cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("DEMO_RESPONSES_FILE is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    #[error(
        "the demo answers do not have the form {{\"responses\": [{{\"questions\": [\"…\"], \"answer\": \"…\"}}], \
         \"fallback\": {{\"zh\": \"…\", \"en\": \"…\"}}}}: {0}"
    )]
    Malformed(#[from] serde_json::Error),
    #[error("the demo answers have an empty question or answer (entry {index}, counted from 0)")]
    Empty {
        /// Index in `responses`; its length stands for the fallback.
        index: usize,
    },
}

impl DemoResponses {
    pub fn built_in() -> Result<Self, DemoResponsesError> {
        Self::parse(include_str!("demo_responses.json"))
    }

    /// Loads a file in the form of `demo_responses.json`.
    pub fn load(path: &Path) -> Result<Self, DemoResponsesError> {
        if fs::metadata(path)?.len() > MAX_FILE_BYTES {
            return Err(DemoResponsesError::TooLarge);
        }
        Self::parse(&fs::read_to_string(path)?)
    }

    fn parse(json: &str) -> Result<Self, DemoResponsesError> {
        let mut parsed: Self = serde_json::from_str(json)?;
        for (index, response) in parsed.responses.iter_mut().enumerate() {
            for question in &mut response.questions {
                *question = normalize(question);
            }
            if response.questions.iter().any(String::is_empty) || response.answer.text().trim().is_empty() {
                return Err(DemoResponsesError::Empty { index });
            }
        }
        if parsed.fallback.zh.text().trim().is_empty() || parsed.fallback.en.text().trim().is_empty() {
            return Err(DemoResponsesError::Empty { index: parsed.responses.len() });
        }
        Ok(parsed)
    }

    /// The entry with exactly this question, else with the longest question that the message contains, else the fallback in the
    /// language of the message.
    fn answer_to(&self, message: &str) -> CannedAnswer {
        let question = normalize(message);
        let entries = || self.responses.iter().flat_map(|r| r.questions.iter().map(move |known| (known, &r.answer)));
        let exact = entries().find(|(known, _)| **known == question);
        let contained = || entries().filter(|(q, _)| question.contains(q.as_str())).max_by_key(|(q, _)| q.len());
        let fallback = Language::detect(message).pick(&self.fallback.en, &self.fallback.zh);
        exact.or_else(contained).map_or(fallback, |(_, answer)| answer).clone()
    }
}

fn normalize(question: &str) -> String {
    question.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

#[derive(Debug)]
pub struct DemoModel {
    responses: DemoResponses,
    chunk_delay: Duration,
}

impl DemoModel {
    /// `chunk_delay`: zero = as fast as the client reads.
    #[must_use]
    pub fn new(responses: DemoResponses, chunk_delay: Duration) -> Self {
        Self { responses, chunk_delay }
    }
}

impl ChatModel for DemoModel {
    fn answer(self: Arc<Self>, request: ModelRequest) -> ModelStream {
        let question = request.messages.iter().rev().find_map(|message| match message {
            Message::User(question) => Some(question.as_str()),
            _ => None,
        });
        let answer = self.responses.answer_to(question.unwrap_or_default());
        let delay = self.chunk_delay;
        Box::pin(stream! {
            // A schedule, not a pause after each chunk: a late chunk does not delay the next ones.
            let mut due = Instant::now();
            let mut from = 0;
            let (text, ends) = &*answer.0;
            for end in ends.iter().copied() {
                if !delay.is_zero() {
                    sleep_until(due).await;
                    due += delay;
                }
                yield Ok(ModelEvent::Delta(text[from..end].to_owned()));
                from = end;
            }
            yield Ok(ModelEvent::Finished { model: DEMO_MODEL.to_owned(), finish: Finish::Stop });
        })
    }

    fn name<'a>(&'a self, _requested: Option<&'a str>) -> &'a str {
        DEMO_MODEL
    }

    fn allows(&self, _model: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn responses() -> DemoResponses {
        let json = r#"{
            "responses": [
                {"questions": ["复习"], "answer": "short"},
                {"questions": ["复习计划", "Study Plan"], "answer": "long"}
            ],
            "fallback": {"zh": "中", "en": "en"}
        }"#;
        DemoResponses::parse(json).unwrap()
    }

    #[test]
    fn answer_prefers_exact_then_longest_question() {
        let responses = responses();
        assert_eq!(responses.answer_to("复习").text(), "short");
        assert_eq!(responses.answer_to(" study plan? ").text(), "long");
        assert_eq!(responses.answer_to("帮我做一个复习计划吧").text(), "long");
        assert_eq!(responses.answer_to("你好").text(), "中");
        assert_eq!(responses.answer_to("hello").text(), "en");
    }

    #[test]
    fn built_in_answers_cover_known_questions() {
        let responses = DemoResponses::built_in().unwrap();
        for question in [
            "帮我制定高数复习计划",
            "我今天要学什么",
            "这道题怎么做",
            "Make me a calculus review plan",
            "What should I study today?",
            "How do I solve this problem?",
        ] {
            let answer = responses.answer_to(question);
            let answer = answer.text();
            assert!((300..=1000).contains(&answer.chars().count()), "{question}: {}", answer.chars().count());
            assert_eq!(Language::detect(answer), Language::detect(question), "{question}");
        }
        for response in &responses.responses {
            assert!((300..=1000).contains(&response.answer.text().chars().count()), "{:?}", response.questions);
        }
        for fallback in [&responses.fallback.zh, &responses.fallback.en] {
            assert!(fallback.text().contains("LLM_API_KEY"), "the fallback says how to leave demo mode");
        }
    }

    #[test]
    fn invalid_file_is_rejected_with_reason() {
        assert!(matches!(DemoResponses::parse("{}"), Err(DemoResponsesError::Malformed(_))));
        let empty = r#"{"responses": [{"questions": ["?"], "answer": "a"}], "fallback": {"zh": "z", "en": "e"}}"#;
        assert!(matches!(DemoResponses::parse(empty), Err(DemoResponsesError::Empty { index: 0 })));
    }
}
