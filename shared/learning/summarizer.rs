//! What conversations are called, and how their beginnings are summed up.

use std::sync::Arc;

use serde::Serialize;

use super::{
    LearnError, MAX_SUMMARY_TOKENS, MAX_TITLE_CHARS,
    guard::is_invisible,
    model::{ask, prompt},
    own_words::sentences,
    verbatim::head,
};
use crate::{
    chat::TurnRecord,
    conversation::MAX_TITLE_BYTES,
    language::Language,
    llm::{ChatModel, estimate_tokens},
};

/// Most tokens of an answer with a title.
const TITLE_MAX_TOKENS: u32 = 60;
/// Most tokens of an answer with a summary; it is cut to fewer.
const SUMMARY_MAX_TOKENS: u32 = 1_000;
/// Most bytes of a message that a title is made from.
const TITLE_BYTES: usize = 3_000;
/// Most bytes of a message that is summed up.
const SUMMARY_BYTES: usize = 8_000;
/// Most characters of a line of a summary by rules.
const LINE_CHARS: usize = 80;

/// What was said in a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// By the user.
    pub user: String,
    /// By the assistant; empty = nothing.
    pub assistant: String,
}

impl Exchange {
    /// The words of a turn, without what tools said.
    #[must_use]
    pub fn from_record(record: &TurnRecord) -> Self {
        let text = |text: Option<&str>| text.unwrap_or_default().trim().to_owned();
        Self { user: text(record.question()), assistant: text(record.answer()) }
    }

    fn within(&self, bytes: usize) -> Self {
        Self { user: head(&self.user, bytes).to_owned(), assistant: head(&self.assistant, bytes).to_owned() }
    }
}

/// Something that finds words for conversations.
#[async_trait::async_trait]
pub trait Summarizer: Send + Sync {
    /// What a conversation is called that begins with a turn: one line of at most [`TITLE_CHARS`] characters, not blank.
    ///
    /// # Errors
    /// It could not be found out.
    async fn generate_title(&self, first: &Exchange) -> Result<String, LearnError>;

    /// A summary of at most [`SUMMARY_TOKENS`] that takes the place of an earlier one and of the turns after it.
    ///
    /// # Errors
    /// It could not be made.
    async fn summarize(&self, before: &str, turns: &[Exchange]) -> Result<String, LearnError>;
}

/// Asks a model for words.
pub struct ModelSummarizer {
    model: Arc<dyn ChatModel>,
}

impl ModelSummarizer {
    /// A narrator that asks this model.
    #[must_use]
    pub fn new(model: Arc<dyn ChatModel>) -> Self {
        Self { model }
    }

    async fn ask(
        &self,
        templates: (&str, &str),
        user: &str,
        data: &impl Serialize,
        tokens: u32,
    ) -> Result<String, LearnError> {
        let language = Language::detect(user);
        let data = serde_json::to_string(data).map_err(|_| LearnError::Malformed("the question can not be written"))?;
        ask(&self.model, prompt(language.pick(templates.0, templates.1), language)?, data, tokens).await
    }
}

#[async_trait::async_trait]
impl Summarizer for ModelSummarizer {
    async fn generate_title(&self, first: &Exchange) -> Result<String, LearnError> {
        const TEMPLATES: (&str, &str) = (include_str!("prompts/title.en.md"), include_str!("prompts/title.zh.md"));
        let title = self.ask(TEMPLATES, &first.user, &first.within(TITLE_BYTES), TITLE_MAX_TOKENS).await?;
        one_line(&title).ok_or(LearnError::Malformed("the title is blank"))
    }

    async fn summarize(&self, before: &str, turns: &[Exchange]) -> Result<String, LearnError> {
        #[derive(Serialize)]
        struct Told<'a> {
            before: &'a str,
            turns: Vec<Exchange>,
        }
        const TEMPLATES: (&str, &str) = (include_str!("prompts/summary.en.md"), include_str!("prompts/summary.zh.md"));
        let told = Told { before, turns: turns.iter().map(|turn| turn.within(SUMMARY_BYTES)).collect() };
        let user = turns.last().map_or(before, |turn| turn.user.as_str());
        let summary = self.ask(TEMPLATES, user, &told, SUMMARY_MAX_TOKENS).await?;
        let summary = within_tokens(summary.trim(), MAX_SUMMARY_TOKENS);
        if summary.is_empty() { Err(LearnError::Malformed("the summary is blank")) } else { Ok(summary.to_owned()) }
    }
}

/// Finds words without a model: the beginning of the first question, and what was asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct RuleSummarizer;

#[async_trait::async_trait]
impl Summarizer for RuleSummarizer {
    async fn generate_title(&self, first: &Exchange) -> Result<String, LearnError> {
        one_line(first_sentence(&first.user)).ok_or(LearnError::Malformed("the title is blank"))
    }

    async fn summarize(&self, before: &str, turns: &[Exchange]) -> Result<String, LearnError> {
        let user = turns.last().map_or(before, |turn| turn.user.as_str());
        let heading = Language::detect(user).pick("The user asked, in this order:", "用户依次问过：");
        // Those of before begin with the dash as well.
        let asked = turns.iter().map(|turn| format!("- {}", cut(first_sentence(&turn.user), LINE_CHARS)));
        let mut lines: Vec<String> =
            before.lines().filter(|line| line.starts_with("- ")).map(str::to_owned).chain(asked).collect();
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

/// The beginning of a text of at most so many characters.
fn cut(text: &str, chars: usize) -> String {
    let cut: String = text.chars().take(chars).collect();
    if cut.len() < text.len() {
        let shorter: String = cut.chars().take(chars - 1).collect();
        return format!("{}…", shorter.trim_end());
    }
    cut
}

/// A title as it is shown: one line, without the marks that models put around it; `None` where nothing is left.
fn one_line(title: &str) -> Option<String> {
    let line = title.lines().map(str::trim).find(|line| !line.is_empty())?;
    let line = line.trim_start_matches(['#', '*', '-', ' ']);
    let line =
        ["Title:", "title:", "标题：", "标题:"].iter().find_map(|label| line.strip_prefix(label)).unwrap_or(line);
    let visible: String =
        line.chars().filter(|c| !is_invisible(*c)).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    let quotes = |c: char| matches!(c, '"' | '“' | '”' | '「' | '」' | '\'' | '‘' | '’' | '`' | '*' | '_');
    let words = words.trim_matches(quotes).trim_end_matches(['.', '。']).trim_matches(quotes);
    let title = cut(words.trim(), MAX_TITLE_CHARS);
    let title = &title[..title.floor_char_boundary(MAX_TITLE_BYTES)];
    title.chars().any(char::is_alphanumeric).then(|| title.to_owned())
}

/// The beginning of a text of about so many tokens, up to the end of a sentence.
fn within_tokens(text: &str, tokens: u32) -> &str {
    if estimate_tokens(text) <= tokens {
        return text;
    }
    let mut end = 0;
    for range in sentences(text) {
        if estimate_tokens(&text[..range.end]) > tokens {
            break;
        }
        end = range.end;
    }
    // One that has no end of a sentence is cut where it is full.
    if end == 0 {
        let mut low = 0;
        let mut high = text.len();
        while low < high {
            let middle = text.ceil_char_boundary(low.midpoint(high).max(low + 1));
            if estimate_tokens(&text[..middle]) <= tokens {
                low = middle
            } else {
                high = text.floor_char_boundary(middle - 1)
            }
        }
        end = low;
    }
    text[..end].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_short_line_without_marks() {
        for (given, title) in [
            ("\"Limits and continuity\"", "Limits and continuity"),
            ("标题：“高数复习计划”。", "高数复习计划"),
            ("## **Limits**\n\nThis conversation is about …", "Limits"),
            ("Two\u{200B} lines\tin one", "Two lines in one"),
            ("C++ pointers", "C++ pointers"),
        ] {
            assert_eq!(one_line(given).as_deref(), Some(title));
        }
        assert_eq!(one_line("\n…\n"), None);
        assert_eq!(one_line(&"字".repeat(100)).unwrap().chars().count(), MAX_TITLE_CHARS);
        assert!(one_line(&"👩‍🎓a".repeat(100)).unwrap().len() <= MAX_TITLE_BYTES);
    }

    #[test]
    fn a_summary_is_cut_at_the_end_of_a_sentence() {
        assert_eq!(within_tokens("One. Two.", 100), "One. Two.");
        let long = "Nine tokens are in this sentence, more or less. ".repeat(100);
        let cut = within_tokens(&long, MAX_SUMMARY_TOKENS);
        assert!(
            cut.ends_with("less.")
                && estimate_tokens(cut) <= MAX_SUMMARY_TOKENS
                && estimate_tokens(cut) > MAX_SUMMARY_TOKENS / 2
        );
        let endless = "字".repeat(2_000);
        let cut = within_tokens(&endless, MAX_SUMMARY_TOKENS);
        assert!((MAX_SUMMARY_TOKENS - 2..=MAX_SUMMARY_TOKENS).contains(&estimate_tokens(cut)));
    }

    #[tokio::test]
    async fn the_rules_name_the_first_question_and_list_what_was_asked() {
        let turn = |user: &str| Exchange { user: user.into(), assistant: String::new() };
        let narrator = RuleSummarizer;
        assert_eq!(narrator.generate_title(&turn("什么是极限？请举例。")).await.unwrap(), "什么是极限？");
        let first = narrator.summarize("", &[turn("What is a limit? Tell me."), turn("And a series?")]).await.unwrap();
        assert_eq!(first, "The user asked, in this order:\n- What is a limit?\n- And a series?");
        let second = narrator.summarize(&first, &[turn("Thanks! Bye.")]).await.unwrap();
        assert!(second.ends_with("- What is a limit?\n- And a series?\n- Thanks!"));
        let many: Vec<_> =
            (0..200).map(|n| turn(&format!("What is the meaning of the number {n} in this book?"))).collect();
        let summary = narrator.summarize(&second, &many).await.unwrap();
        assert!(estimate_tokens(&summary) <= MAX_SUMMARY_TOKENS && summary.contains("number 199"), "the latest stay");
    }
}
