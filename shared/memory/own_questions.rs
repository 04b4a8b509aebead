//! Earlier questions of the user among their memories. They match a question best and say least: an echo of the question is
//! not a hit, and another question is a hit only if fewer than the limit of other memories were found.

use std::collections::BTreeSet;

use super::{CHAT_SOURCE_TYPE, Memory, lexical};
use crate::language::is_han;

/// Longer texts are seldom mere questions.
const MAX_QUESTION_BYTES: usize = 2_000;
/// Share of the terms of two questions that both must have.
const MIN_COMMON_TERMS: f64 = 0.75;

/// "What I like is tea" is no question, "Do I like tea" is one.
const ENGLISH_QUESTION_WORDS: [&str; 13] =
    ["what", "whats", "how", "hows", "why", "when", "where", "wheres", "who", "whos", "whose", "which", "whom"];
/// Other beginnings of questions and requests.
const ENGLISH_OPENINGS: [&str; 26] = [
    "is",
    "are",
    "am",
    "was",
    "were",
    "do",
    "does",
    "did",
    "can",
    "could",
    "would",
    "should",
    "explain",
    "tell",
    "show",
    "give",
    "help",
    "please",
    "define",
    "describe",
    "compare",
    "summarize",
    "translate",
    "list",
    "remind",
    "teach",
];
const FIRST_PERSON: [&str; 10] = ["i", "im", "ive", "id", "my", "mine", "we", "our", "were", "me"];
const CHINESE_QUESTION_WORDS: [&str; 24] = [
    "什么", "什麼", "怎么", "怎麼", "怎样", "怎樣", "如何", "为何", "為何", "吗", "嗎", "呢", "哪", "几", "幾", "多少",
    "是否", "能否", "谁", "誰", "请", "請", "帮我", "幫我",
];
const CHINESE_OPENINGS: [&str; 10] = ["解释", "解釋", "讲", "講", "介绍", "介紹", "说说", "告诉我", "告訴我", "给我"];

/// A question with what is compared of it, worked out once for all memories.
pub(super) struct Question {
    letters: String,
    terms: BTreeSet<String>,
    is_question: bool,
}

impl Question {
    pub(super) fn new(text: &str) -> Self {
        Self {
            letters: letters(text),
            terms: lexical::distinct_terms(text).into_iter().collect(),
            is_question: is_question(text),
        }
    }

    /// The user said the same before, so that the memory adds nothing.
    pub(super) fn is_echoed_by(&self, memory: &Memory) -> bool {
        if !is_said_by_user(memory) {
            return false;
        }
        let content = memory.content.as_str();
        // "I like tea" is the answer to "I like tea?".
        if self.is_question && !is_question(content) {
            return false;
        }
        letters(content) == self.letters || (self.is_question && self.has_terms_of(content))
    }

    fn has_terms_of(&self, content: &str) -> bool {
        let terms: BTreeSet<String> = lexical::distinct_terms(content).into_iter().collect();
        let common = terms.intersection(&self.terms).count();
        let all = terms.union(&self.terms).count();
        #[expect(clippy::cast_precision_loss, reason = "at most 512 terms")]
        let share = common as f64 / all.max(1) as f64;
        common > 0 && share >= MIN_COMMON_TERMS
    }
}

/// A turn of the user that asks something and says nothing of them.
#[must_use]
pub fn is_own_question(memory: &Memory) -> bool {
    is_said_by_user(memory) && is_question(&memory.content)
}

fn is_said_by_user(memory: &Memory) -> bool {
    memory.source_type == CHAT_SOURCE_TYPE
        && memory.metadata.get("speaker").is_none_or(|speaker| speaker.eq_ignore_ascii_case("user"))
}

/// A text that asks, and has no clause that states something about its writer: "I sit an exam in June, what should I do?" is
/// knowledge.
fn is_question(text: &str) -> bool {
    if text.len() > MAX_QUESTION_BYTES {
        return false;
    }
    let ends_clause =
        |c: char| matches!(c, '.' | '!' | '?' | ',' | ';' | '\n' | '。' | '！' | '？' | '，' | '；' | '：' | ':');
    let clauses = text.split_inclusive(ends_clause).filter(|clause| clause.contains(char::is_alphanumeric));
    let mut asks = false;
    for clause in clauses {
        if clause.ends_with(['?', '？']) || opens_question(clause) {
            asks = true;
        } else if has_first_person(clause) {
            return false;
        }
    }
    asks
}

fn opens_question(clause: &str) -> bool {
    let clause = clause.trim();
    if clause.chars().any(is_han) {
        return CHINESE_QUESTION_WORDS.iter().any(|word| clause.contains(word))
            || CHINESE_OPENINGS.iter().any(|word| clause.starts_with(word));
    }
    let mut words = words(clause);
    let Some(first) = words.next() else { return false };
    let is_about_writer = |word: String| FIRST_PERSON.contains(&word.as_str());
    ENGLISH_OPENINGS.contains(&first.as_str())
        || (ENGLISH_QUESTION_WORDS.contains(&first.as_str()) && !words.next().is_some_and(is_about_writer))
}

fn has_first_person(clause: &str) -> bool {
    clause.contains(['我', '咱']) || words(clause).any(|word| FIRST_PERSON.contains(&word.as_str()))
}

/// In lower case and without apostrophes.
fn words(clause: &str) -> impl Iterator<Item = String> {
    let words = clause.split(|c: char| !c.is_alphanumeric() && !matches!(c, '\'' | '’'));
    words.map(letters).filter(|word| !word.is_empty())
}

fn letters(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Metadata;

    fn said(content: &str) -> Memory {
        let metadata = Metadata::from([("speaker".to_owned(), "user".to_owned())]);
        Memory { metadata, ..Memory::example(CHAT_SOURCE_TYPE, content) }
    }

    #[test]
    fn text_that_only_asks_is_a_question() {
        for text in [
            "What about eigenvalues?",
            "what is an eigenvalue",
            "Explain eigenvalues to me",
            "Can you tell me my exam date?",
            "帮我制定高数复习计划",
            "特征值是什么",
            "我想知道什么是特征值",
            "eigenvalues?",
        ] {
            assert!(is_question(text), "{text}");
        }
        for text in [
            "I mix up eigenvalues",
            "My exam is on the ninth of June. What should I do?",
            "I sit an exam in June, what should I do?",
            "我不喜欢数学，怎么办？",
            "我的考试在六月九日",
            "When I was in Paris I met Anna",
            "What I like is tea",
            "Eigenvalues are roots",
            "",
        ] {
            assert!(!is_question(text), "{text}");
        }
    }

    #[test]
    fn echo_is_what_the_user_asked_before_and_no_answer() {
        let is_echo = |question: &str, memory: &str| Question::new(question).is_echoed_by(&said(memory));
        for (question, echo) in [
            ("what about eigenvalues?", "What about  eigenvalues ?"),
            ("what about eigenvalues?", "what about the eigenvalues"),
            ("帮我制定高数复习计划", "帮我制定高数复习计划！"),
            ("I mix up eigenvalues", "I mix up eigenvalues."),
        ] {
            assert!(is_echo(question, echo), "{question}: {echo}");
        }
        for (question, other) in [
            ("what about eigenvalues?", "I mix up eigenvalues"),
            ("Do I like tea?", "I like tea"),
            ("I like tea?", "I like tea"),
            ("I do not like tea", "I like tea"),
            ("when is the calculus exam?", "when is the algebra exam?"),
        ] {
            assert!(!is_echo(question, other), "{question}: {other}");
        }
        let note = Memory { source_type: "note".into(), ..said("what about eigenvalues?") };
        assert!(!Question::new("what about eigenvalues?").is_echoed_by(&note) && !is_own_question(&note));
    }
}
