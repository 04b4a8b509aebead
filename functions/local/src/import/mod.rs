//! Importing files: documents whole, JSON lines in batches, one call after the other.
//!
//! What is done is noted in a [`journal`] after each call, so that an import that was interrupted goes on where it stopped.

mod document;
mod files;
mod journal;
mod lines;
mod progress;
mod report;
mod send;

use std::{
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use agent_service::{
    error::check_text,
    identity::{MAX_ID_BYTES, check_id},
    proto::agent_v1::{IngestDocumentRequest, MemoryInput},
};

use self::{
    files::{Kind, Source, unreadable},
    journal::{Entry, Journal, Progress},
    lines::Lines,
    progress::Bar,
    report::{Report, count},
    send::{Failure, Sender},
};
use crate::{CommandResult, EXIT_INTERRUPTED, EXIT_USAGE, connection::connect, options::ImportArguments};

/// Most memories of one call.
const BATCH: usize = 500;
/// A batch is full from this many bytes of lines on. With one line more at its limit, a call stays below 4 MB.
const BATCH_BYTES: usize = 2_000_000;

/// Imports files into the memory of a running server.
pub async fn run(arguments: ImportArguments) -> CommandResult {
    if let Err(mistakes) = check(&arguments) {
        for mistake in mistakes {
            eprintln!("error: {mistake}");
        }
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let mut report = Report::default();
    let sources = files::find(&arguments.paths, &mut report);
    let channel = connect(&arguments.connection).await?;
    let bar = Bar::new(sources.len());
    let mut import = Import {
        journal: open_journal(&arguments),
        sender: Sender::new(channel, arguments.connection.user, bar.clone()),
        tags: arguments.tags,
        bar: bar.clone(),
        report: &mut report,
    };
    let done = tokio::select! {
        done = import.all(&sources) => done.map_err(|reason| (format!("error: {reason}"), ExitCode::FAILURE)),
        _ = tokio::signal::ctrl_c() => Err(("Interrupted".to_owned(), ExitCode::from(EXIT_INTERRUPTED))),
    };
    let resumes = import.journal.is_kept();
    bar.clear();
    // Whoever wanted to read it may have gone, as `head` does.
    let _ = write!(io::stdout(), "{report}");
    let Err((reason, code)) = done else { return Ok(report.exit_code()) };
    let again = if resumes { "goes on where it stopped" } else { "starts over, and keeps nothing twice" };
    eprintln!("{reason}.\nThe same command {again}.");
    Ok(code)
}

/// Looks for mistakes that would spoil every file.
fn check(arguments: &ImportArguments) -> Result<(), Vec<String>> {
    let mut mistakes = Vec::new();
    mistakes.extend(check_id("--user", &arguments.connection.user).err().map(|error| error.to_string()));
    for tag in &arguments.tags {
        mistakes.extend(check_text("--tag", tag, MAX_ID_BYTES).err().map(|error| error.to_string()));
        if tag.trim().is_empty() {
            mistakes.push("--tag is blank".to_owned());
        }
    }
    let missing = |path: &&PathBuf| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    mistakes.extend(arguments.paths.iter().filter(missing).map(|path| format!("{} does not exist", path.display())));
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

/// The journal, or none with a warning.
fn open_journal(arguments: &ImportArguments) -> Journal {
    let opened = match journal::path(&arguments.connection.addr, &arguments.connection.user) {
        Some(path) => Journal::open(&path).map_err(|error| format!("{} can not be written: {error}", path.display())),
        None => Err("neither XDG_STATE_HOME nor HOME is set".to_owned()),
    };
    let mut journal = opened.unwrap_or_else(|reason| {
        eprintln!("warning: an interrupted import will start over, because {reason}");
        Journal::default()
    });
    if arguments.again {
        journal.forget();
    }
    journal
}

struct Import<'r> {
    journal: Journal,
    sender: Sender,
    /// Of everything that is imported.
    tags: Vec<String>,
    bar: Bar,
    report: &'r mut Report,
}

/// A memory with the number of its line.
type Numbered = (u64, MemoryInput);

impl Import<'_> {
    /// Imports all files, or says why it had to stop.
    async fn all(&mut self, sources: &[Source]) -> Result<(), String> {
        for source in sources {
            self.bar.show(self.report, &source.path);
            let done = match source.kind {
                Kind::Markdown | Kind::PlainText => self.document(source).await,
                Kind::JsonLines => self.memories(source).await,
            };
            match done {
                Ok(()) => {}
                Err(Failure::Refused(reason)) => self.report.skip(&source.path, reason),
                Err(Failure::Stopped(reason)) => return Err(reason),
            }
            self.bar.file_done();
        }
        Ok(())
    }

    async fn document(&mut self, source: &Source) -> Result<(), Failure> {
        let content = document::read(&source.path)?;
        let progress = Progress::whole(&content);
        if self.journal.entry(&source.id, &self.tags).is_some_and(|entry| entry.progress == progress) {
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
        self.report.chunks += self.sender.document(document).await?;
        self.report.documents += 1;
        self.note(source, progress, 0);
        Ok(())
    }

    async fn memories(&mut self, source: &Source) -> Result<(), Failure> {
        let broken = |error| Failure::Refused(unreadable(error));
        let (mut lines, skipped_before) = self.resume(source).map_err(broken)?;
        if lines.at_end().map_err(broken)? {
            if lines.progress().bytes == 0 {
                return Err(Failure::Refused("empty".to_owned()));
            }
            self.report.unchanged += 1;
            return Ok(());
        }
        let failures = self.report.failures();
        while !lines.at_end().map_err(broken)? {
            let batch = self.batch(source, &mut lines).map_err(broken)?;
            self.deliver(source, &batch).await?;
            self.note(source, lines.progress(), skipped_before + self.report.failures() - failures);
            self.bar.show(self.report, &source.path);
        }
        Ok(())
    }

    /// The lines that are not imported yet, and how many of those before could not be.
    fn resume(&mut self, source: &Source) -> io::Result<(Lines<io::BufReader<File>>, u64)> {
        let open = || File::open(&source.path).map(|file| Lines::new(io::BufReader::new(file)));
        let mut lines = open()?;
        let Some(done) = self.journal.entry(&source.id, &self.tags) else { return Ok((lines, 0)) };
        if !lines.pass_over(&done.progress)? {
            return Ok((open()?, 0));
        }
        if done.skipped > 0 {
            let skipped = count(done.skipped, "line was", "lines were");
            let reason = format!("{skipped} skipped by an import before; --again says which and why");
            self.report.skip(&source.path, reason);
        }
        Ok((lines, done.skipped))
    }

    /// The memories of the next lines. Lines that hold none go into the report.
    fn batch(&mut self, source: &Source, lines: &mut Lines<io::BufReader<File>>) -> io::Result<Vec<Numbered>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH
            && bytes < BATCH_BYTES
            && let Some((number, line)) = lines.next()?
        {
            match lines::parse(line) {
                Ok(Some(mut memory)) => {
                    bytes += line.len();
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

    /// Sends memories. Where the server refuses them, they are sent in halves until those are found that it means.
    async fn deliver(&mut self, source: &Source, batch: &[Numbered]) -> Result<(), Failure> {
        let mut waiting = vec![batch];
        while let Some(part) = waiting.pop() {
            if part.is_empty() {
                continue;
            }
            match (self.sender.memories(part.iter().map(|(_, memory)| memory)).await, part) {
                (Ok(added), _) => {
                    self.report.memories += part.len() as u64;
                    self.report.known += u64::try_from(added.unchanged).unwrap_or_default();
                }
                (Err(Failure::Refused(reason)), [(number, _)]) => {
                    self.report.skip_line(&source.path, *number, reason);
                }
                (Err(Failure::Refused(_)), _) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    waiting.extend([second, first]);
                }
                (Err(stopped @ Failure::Stopped(_)), _) => return Err(stopped),
            }
        }
        Ok(())
    }

    fn note(&mut self, source: &Source, progress: Progress, skipped: u64) {
        let entry = Entry { id: source.id.clone(), tags: self.tags.clone(), progress, skipped };
        if let Err(error) = self.journal.note(&entry) {
            self.bar
                .say(&format!("warning: an interrupted import will start over, because its journal failed: {error}"));
        }
    }
}
