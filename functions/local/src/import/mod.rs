//! `agent-local import`: uploads documents whole and JSON Lines in batches, one call after the other.
//!
//! After each call a [`journal`] records the progress, so that an interrupted import resumes where it stopped. A call whose
//! response was lost is repeated, which is safe: the server recognizes what it has stored already.

mod document;
mod files;
mod journal;
mod lines;
mod progress;
mod report;
mod upload;

use std::{
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use agent_service::{
    error::check_text,
    identity::{MAX_ID_BYTES, check_id},
    memory::{MAX_MEMORY_TERMS, MAX_REQUEST_TERMS, count_terms},
    proto::agent_v1::{IngestDocumentRequest, MemoryInput},
};

use self::{
    files::{FileFormat, SourceFile, unreadable},
    journal::{ImportedPrefix, Journal, JournalEntry},
    lines::LineReader,
    progress::ImportProgress,
    report::{Report, count},
    upload::{ImportError, Uploader},
};
use crate::{CommandResult, EXIT_INTERRUPTED, EXIT_USAGE, connection::connect, options::ImportArguments};

/// Memories per call.
const MAX_BATCH: usize = 500;
/// Bytes of lines after which a batch is full. With one more line of maximum size, a call stays below 4 MB.
const FULL_BATCH_BYTES: usize = 2_000_000;
/// Terms after which a batch is full. With one more memory of maximum size, a call stays within the server's budget.
const FULL_BATCH_TERMS: usize = MAX_REQUEST_TERMS - MAX_MEMORY_TERMS;

pub async fn run(arguments: ImportArguments) -> CommandResult {
    if let Err(errors) = validate(&arguments) {
        for error in errors {
            eprintln!("error: {error}");
        }
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let mut report = Report::default();
    let sources = files::find(&arguments.paths, &mut report);
    let channel = connect(&arguments.connection).await?;
    let progress = ImportProgress::new(sources.len());
    let mut import = Import {
        journal: open_journal(&arguments),
        uploader: Uploader::new(channel, arguments.connection.user, progress.clone()),
        tags: arguments.tags,
        progress: progress.clone(),
        report: &mut report,
    };
    let result = tokio::select! {
        result = import.import_all(&sources) => result.map_err(|reason| (format!("error: {reason}"), ExitCode::FAILURE)),
        _ = tokio::signal::ctrl_c() => Err(("Interrupted".to_owned(), ExitCode::from(EXIT_INTERRUPTED))),
    };
    let can_resume = import.journal.is_persistent();
    progress.clear();
    // Ignores a closed standard output, as after `| head`.
    let _ = write!(io::stdout(), "{report}");
    let Err((reason, code)) = result else { return Ok(report.exit_code()) };
    let retry = if can_resume { "resumes where it stopped" } else { "starts over and stores nothing twice" };
    eprintln!("{reason}.\nThe same command {retry}.");
    Ok(code)
}

/// Finds errors that would fail every file.
fn validate(arguments: &ImportArguments) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    errors.extend(check_id("--user", &arguments.connection.user).err().map(|error| error.to_string()));
    for tag in &arguments.tags {
        errors.extend(check_text("--tag", tag, MAX_ID_BYTES).err().map(|error| error.to_string()));
        if tag.trim().is_empty() {
            errors.push("--tag is blank".to_owned());
        }
    }
    let missing = |path: &&PathBuf| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    errors.extend(arguments.paths.iter().filter(missing).map(|path| format!("{} does not exist", path.display())));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Without a writable journal, warns and returns one in memory.
fn open_journal(arguments: &ImportArguments) -> Journal {
    let opened = match journal::path(&arguments.connection.addr, &arguments.connection.user) {
        Some(path) => Journal::open(&path).map_err(|error| format!("{} cannot be written: {error}", path.display())),
        None => Err("neither XDG_STATE_HOME nor HOME is set".to_owned()),
    };
    let mut journal = opened.unwrap_or_else(|reason| {
        eprintln!("warning: an interrupted import will start over, because {reason}");
        Journal::default()
    });
    if arguments.again {
        journal.clear();
    }
    journal
}

struct Import<'r> {
    journal: Journal,
    uploader: Uploader,
    tags: Vec<String>,
    progress: ImportProgress,
    report: &'r mut Report,
}

type NumberedMemory = (u64, MemoryInput);

#[derive(Debug, Default)]
struct BatchSize {
    memories: usize,
    bytes: usize,
    terms: usize,
}

impl BatchSize {
    fn add(&mut self, line: &[u8], memory: &MemoryInput) {
        self.memories += 1;
        self.bytes += line.len();
        self.terms += count_terms(&memory.content, memory.metadata.get("speaker").map_or("", String::as_str));
    }

    fn is_full(&self) -> bool {
        self.memories >= MAX_BATCH || self.bytes >= FULL_BATCH_BYTES || self.terms >= FULL_BATCH_TERMS
    }
}

impl Import<'_> {
    /// Returns the reason if it had to stop.
    async fn import_all(&mut self, sources: &[SourceFile]) -> Result<(), String> {
        for source in sources {
            self.progress.update(self.report, &source.path);
            let result = match source.format {
                FileFormat::Markdown | FileFormat::PlainText => self.import_document(source).await,
                FileFormat::JsonLines => self.import_memories(source).await,
            };
            match result {
                Ok(()) => {}
                Err(ImportError::Rejected(reason)) => self.report.skip(&source.path, reason),
                Err(ImportError::Aborted(reason)) => return Err(reason),
            }
            self.progress.finish_file();
        }
        Ok(())
    }

    async fn import_document(&mut self, source: &SourceFile) -> Result<(), ImportError> {
        let content = document::read(&source.path)?;
        let prefix = ImportedPrefix::whole(&content);
        if self.journal.entry(&source.id, &self.tags).is_some_and(|entry| entry.prefix == prefix) {
            self.report.unchanged += 1;
            return Ok(());
        }
        let document = IngestDocumentRequest {
            document_id: source.id.clone(),
            title: document::title(source, &content),
            content,
            tags: self.tags.clone(),
            ..Default::default()
        };
        self.report.chunks += self.uploader.ingest_document(document).await?;
        self.report.documents += 1;
        self.record(source, prefix, 0);
        Ok(())
    }

    async fn import_memories(&mut self, source: &SourceFile) -> Result<(), ImportError> {
        let rejected = |error| ImportError::Rejected(unreadable(error));
        let (mut lines, skipped_before) = self.resume(source).map_err(rejected)?;
        if lines.at_end().map_err(rejected)? {
            if lines.prefix().bytes == 0 {
                return Err(ImportError::Rejected("empty".to_owned()));
            }
            self.report.unchanged += 1;
            return Ok(());
        }
        let failures = self.report.failures();
        while !lines.at_end().map_err(rejected)? {
            let batch = self.read_batch(source, &mut lines).map_err(rejected)?;
            self.upload_batch(source, &batch).await?;
            self.record(source, lines.prefix(), skipped_before + self.report.failures() - failures);
            self.progress.update(self.report, &source.path);
        }
        Ok(())
    }

    /// The lines that are not imported yet, and the number of skipped lines before them.
    fn resume(&mut self, source: &SourceFile) -> io::Result<(LineReader<io::BufReader<File>>, u64)> {
        let open = || File::open(&source.path).map(|file| LineReader::new(io::BufReader::new(file)));
        let mut lines = open()?;
        let Some(done) = self.journal.entry(&source.id, &self.tags) else { return Ok((lines, 0)) };
        if !lines.skip_imported(&done.prefix)? {
            return Ok((open()?, 0));
        }
        if done.skipped > 0 {
            let skipped = count(done.skipped, "line was", "lines were");
            let reason = format!("{skipped} skipped by an earlier import; --again lists them with reasons");
            self.report.skip(&source.path, reason);
        }
        Ok((lines, done.skipped))
    }

    fn read_batch(
        &mut self,
        source: &SourceFile,
        lines: &mut LineReader<io::BufReader<File>>,
    ) -> io::Result<Vec<NumberedMemory>> {
        let mut batch = Vec::new();
        let mut size = BatchSize::default();
        while !size.is_full()
            && let Some((number, line)) = lines.next()?
        {
            match lines::parse(line) {
                Ok(Some(mut memory)) => {
                    size.add(line, &memory);
                    let missing = self.tags.iter().filter(|tag| !memory.tags.contains(tag)).cloned();
                    let missing: Vec<String> = missing.collect();
                    memory.tags.extend(missing);
                    batch.push((number, memory));
                }
                Ok(None) => {}
                Err(reason) => self.report.skip_line(&source.path, number, reason),
            }
        }
        Ok(batch)
    }

    /// Bisects a batch that the server rejects until the invalid memories are found.
    async fn upload_batch(&mut self, source: &SourceFile, batch: &[NumberedMemory]) -> Result<(), ImportError> {
        let mut pending = vec![batch];
        while let Some(part) = pending.pop() {
            if part.is_empty() {
                continue;
            }
            match (self.uploader.add_memories(part.iter().map(|(_, memory)| memory)).await, part) {
                (Ok(added), _) => {
                    self.report.memories += part.len() as u64;
                    self.report.known += u64::try_from(added.unchanged).unwrap_or_default();
                }
                (Err(ImportError::Rejected(reason)), [(number, _)]) => {
                    self.report.skip_line(&source.path, *number, reason);
                }
                (Err(ImportError::Rejected(_)), _) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    pending.extend([second, first]);
                }
                (Err(aborted @ ImportError::Aborted(_)), _) => return Err(aborted),
            }
        }
        Ok(())
    }

    fn record(&mut self, source: &SourceFile, prefix: ImportedPrefix, skipped: u64) {
        let entry = JournalEntry { id: source.id.clone(), tags: self.tags.clone(), prefix, skipped };
        if let Err(error) = self.journal.append(&entry) {
            self.progress.print_line(&format!(
                "warning: an interrupted import will start over, because its journal cannot be written: {error}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_is_full_before_it_exceeds_a_limit_of_the_server() {
        // Pairs of Chinese characters, none of which repeats.
        let content = ('\u{4E00}'..).take(MAX_MEMORY_TERMS - 10).collect::<String>();
        let memory = MemoryInput { content, ..MemoryInput::default() };
        let mut size = BatchSize::default();
        while !size.is_full() {
            size.add(b"{}", &memory);
        }
        assert!(size.terms <= MAX_REQUEST_TERMS && size.memories >= 30, "{size:?}");
        let (mut many, mut long) = (BatchSize::default(), BatchSize::default());
        while !many.is_full() {
            many.add(b"{}", &MemoryInput { content: "short".to_owned(), ..MemoryInput::default() });
        }
        while !long.is_full() {
            long.add(&[b'x'; 900_000], &MemoryInput::default());
        }
        assert_eq!((many.memories, long.memories), (MAX_BATCH, 3));
    }
}
