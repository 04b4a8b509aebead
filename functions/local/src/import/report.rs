//! The report at the end of an import.

use std::{
    fmt::{self, Display, Formatter},
    path::Path,
    process::ExitCode,
};

const MAX_LISTED: usize = 50;

#[derive(Default)]
pub struct Report {
    pub documents: u64,
    pub chunks: u64,
    pub memories: u64,
    /// Those of `memories` that the server had already.
    pub known: u64,
    /// Files that an earlier import has done.
    pub unchanged: u64,
    failed: SkipList,
    /// Files in a folder that are of no importable format; they do not fail the import.
    ignored: SkipList,
}

#[derive(Default)]
struct SkipList {
    listed: Vec<SkippedItem>,
    count: u64,
}

struct SkippedItem {
    file: String,
    /// The first line with this reason and the number of further ones; `None` = the whole file.
    lines: Option<(u64, u64)>,
    reason: String,
}

impl SkipList {
    fn add(&mut self, file: &Path, line: Option<u64>, reason: String) {
        self.count += 1;
        let file = file.display().to_string();
        let mut listed = self.listed.iter_mut().filter(|skip| skip.file == file && skip.reason == reason);
        if line.is_some()
            && let Some((_, more)) = listed.find_map(|skip| skip.lines.as_mut())
        {
            *more += 1;
        } else if self.listed.len() < MAX_LISTED {
            self.listed.push(SkippedItem { file, lines: line.map(|line| (line, 0)), reason });
        }
    }
}

impl SkippedItem {
    fn count(&self) -> u64 {
        1 + self.lines.map_or(0, |(_, more)| more)
    }
}

impl Display for SkippedItem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { file, lines, reason } = self;
        match lines {
            None => write!(f, "{file}: {reason}"),
            Some((line, 0)) => write!(f, "{file}:{line}: {reason}"),
            Some((line, more)) => write!(f, "{file}:{line} and {}: {reason}", count(*more, "more line", "more lines")),
        }
    }
}

impl Report {
    pub fn skip(&mut self, file: &Path, reason: impl Into<String>) {
        self.failed.add(file, None, reason.into());
    }

    pub fn skip_line(&mut self, file: &Path, line: u64, reason: String) {
        self.failed.add(file, Some(line), reason);
    }

    pub fn ignore(&mut self, file: &Path, reason: &str) {
        self.ignored.add(file, None, reason.to_owned());
    }

    pub fn failures(&self) -> u64 {
        self.failed.count
    }

    pub fn exit_code(&self) -> ExitCode {
        if self.failed.count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let documents = count(self.documents, "document", "documents");
        let chunks = count(self.chunks, "chunk", "chunks");
        write!(f, "Imported {documents} ({chunks}) and {}", count(self.memories, "memory", "memories"))?;
        match self.known {
            0 => writeln!(f, ".")?,
            known => writeln!(f, ", {known} of which the server had already.")?,
        }
        if self.unchanged > 0 {
            let files = count(self.unchanged, "file", "files");
            write!(f, "Unchanged since an earlier import: {files}; --again imports them again")?;
            let is_empty = self.documents + self.memories == 0;
            writeln!(f, "{}.", if is_empty { ", even if they have been deleted since" } else { "" })?;
        }
        let skipped = self.failed.count + self.ignored.count;
        if skipped > 0 {
            writeln!(f, "Skipped {skipped}:")?;
            let listed = || self.failed.listed.iter().chain(&self.ignored.listed).take(MAX_LISTED);
            for skip in listed() {
                writeln!(f, "  {skip}")?;
            }
            let more = skipped - listed().map(SkippedItem::count).sum::<u64>();
            if more > 0 {
                writeln!(f, "  … and {more} more")?;
            }
        }
        Ok(())
    }
}

pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_lists_failures_first_and_is_bounded() {
        let mut report = Report { documents: 1, chunks: 2, memories: 3, known: 1, unchanged: 4, ..Default::default() };
        for number in 0..60 {
            report.ignore(Path::new(&format!("{number}.png")), "unknown");
        }
        assert_eq!(report.exit_code(), ExitCode::SUCCESS);
        let chat = Path::new("chat.jsonl");
        for (line, reason) in [(3, "malformed"), (4, "blank"), (5, "malformed"), (9, "malformed")] {
            report.skip_line(chat, line, reason.to_owned());
        }
        report.skip(chat, "malformed");
        assert_eq!(report.exit_code(), ExitCode::FAILURE);
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..6],
            [
                "Imported 1 document (2 chunks) and 3 memories, 1 of which the server had already.",
                "Unchanged since an earlier import: 4 files; --again imports them again.",
                "Skipped 65:",
                "  chat.jsonl:3 and 2 more lines: malformed",
                "  chat.jsonl:4: blank",
                "  chat.jsonl: malformed",
            ]
        );
        assert_eq!((lines.len(), lines[53]), (54, "  … and 13 more"));
        let unchanged = Report { unchanged: 2, ..Default::default() }.to_string();
        assert!(unchanged.contains("--again imports them again, even if they have been deleted since."), "{unchanged}");
    }
}
