//! Reads Markdown.

use std::{fs, path::PathBuf};

pub(super) fn absolute(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(super) fn read(path: &str) -> String {
    fs::read_to_string(absolute(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files with one of the extensions at or below a path, by their paths in the repository.
pub(super) fn files(path: &str, extensions: &[&str]) -> Vec<String> {
    const SKIPPED: &[&str] = &["target", "node_modules", "gen", ".git", "dist"];
    if !absolute(path).is_dir() {
        return vec![path.to_owned()];
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(absolute(path)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let child = if path == "." { name.clone() } else { format!("{path}/{name}") };
        if entry.file_type().unwrap().is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                found.extend(files(&child, extensions));
            }
        } else if extensions.iter().any(|extension| name.ends_with(&format!(".{extension}"))) {
            found.push(child);
        }
    }
    found.sort();
    found
}

pub(super) fn pages(paths: &[&str]) -> Vec<(String, String)> {
    let paths = paths.iter().flat_map(|path| files(path, &["md"]));
    paths.map(|path| (path.clone(), read(&path))).collect()
}

pub(super) fn code_blocks(markdown: &str) -> Vec<(String, String)> {
    let blocks = markdown.split("```").skip(1).step_by(2);
    blocks
        .filter_map(|block| block.split_once('\n'))
        .map(|(language, code)| (language.to_owned(), code.to_owned()))
        .collect()
}

pub(super) fn prose(markdown: &str) -> String {
    markdown.split("```").step_by(2).collect::<Vec<_>>().join("\n")
}

pub(super) fn code_spans(markdown: &str) -> Vec<String> {
    prose(markdown).split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

pub(super) fn first_cells(markdown: &str) -> Vec<String> {
    let cells = markdown.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Words of each sentence in paragraphs and lists. Tables and headings have no sentences.
pub(super) fn sentence_lengths(markdown: &str) -> Vec<usize> {
    let mut paragraphs = vec![String::new()];
    for line in prose(markdown).lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['|', '#']) || line.starts_with("- ") {
            paragraphs.push(String::new());
        }
        if !line.starts_with(['|', '#']) {
            let paragraph = paragraphs.last_mut().unwrap();
            paragraph.push_str(line);
            paragraph.push(' ');
        }
    }
    paragraphs
        .iter()
        .flat_map(|paragraph| paragraph.split_inclusive([' ']).fold(vec![0], count_words))
        .filter(|words| *words > 0)
        .collect()
}

fn count_words(mut sentences: Vec<usize>, word: &str) -> Vec<usize> {
    let word = word.trim();
    if word.chars().any(char::is_alphanumeric) {
        *sentences.last_mut().unwrap() += 1;
    }
    if word.ends_with(['.', ':', ';', '?', '。', '：']) || word.ends_with(".**") {
        sentences.push(0);
    }
    sentences
}
