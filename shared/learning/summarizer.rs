//! Titles and summaries of conversations, by a model.

use std::sync::Arc;

use serde::Serialize;

use super::{
    error::LearnError,
    limits::{MAX_SUMMARY_TOKENS, MAX_TITLE_CHARS},
    model::{complete, prompt},
    verbatim::truncate,
};
use crate::{
    chat::TurnRecord,
    conversation::MAX_TITLE_BYTES,
    facts::{is_invisible, sentences},
    language::Language,
    llm::{ChatModel, estimate_tokens},
};

/// Bounds of the model's answers. Both are cut to the limits of [`Summarizer`] afterwards.
const TITLE_ANSWER_TOKENS: u32 = 60;
const SUMMARY_ANSWER_TOKENS: u32 = 1_000;
/// Per message in the prompt.
const TITLE_INPUT_BYTES: usize = 3_000;
const SUMMARY_INPUT_BYTES: usize = 8_000;

/// A turn's question and answer, without tool calls. The answer may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange {
    pub user: String,
    pub assistant: String,
}

impl Exchange {
    #[must_use]
    pub fn from_record(record: &TurnRecord) -> Self {
        let text = |text: Option<&str>| text.unwrap_or_default().trim().to_owned();
        Self { user: text(record.question()), assistant: text(record.answer()) }
    }

    fn truncated(&self, max_bytes: usize) -> Self {
        let truncated = |text| truncate(text, max_bytes).to_owned();
        Self { user: truncated(&self.user), assistant: truncated(&self.assistant) }
    }
}

#[async_trait::async_trait]
pub trait Summarizer: Send + Sync {
    /// One line of at most [`MAX_TITLE_CHARS`], not blank.
    async fn generate_title(&self, first: &Exchange) -> Result<String, LearnError>;

    /// A summary of at most [`MAX_SUMMARY_TOKENS`] that replaces `previous` and covers `turns` as well.
    async fn summarize(&self, previous: &str, turns: &[Exchange]) -> Result<String, LearnError>;
}

pub struct ModelSummarizer {
    model: Arc<dyn ChatModel>,
}

impl ModelSummarizer {
    #[must_use]
    pub fn new(model: Arc<dyn ChatModel>) -> Self {
        Self { model }
    }

    async fn complete(
        &self,
        (english, chinese): (&str, &str),
        language: Language,
        data: &impl Serialize,
        max_tokens: u32,
    ) -> Result<String, LearnError> {
        let data =
            serde_json::to_string(data).map_err(|_| LearnError::Malformed("the prompt data cannot be serialized"))?;
        complete(&self.model, prompt(language.pick(english, chinese), language)?, data, max_tokens).await
    }
}

#[async_trait::async_trait]
impl Summarizer for ModelSummarizer {
    async fn generate_title(&self, first: &Exchange) -> Result<String, LearnError> {
        const TEMPLATES: (&str, &str) = (include_str!("prompts/title.en.md"), include_str!("prompts/title.zh.md"));
        let language = Language::detect(&first.user);
        let title =
            self.complete(TEMPLATES, language, &first.truncated(TITLE_INPUT_BYTES), TITLE_ANSWER_TOKENS).await?;
        clean_title(&title).ok_or(LearnError::Malformed("the title is blank"))
    }

    async fn summarize(&self, previous: &str, turns: &[Exchange]) -> Result<String, LearnError> {
        #[derive(Serialize)]
        struct SummaryPrompt<'a> {
            before: &'a str,
            turns: Vec<Exchange>,
        }
        const TEMPLATES: (&str, &str) = (include_str!("prompts/summary.en.md"), include_str!("prompts/summary.zh.md"));
        let language = Language::detect(turns.last().map_or(previous, |turn| turn.user.as_str()));
        let turns = turns.iter().map(|turn| turn.truncated(SUMMARY_INPUT_BYTES)).collect();
        let data = SummaryPrompt { before: previous, turns };
        let summary = self.complete(TEMPLATES, language, &data, SUMMARY_ANSWER_TOKENS).await?;
        let summary = truncate_to_tokens(summary.trim(), MAX_SUMMARY_TOKENS);
        if summary.is_empty() { Err(LearnError::Malformed("the summary is blank")) } else { Ok(summary.to_owned()) }
    }
}

pub(super) fn ellipsize(text: &str, max_chars: usize) -> String {
    let head: String = text.chars().take(max_chars).collect();
    if head.len() < text.len() {
        let shorter: String = head.chars().take(max_chars - 1).collect();
        return format!("{}…", shorter.trim_end());
    }
    head
}

/// One line without the label, Markdown and quotation marks that models add; `None` if nothing is left.
pub(super) fn clean_title(title: &str) -> Option<String> {
    let line = title.lines().map(str::trim).find(|line| !line.is_empty())?;
    let line = line.trim_start_matches(['#', '*', '-', ' ']);
    let line =
        ["Title:", "title:", "标题：", "标题:"].iter().find_map(|label| line.strip_prefix(label)).unwrap_or(line);
    let visible: String =
        line.chars().filter(|c| !is_invisible(*c)).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_mark = |c: char| matches!(c, '"' | '“' | '”' | '「' | '」' | '\'' | '‘' | '’' | '`' | '*' | '_');
    let words = words.trim_matches(is_mark).trim_end_matches(['.', '。']).trim_matches(is_mark);
    let title = ellipsize(words.trim(), MAX_TITLE_CHARS);
    let title = &title[..title.floor_char_boundary(MAX_TITLE_BYTES)];
    title.chars().any(char::is_alphanumeric).then(|| title.to_owned())
}

/// Cuts after the last sentence that fits, or within the first one if none does.
fn truncate_to_tokens(text: &str, max_tokens: u32) -> &str {
    if estimate_tokens(text) <= max_tokens {
        return text;
    }
    let fits = |end: &usize| estimate_tokens(&text[..*end]) <= max_tokens;
    let end = sentences(text).into_iter().map(|range| range.end).take_while(fits).last();
    text[..end.unwrap_or_else(|| longest_prefix(text, max_tokens))].trim_end()
}

/// Binary search over the char boundaries: the estimate grows with the text.
fn longest_prefix(text: &str, max_tokens: u32) -> usize {
    let (mut low, mut high) = (0, text.len());
    while low < high {
        let middle = text.ceil_char_boundary(low.midpoint(high).max(low + 1));
        if estimate_tokens(&text[..middle]) <= max_tokens {
            low = middle;
        } else {
            high = text.floor_char_boundary(middle - 1);
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn title_is_one_short_line_without_marks() {
        for (answer, title) in [
            ("\"Limits and continuity\"", "Limits and continuity"),
            ("标题：“高数复习计划”。", "高数复习计划"),
            ("## **Limits**\n\nThis conversation is about …", "Limits"),
            ("Two\u{200B} lines\tin one", "Two lines in one"),
            ("C++ pointers", "C++ pointers"),
        ] {
            assert_eq!(clean_title(answer).as_deref(), Some(title));
        }
        assert_eq!(clean_title("\n…\n"), None);
        assert_eq!(clean_title(&"字".repeat(100)).unwrap().chars().count(), MAX_TITLE_CHARS);
        assert!(clean_title(&"👩‍🎓a".repeat(100)).unwrap().len() <= MAX_TITLE_BYTES);
    }

    #[test]
    fn summary_is_truncated_at_the_end_of_a_sentence() {
        assert_eq!(truncate_to_tokens("One. Two.", 100), "One. Two.");
        let long = "Nine tokens are in this sentence, more or less. ".repeat(100);
        let summary = truncate_to_tokens(&long, MAX_SUMMARY_TOKENS);
        assert!(
            summary.ends_with("less.")
                && estimate_tokens(summary) <= MAX_SUMMARY_TOKENS
                && estimate_tokens(summary) > MAX_SUMMARY_TOKENS / 2
        );
        let one_sentence = "字".repeat(2_000);
        let summary = truncate_to_tokens(&one_sentence, MAX_SUMMARY_TOKENS);
        assert!((MAX_SUMMARY_TOKENS - 2..=MAX_SUMMARY_TOKENS).contains(&estimate_tokens(summary)));
    }
}
