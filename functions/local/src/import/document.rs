//! Documents to import, and their titles.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{
    files::{FileFormat, SourceFile, unreadable},
    upload::ImportError,
};

/// Bytes, by the API's contract.
const MAX_BYTES: u64 = 20_000_000;
const MAX_TITLE_BYTES: usize = 1_000;

pub fn read(path: &Path) -> Result<String, ImportError> {
    let rejected = |reason: &str| ImportError::Rejected(reason.to_owned());
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| ImportError::Rejected(unreadable(error)))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(rejected("larger than 20 MB; split it"));
    }
    let text = String::from_utf8(bytes).map_err(|_| rejected("not UTF-8 text; convert it, for example with iconv"))?;
    if text.trim_start_matches('\u{FEFF}').trim().is_empty() { Err(rejected("empty")) } else { Ok(text) }
}

/// The first heading of level 1, else the file's name without its extension.
pub fn title(source: &SourceFile, text: &str) -> String {
    let heading = if source.format == FileFormat::Markdown { first_heading(text) } else { None };
    let stem = || source.path.file_stem().unwrap_or_default().to_string_lossy();
    let title = heading.map_or_else(stem, Into::into);
    title[..title.floor_char_boundary(MAX_TITLE_BYTES)].to_owned()
}

/// The text of the first heading of level 1 outside of code blocks (`CommonMark` 0.31, sections 4.2, 4.3 and 4.5).
fn first_heading(text: &str) -> Option<&str> {
    let mut fence = None;
    let mut above = "";
    for line in text.trim_start_matches('\u{FEFF}').lines() {
        let line = line.trim_end();
        let indented = line.starts_with("    ") || line.starts_with('\t');
        let line = line.trim_start();
        let opening = ["```", "~~~"].into_iter().find(|mark| !indented && line.starts_with(mark));
        match (fence, opening) {
            (None, Some(_)) => fence = opening,
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, None) if !indented => {
                let heading = line.strip_prefix("# ").map(|heading| heading.trim_end_matches('#').trim());
                let underlined = !line.is_empty() && line.bytes().all(|b| b == b'=');
                let heading = heading.or_else(|| underlined.then_some(above));
                if let Some(heading) = heading.filter(|heading| !heading.is_empty()) {
                    return Some(heading);
                }
            }
            _ => {}
        }
        above = if fence.is_some() || indented || line.starts_with('#') { "" } else { line };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn title_is_first_level_one_heading() {
        for (text, title) in [
            ("# Linear algebra\n\ntext", Some("Linear algebra")),
            ("\u{FEFF}# 线性代数 ##\r\n正文", Some("线性代数")),
            ("intro\n\n## Second\n\n# First", Some("First")),
            ("```sh\n# a comment\n```\n# Title", Some("Title")),
            ("~~~\n```\n# no\n~~~\n# Title", Some("Title")),
            ("    # code\n\n# Title", Some("Title")),
            ("Title\n=====\ntext", Some("Title")),
            ("#hashtag\n#\n# \n=====\n## Only a second level", None),
            ("```\n# never closed", None),
            ("", None),
        ] {
            assert_eq!(first_heading(text), title, "{text:?}");
        }
    }

    #[test]
    fn title_without_heading_is_file_name() {
        let source = |path: &str, format| SourceFile { path: path.into(), id: path.to_owned(), format };
        assert_eq!(title(&source("a/第一章.md", FileFormat::Markdown), "text"), "第一章");
        assert_eq!(title(&source("log.txt", FileFormat::PlainText), "# no heading in plain text"), "log");
        let long = format!("# {}", "数".repeat(1_000));
        assert_eq!(title(&source("a.md", FileFormat::Markdown), &long).len(), 999);
    }
}
