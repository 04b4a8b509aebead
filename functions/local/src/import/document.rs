//! Reading a document and finding its title.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{
    files::{Kind, Source, unreadable},
    send::Failure,
};

/// Most bytes of a document, by the contract.
const MAX_BYTES: u64 = 20_000_000;
/// Most bytes of a title, by the contract.
const MAX_TITLE_BYTES: usize = 1_000;

/// Reads a document that can be sent.
pub fn read(path: &Path) -> Result<String, Failure> {
    let refused = |reason: &str| Failure::Refused(reason.to_owned());
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| Failure::Refused(unreadable(error)))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(refused("larger than 20 MB; split it"));
    }
    let text = String::from_utf8(bytes).map_err(|_| refused("not UTF-8 text; convert it, for example with iconv"))?;
    if text.trim_start_matches('\u{FEFF}').trim().is_empty() { Err(refused("empty")) } else { Ok(text) }
}

/// What a document is called: the first heading of level 1, else the file's name without its extension.
pub fn title(source: &Source, text: &str) -> String {
    let heading = if source.kind == Kind::Markdown { first_heading(text) } else { None };
    let stem = || source.path.file_stem().unwrap_or_default().to_string_lossy();
    let title = heading.map_or_else(stem, Into::into);
    title[..title.floor_char_boundary(MAX_TITLE_BYTES)].to_owned()
}

/// The text of the first heading of level 1 outside of fenced code (`CommonMark` 0.31, sections 4.2, 4.3 and 4.5).
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
    fn the_first_heading_of_level_one_is_the_title() {
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
    fn a_document_without_a_heading_is_called_as_its_file() {
        let source = |path: &str, kind| Source { path: path.into(), id: path.to_owned(), kind };
        assert_eq!(title(&source("a/第一章.md", Kind::Markdown), "text"), "第一章");
        assert_eq!(title(&source("log.txt", Kind::PlainText), "# no heading in plain text"), "log");
        let long = format!("# {}", "数".repeat(1_000));
        assert_eq!(title(&source("a.md", Kind::Markdown), &long).len(), 999);
    }
}
