//! Titles of citations.

use jiff::tz::TimeZone;

use crate::{
    language::Language,
    memory::{CHAT_SOURCE_TYPE, Memory},
};

const TITLE_CHARS: usize = 40;

/// The title of the document or of the metadata; else speaker and day of a chat, or the first words. Never empty.
pub(super) fn title(memory: &Memory, language: Language, zone: &TimeZone) -> String {
    let given = match &memory.location {
        Some(location) => Some(&location.title),
        None => memory.metadata.get("title"),
    };
    if let Some(given) = given.filter(|title| !title.trim().is_empty()) {
        return given.clone();
    }
    let speaker = memory.metadata.get("speaker").map(|speaker| speaker.trim()).filter(|speaker| !speaker.is_empty());
    match speaker.filter(|_| memory.source_type == CHAT_SOURCE_TYPE) {
        Some(speaker) => {
            let speaker = match speaker.to_ascii_lowercase().as_str() {
                "user" => language.pick("You", "你"),
                "assistant" => language.pick("Assistant", "助手"),
                _ => speaker,
            };
            let day = memory.created_at.to_zoned(zone.clone()).strftime("%Y-%m-%d");
            format!("{speaker} · {day}")
        }
        None => first_words(&memory.content),
    }
}

/// Of the first lines, without marks of Markdown.
fn first_words(content: &str) -> String {
    let is_mark = |word: &&str| word.chars().all(|c| matches!(c, '#' | '-' | '*' | '>' | '+'));
    let words = content.split_whitespace().filter(|word| !is_mark(word));
    let line = words.take(TITLE_CHARS).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(TITLE_CHARS) {
        None if line.is_empty() => "…".to_owned(),
        None => line,
        Some((end, _)) => {
            let head = &line[..end];
            // A word is cut only if it is longer than the title.
            let end = if line[end..].starts_with(' ') { end } else { head.rfind(' ').unwrap_or(end) };
            format!("{}…", line[..end].trim_end())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{ChunkLocation, Metadata};

    fn memory(source_type: &str, content: &str, metadata: &[(&str, &str)]) -> Memory {
        let metadata =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Metadata>();
        Memory { metadata, ..Memory::example(source_type, content) }
    }

    #[test]
    fn title_is_given_or_made_of_speaker_and_day_or_first_words() {
        let zone = TimeZone::get("Asia/Shanghai").unwrap();
        let title = |memory: &Memory, language| super::title(memory, language, &zone);
        let chat = memory("chat", "hello", &[("speaker", "user")]);
        assert_eq!(title(&chat, Language::English), "You · 2026-11-21", "in the user's time zone");
        assert_eq!(title(&chat, Language::Chinese), "你 · 2026-11-21");
        let answer = memory("chat", "hello", &[("speaker", "assistant")]);
        assert_eq!(title(&answer, Language::Chinese), "助手 · 2026-11-21");
        let imported = memory("chat", "hello", &[("speaker", "Caroline")]);
        assert_eq!(title(&imported, Language::Chinese), "Caroline · 2026-11-21");
        assert_eq!(title(&memory("note", "hello", &[("title", "Greeting")]), Language::English), "Greeting");
        assert_eq!(title(&memory("chat", "hello", &[]), Language::English), "hello");
        let location = ChunkLocation {
            document_id: "d".into(),
            title: "Algebra".into(),
            url: String::new(),
            section: String::new(),
            chunk_index: 0,
        };
        let chunk = Memory { location: Some(location), ..memory("document", "text", &[]) };
        assert_eq!(title(&chunk, Language::English), "Algebra");
    }

    #[test]
    fn first_words_end_at_a_word_if_there_is_one() {
        assert_eq!(first_words("# Limits\n\n- of sequences"), "Limits of sequences");
        assert_eq!(
            first_words("The calculus exam is on the ninth of June, in the morning"),
            "The calculus exam is on the ninth of…"
        );
        assert_eq!(first_words(&"特征值".repeat(20)), format!("{}…", &"特征值".repeat(14)[..40 * 3]));
        assert_eq!(first_words(" \n"), "…");
        assert_eq!(first_words(&"x".repeat(40)), "x".repeat(40));
    }
}
