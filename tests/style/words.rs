//! The vocabulary of the source and of the documents: phrases and type names that must not occur, because the field has a term for them, and
//! terms that must, because people search for them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::lexer::{Token, tokens};

const EXTENSIONS: [&str; 8] = ["rs", "ts", "tsx", "yaml", "sh", "py", "sql", "md"];

/// Folders that hold nothing of ours: build products and dependencies. Hidden folders are skipped as well.
const SKIPPED_FOLDERS: [&str; 5] = ["target", "node_modules", "dist", "__pycache__", "venv"];

/// It lists the forbidden phrases.
const UNCHECKED: &str = "tests/style";

/// The checksums of these migrations are stored in databases, so their text cannot change.
const LAST_FROZEN_MIGRATION: &str = "0007";

/// Matched as whole words, whatever their case.
const FORBIDDEN_PHRASES: [&str; 16] = [
    "can not",
    "whoever",
    "anew",
    "sign of life",
    "signs of life",
    "the house",
    "rooms",
    "the room",
    "this room",
    "own room",
    "each room",
    "every room",
    "way in",
    "ways in",
    "of which nothing",
    "what is no",
];

const FORBIDDEN_DOC_STARTS: [&str; 5] = ["What", "Who", "Whose", "Which", "Where"];

/// Of types and enum variants. Functions and fields are not checked: their words have good uses as well.
const FORBIDDEN_NAMES: [&str; 40] = [
    "Accepted",
    "Callers",
    "ChatCommand",
    "Claim",
    "Door",
    "Foreign",
    "Freed",
    "Full",
    "Gate",
    "Here",
    "Judged",
    "Kept",
    "Leg",
    "Lent",
    "Lesson",
    "Life",
    "Limits",
    "Look",
    "MakerOf",
    "Mistake",
    "Mistakes",
    "Narrator",
    "Over",
    "Owner",
    "Ran",
    "Refusal",
    "Said",
    "Spent",
    "Spoken",
    "Standing",
    "Straight",
    "Taken",
    "Ticket",
    "Told",
    "TurnRequest",
    "TurnedAway",
    "Unproven",
    "Wanted",
    "Way",
    "Wish",
];

const FORBIDDEN_CONSTANTS: [&str; 3] = ["PATIENCE", "LAST_WORDS", "AFTERMATH"];

/// Terms by which somebody searches for what the code handles.
const REQUIRED_TERMS: [&str; 7] =
    ["heartbeat", "graceful shutdown", "DNS rebinding", "idempotency", "lock order", "backpressure", "lease token"];

/// The text of a file with its lines joined, so that a phrase is found across the end of a comment line.
struct Joined {
    text: String,
    /// Where each line begins in `text`.
    lines: Vec<usize>,
}

impl Joined {
    fn new(source: &str) -> Self {
        let mut joined = Self { text: String::new(), lines: Vec::new() };
        for line in source.lines() {
            joined.lines.push(joined.text.len());
            let words = line.trim_start().trim_start_matches(['/', '!', '#', '*', '-']).trim();
            joined.text.push_str(&words.to_lowercase());
            joined.text.push(' ');
        }
        joined
    }

    /// The numbers of the lines on which a phrase of whole words begins.
    fn find(&self, phrase: &str) -> Vec<usize> {
        let phrase = phrase.to_lowercase();
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let matches = self.text.match_indices(&phrase).filter(|(at, _)| {
            !is_word(self.text[..*at].chars().next_back()) && !is_word(self.text[at + phrase.len()..].chars().next())
        });
        matches.map(|(at, _)| self.lines.partition_point(|start| *start <= at)).collect()
    }
}

/// The numbers of the lines on which a doc comment begins with a word that promises a paraphrase.
fn paraphrasing_docs(source: &str) -> Vec<usize> {
    let doc = |line: &str| {
        let line = line.trim();
        ["///", "//!", "/**"].into_iter().find_map(|mark| Some((mark, line.strip_prefix(mark)?.trim().to_owned())))
    };
    let mut found = Vec::new();
    let mut previous = None;
    for (index, line) in source.lines().enumerate() {
        let current = doc(line);
        if let Some((mark, text)) = &current
            && previous != Some(*mark)
            && text
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .is_some_and(|word| FORBIDDEN_DOC_STARTS.contains(&word))
        {
            found.push(index + 1);
        }
        previous = current.map(|(mark, _)| mark);
    }
    found
}

/// Names of the types, enum variants and constants that a file defines.
fn definitions(source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut names = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let keyword = tokens[at].ident().unwrap_or_default();
        let name = tokens.get(at + 1).and_then(Token::ident);
        at += 1;
        match (keyword, name) {
            ("struct" | "trait" | "type" | "union" | "const" | "static", Some(name)) => names.push(name.to_owned()),
            ("enum", Some(name)) => {
                names.push(name.to_owned());
                while at < tokens.len() && !matches!(tokens[at], Token::Punct('{' | ';')) {
                    at += 1;
                }
                at = variants(&tokens, at, &mut names);
            }
            _ => {}
        }
    }
    names
}

/// Adds the variants of an enum whose body begins at `at`, and returns where it ends.
fn variants(tokens: &[Token], mut at: usize, names: &mut Vec<String>) -> usize {
    let mut depth = 0;
    let mut expects_name = false;
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Punct('{' | '(' | '[') => {
                depth += 1;
                expects_name = depth == 1;
            }
            Token::Punct('}' | ')' | ']') => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
                // An attribute stands before the variant's name.
                expects_name = depth == 1 && matches!(token, Token::Punct(']'));
            }
            Token::Punct(',') if depth == 1 => expects_name = true,
            Token::Ident(name) if depth == 1 && expects_name => {
                names.push(name.clone());
                expects_name = false;
            }
            _ => {}
        }
        at += 1;
    }
    at
}

/// The files to check, by their paths below the root of the repository.
fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known)) {
                files.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files.retain(|file| !file.starts_with(UNCHECKED) && !is_frozen_migration(file));
    files.sort();
    files
}

fn is_frozen_migration(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.starts_with("infra/migrations")
        && (name.as_ref() < LAST_FROZEN_MIGRATION || name.starts_with(LAST_FROZEN_MIGRATION))
}

/// The text of a file. Fenced code of a document is blank.
fn read(file: &Path) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    if file.extension().is_some_and(|extension| extension == "md") { without_fences(&text) } else { text }
}

/// Markdown with a blank line for each line of fenced code.
fn without_fences(markdown: &str) -> String {
    let mut is_code = false;
    let mut text = String::new();
    for line in markdown.lines() {
        let is_fence = line.trim_start().starts_with("```");
        if !is_code && !is_fence {
            text.push_str(line);
        }
        text.push('\n');
        is_code ^= is_fence;
    }
    text
}

/// Applies a check to every file (of an extension, if given) and lists what it finds, a line each.
fn findings(extension: Option<&str>, check: impl Fn(&str) -> Vec<(usize, String)>) -> Vec<String> {
    let is_meant =
        |file: &PathBuf| extension.is_none_or(|wanted| file.extension().is_some_and(|found| found == wanted));
    let of_file = |file: PathBuf| {
        let found = check(&read(&file));
        found.into_iter().map(move |(line, what)| format!("  {}:{line}: {what}", file.display()))
    };
    files().into_iter().filter(is_meant).flat_map(of_file).collect()
}

fn assert_none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}, {} times:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn forbidden_phrases_do_not_occur() {
    let found = findings(None, |source| {
        let joined = Joined::new(source);
        let lines = |phrase| joined.find(phrase).into_iter().map(move |line| (line, format!("{phrase:?}")));
        FORBIDDEN_PHRASES.into_iter().flat_map(lines).collect()
    });
    assert_none(&found, "phrases that the glossary replaces occur");
}

#[test]
fn doc_comments_do_not_paraphrase_names() {
    let found = findings(None, |source| {
        paraphrasing_docs(source)
            .into_iter()
            .map(|line| (line, "say what the name cannot, or nothing".to_owned()))
            .collect()
    });
    assert_none(&found, &format!("doc comments begin with one of {FORBIDDEN_DOC_STARTS:?}"));
}

#[test]
fn forbidden_type_names_are_not_defined() {
    let found = findings(Some("rs"), |source| {
        let forbidden =
            |name: &String| FORBIDDEN_NAMES.contains(&name.as_str()) || FORBIDDEN_CONSTANTS.contains(&name.as_str());
        definitions(source).into_iter().filter(forbidden).map(|name| (1, name)).collect()
    });
    assert_none(&found, "names that the glossary replaces are defined");
}

#[test]
fn required_terms_occur_in_shared() {
    let shared: Vec<_> = files()
        .into_iter()
        .filter(|file| file.starts_with("shared") && file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| Joined::new(&read(&file)))
        .collect();
    let is_missing = |term: &&str| shared.iter().all(|file| file.find(term).is_empty());
    let missing: Vec<_> = REQUIRED_TERMS.into_iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "no file of shared/ contains {missing:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrase_is_found_across_lines_and_only_as_whole_words() {
        let joined = Joined::new("/// It can\n    /// not be so.\n// Scan nothing; Can Not.\nlet cannot = 1;");
        assert_eq!(joined.find("can not"), [1, 3]);
    }

    #[test]
    fn fenced_code_of_documents_is_blank() {
        assert_eq!(without_fences("a\n```sh\ncan not\n```\nb"), "a\n\n\n\nb\n");
    }

    #[test]
    fn only_first_line_of_a_doc_comment_counts() {
        let source = "//! Fine.\n//! What follows.\n/// Where it is.\nx\n/// Whatever.\n/// Who.\n/** Which one */";
        assert_eq!(paraphrasing_docs(source), [3, 7]);
    }

    #[test]
    fn types_variants_and_constants_are_definitions() {
        let source = "struct Door; enum Way<T> { #[x(Y)] Here(Other), Kept { Field: u8 }, Z = 1 } const PATIENCE: u8 = 0; \
                      fn f(gate: Gate) { Claim::new(); let x: Wish; }";
        assert_eq!(definitions(source), ["Door", "Way", "Here", "Kept", "Z", "PATIENCE"]);
    }

    #[test]
    fn only_applied_migrations_are_frozen() {
        assert!(is_frozen_migration(Path::new("infra/migrations/0001_memories.sql")));
        assert!(is_frozen_migration(Path::new("infra/migrations/0007_given_by.sql")));
        assert!(!is_frozen_migration(Path::new("infra/migrations/0008_next.sql")));
        assert!(!is_frozen_migration(Path::new("shared/memory/query.sql")));
        assert!(!is_frozen_migration(Path::new("shared/memory/0007_query.sql")));
    }
}
