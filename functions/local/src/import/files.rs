//! Which files are imported, and under which ids.

use std::{
    collections::HashMap,
    fs::{self, FileType},
    io,
    path::{Path, PathBuf},
};

use agent_service::identity::MAX_ID_BYTES;

use super::report::Report;

/// A file to import.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it is, as the user would write it.
    pub path: PathBuf,
    /// The same in every run: its path from the last name of the argument on, with forward slashes.
    pub id: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Markdown,
    PlainText,
    /// A memory a line.
    JsonLines,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "md" | "markdown" => Some(Self::Markdown),
            "txt" => Some(Self::PlainText),
            "jsonl" => Some(Self::JsonLines),
            _ => None,
        }
    }
}

const UNKNOWN_KIND: &str = "not .md, .markdown, .txt or .jsonl";

/// The files at and below these paths, in the same order every time. What is no such file goes into the report.
pub fn find(arguments: &[PathBuf], report: &mut Report) -> Vec<Source> {
    let mut found = Found { sources: Vec::new(), paths: HashMap::new(), report };
    for argument in arguments {
        if let Err(reason) = found.argument(argument) {
            found.report.skip(argument, reason);
        }
    }
    found.sources
}

struct Found<'r> {
    sources: Vec<Source>,
    /// Which file has an id.
    paths: HashMap<String, PathBuf>,
    report: &'r mut Report,
}

impl Found<'_> {
    fn argument(&mut self, path: &Path) -> Result<(), String> {
        let kind = fs::metadata(path).map_err(unreadable)?.file_type();
        let canonical = path.canonicalize().map_err(unreadable)?;
        // `.` and `..` have no name of their own, and the root has none at all.
        let name = path.file_name().or_else(|| canonical.file_name()).unwrap_or_default();
        let id = name.to_str().ok_or(NAME_NOT_UTF8)?;
        if kind.is_dir() { self.folder(path, id) } else { self.file(path, id.to_owned(), kind) }
    }

    fn folder(&mut self, folder: &Path, id: &str) -> Result<(), String> {
        let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
        let mut entries = entries.map_err(unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if let Err(reason) = self.entry(&entry, id) {
                self.report.skip(&entry.path(), reason);
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &fs::DirEntry, folder_id: &str) -> Result<(), String> {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().ok_or(NAME_NOT_UTF8)?;
        let id = if folder_id.is_empty() { name.to_owned() } else { format!("{folder_id}/{name}") };
        let mut kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() {
            return self.folder(&path, &id);
        }
        if kind.is_symlink() {
            kind = fs::metadata(&path).map_err(unreadable)?.file_type();
            if kind.is_dir() {
                // It may lead in a circle.
                self.report.pass_over(&path, "a link to a folder");
                return Ok(());
            }
        }
        if Kind::of(&path).is_none() {
            self.report.pass_over(&path, UNKNOWN_KIND);
            return Ok(());
        }
        self.file(&path, id, kind)
    }

    fn file(&mut self, path: &Path, id: String, file_type: FileType) -> Result<(), String> {
        let kind = Kind::of(path).ok_or(UNKNOWN_KIND)?;
        if !file_type.is_file() {
            return Err("no regular file".to_owned());
        }
        if id.len() > MAX_ID_BYTES {
            return Err(format!("its id {id:?} is longer than {MAX_ID_BYTES} bytes; import the folder that it is in"));
        }
        match self.paths.get(&id) {
            // The same file, named twice.
            Some(other) if other.canonicalize().ok() == path.canonicalize().ok() => Ok(()),
            Some(other) => Err(format!(
                "{} has the same id {id:?} and would be replaced; import a folder that holds both",
                other.display()
            )),
            None => {
                self.paths.insert(id.clone(), path.to_owned());
                self.sources.push(Source { path: path.to_owned(), id, kind });
                Ok(())
            }
        }
    }
}

const NAME_NOT_UTF8: &str = "its name is not UTF-8";

/// Why a file is not read.
pub fn unreadable(error: io::Error) -> String {
    format!("can not be read: {error}")
}
