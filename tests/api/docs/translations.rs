//! Chinese pages agree with the English pages in commands, names and numbers, and use the terms of the glossary.

use std::collections::BTreeSet;

use super::text::{absolute, code_blocks, code_spans, files, prose, read};

/// Each Chinese page with the English pages that it covers.
const TRANSLATIONS: &[(&str, &[&str])] = &[
    ("README.zh-CN.md", &["README.md"]),
    ("infra/README.zh-CN.md", &["infra/README.md"]),
    ("docs/zh/deploy-aws.md", &["docs/how-to/deploy-aws.md"]),
    ("docs/zh/errors.md", &["docs/reference/errors.md"]),
    ("docs/zh/go-gateway.md", &["docs/tutorial/go-gateway.md"]),
    ("docs/zh/guarantees.md", &["docs/reference/guarantees.md"]),
    ("docs/zh/providers.md", &["docs/how-to/configure-providers.md", "docs/how-to/embeddings.md"]),
    ("docs/zh/switch-from-python.md", &["docs/how-to/switch-from-python.md"]),
    ("docs/zh/troubleshoot.md", &["docs/how-to/troubleshoot.md"]),
];

/// Only Chinese pages describe mirrors.
const MIRRORS: &[&str] = &["RUSTUP_DIST_SERVER", "RUSTUP_UPDATE_ROOT", "PIP_INDEX_URL", "GOPROXY"];

/// Parts of commands that differ on purpose: Chinese pages choose bilingual embeddings, and store a memory in Chinese.
const DIFFERENT: &[&str] =
    &["bge-m3", "nomic-embed-text", "minilm", "EMBEDDING_API_KEY=", "your-chinese-model", "remember --user ann"];

fn english(pages: &[&str]) -> String {
    pages.iter().map(|page| read(page)).collect::<Vec<_>>().join("\n")
}

/// The command without its comment and without quoted prose, which are translated.
fn command(line: &str) -> String {
    let line = line.split(" #").next().unwrap().trim();
    if line.starts_with('#') {
        return String::new();
    }
    let mut parts: Vec<_> = line.split('"').collect();
    for at in (1..parts.len()).step_by(2) {
        let is_prose = !parts[at].is_ascii() || (parts[at].contains(' ') && !parts[at].contains('$'));
        if is_prose || parts[at - 1].ends_with(": ") {
            parts[at] = "…";
        }
    }
    parts.join("\"")
}

fn commands(markdown: &str) -> BTreeSet<String> {
    let blocks = code_blocks(markdown).into_iter().filter(|(language, _)| language != "text");
    let lines = blocks.flat_map(|(_, block)| block.lines().map(command).collect::<Vec<_>>());
    lines.filter(|line| !line.is_empty() && !DIFFERENT.iter().any(|part| line.contains(part))).collect()
}

/// Variables, statuses and error codes, which are written in capitals.
fn capitals(markdown: &str) -> BTreeSet<String> {
    let text = format!("{} {}", without_targets(markdown), code_spans(markdown).join(" "));
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_name = |word: &&str| {
        let rest = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        word.len() > 3 && word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(rest)
    };
    words.filter(is_name).map(str::to_owned).collect()
}

/// Prose without code spans and targets of links.
fn without_targets(markdown: &str) -> String {
    let text = prose(markdown).split('`').step_by(2).collect::<String>();
    let mut parts = text.split("](");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, rest| text + rest.split_once(')').map_or("", |(_, rest)| rest))
}

fn numbers(markdown: &str) -> BTreeSet<String> {
    let text = without_targets(markdown);
    let parts = text.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ',');
    parts.map(|part| part.trim_matches(['.', ',']).replace(',', "")).filter(|number| !number.is_empty()).collect()
}

/// Numbers that an English page writes as words.
fn number_words(markdown: &str) -> BTreeSet<String> {
    const WORDS: &[(&str, &str)] = &[
        ("one", "1"),
        ("a", "1"),
        ("two", "2"),
        ("three", "3"),
        ("four", "4"),
        ("five", "5"),
        ("six", "6"),
        ("seven", "7"),
        ("eight", "8"),
        ("ten", "10"),
        ("october", "10"),
        ("november", "11"),
        ("fourteen", "14"),
        ("forty", "40"),
    ];
    let text = markdown.to_lowercase();
    let words: BTreeSet<_> = text.split(|c: char| !c.is_alphanumeric()).collect();
    WORDS.iter().filter(|(word, _)| words.contains(word)).map(|(_, number)| (*number).to_owned()).collect()
}

#[test]
fn every_chinese_page_is_compared_and_listed() {
    let readme = read("README.zh-CN.md");
    for page in files("docs/zh", &["md"]) {
        assert!(TRANSLATIONS.iter().any(|(chinese, _)| *chinese == page), "{page} is not compared");
        assert!(readme.contains(&format!("({page})")), "README.zh-CN.md does not list {page}");
    }
    assert!(readme.lines().count() <= 150);
}

#[test]
fn translations_show_the_same_commands() {
    for (chinese, pages) in TRANSLATIONS {
        assert_eq!(commands(&read(chinese)), commands(&english(pages)), "{chinese} (left), {pages:?} (right)");
    }
}

#[test]
fn translations_name_the_same_variables_and_codes() {
    for (chinese, pages) in TRANSLATIONS {
        let mut names = capitals(&read(chinese));
        names.retain(|name| !MIRRORS.contains(&name.as_str()));
        let mut expected = capitals(&english(pages));
        if chinese.ends_with("providers.md") {
            // The embedding service for Chinese is another than that of the model.
            expected.insert("EMBEDDING_API_BASE_URL".to_owned());
            names.insert("EMBEDDING_API_BASE_URL".to_owned());
        }
        assert_eq!(names, expected, "{chinese} (left), {pages:?} (right)");
    }
}

#[test]
fn translations_state_the_same_numbers() {
    for (chinese, pages) in TRANSLATIONS {
        let page = english(pages);
        let (translated, digits, words) = (numbers(&read(chinese)), numbers(&page), number_words(&page));
        let missing: Vec<_> = digits.difference(&translated).collect();
        assert!(missing.is_empty(), "{chinese} lacks {missing:?} of {pages:?}");
        let added: Vec<_> =
            translated.iter().filter(|number| !digits.contains(*number) && !words.contains(*number)).collect();
        assert!(added.is_empty(), "{chinese} adds {added:?} to {pages:?}");
    }
}

#[test]
fn chinese_texts_use_the_agreed_terms() {
    // 对话, 检索, 语义, token, 模型服务商 and 你 instead.
    const AVOIDED: &[&str] = &["会话", "搜索", "回忆", "含义", "词元", "提供商", "提供方", "您", "预置"];
    let texts = ["web/src/text.ts", "shared/service/wording.rs", "README.zh-CN.md", "infra/README.zh-CN.md"];
    for path in texts.into_iter().map(str::to_owned).chain(files("docs/zh", &["md"])) {
        assert!(absolute(&path).exists(), "{path}");
        let text = read(&path);
        for term in AVOIDED {
            assert!(!text.contains(term), "{path} has {term}");
        }
    }
}
