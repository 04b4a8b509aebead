//! Finds the files to import and derives their ids.

use std::{
    collections::HashMap,
    fs::{self, FileType},
    io,
    path::{Path, PathBuf},
};

use agent_service::identity::MAX_ID_BYTES;

use super::report::Report;

#[derive(Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// As the user would write it.
    pub path: PathBuf,
    /// The path from the last component of the argument on, with forward slashes: the same in every run.
    pub id: String,
    pub format: FileFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    Markdown,
    PlainText,
    JsonLines,
}

impl FileFormat {
    fn from_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "md" | "markdown" => Some(Self::Markdown),
            "txt" => Some(Self::PlainText),
            "jsonl" => Some(Self::JsonLines),
            _ => None,
        }
    }
}

const UNKNOWN_FORMAT: &str = "not .md, .markdown, .txt or .jsonl";

/// Returns files in a stable order; the report gets those that cannot be imported.
pub fn find(arguments: &[PathBuf], report: &mut Report) -> Vec<SourceFile> {
    let mut collector = Collector { sources: Vec::new(), paths: HashMap::new(), report };
    for argument in arguments {
        if let Err(reason) = collector.add_argument(argument) {
            collector.report.skip(argument, reason);
        }
    }
    collector.sources
}

struct Collector<'r> {
    sources: Vec<SourceFile>,
    paths: HashMap<String, PathBuf>,
    report: &'r mut Report,
}

impl Collector<'_> {
    fn add_argument(&mut self, path: &Path) -> Result<(), String> {
        let file_type = fs::metadata(path).map_err(unreadable)?.file_type();
        let canonical = path.canonicalize().map_err(unreadable)?;
        // `.` and `..` have no file name, and the root has none even when canonical.
        let name = path.file_name().or_else(|| canonical.file_name()).unwrap_or_default();
        let id = name.to_str().ok_or(NAME_NOT_UTF8)?;
        if file_type.is_dir() { self.add_folder(path, id) } else { self.add_file(path, id.to_owned(), file_type) }
    }

    fn add_folder(&mut self, folder: &Path, id: &str) -> Result<(), String> {
        let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
        let mut entries = entries.map_err(unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if let Err(reason) = self.add_entry(&entry, id) {
                self.report.skip(&entry.path(), reason);
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, entry: &fs::DirEntry, folder_id: &str) -> Result<(), String> {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().ok_or(NAME_NOT_UTF8)?;
        let id = if folder_id.is_empty() { name.to_owned() } else { format!("{folder_id}/{name}") };
        let mut file_type = entry.file_type().map_err(unreadable)?;
        if file_type.is_dir() {
            return self.add_folder(&path, &id);
        }
        if file_type.is_symlink() {
            file_type = fs::metadata(&path).map_err(unreadable)?.file_type();
            if file_type.is_dir() {
                // The link may form a cycle.
                self.report.ignore(&path, "a link to a folder");
                return Ok(());
            }
        }
        if FileFormat::from_path(&path).is_none() {
            self.report.ignore(&path, UNKNOWN_FORMAT);
            return Ok(());
        }
        self.add_file(&path, id, file_type)
    }

    fn add_file(&mut self, path: &Path, id: String, file_type: FileType) -> Result<(), String> {
        let format = FileFormat::from_path(path).ok_or(UNKNOWN_FORMAT)?;
        if !file_type.is_file() {
            return Err("not a regular file".to_owned());
        }
        if id.len() > MAX_ID_BYTES {
            return Err(format!(
                "its id {id:?} is longer than {MAX_ID_BYTES} bytes; import the folder that contains it"
            ));
        }
        match self.paths.get(&id) {
            // The same file in two arguments.
            Some(other) if other.canonicalize().ok() == path.canonicalize().ok() => Ok(()),
            Some(other) => Err(format!(
                "{} has the same id {id:?} and would be replaced; import a folder that contains both",
                other.display()
            )),
            None => {
                self.paths.insert(id.clone(), path.to_owned());
                self.sources.push(SourceFile { path: path.to_owned(), id, format });
                Ok(())
            }
        }
    }
}

const NAME_NOT_UTF8: &str = "its name is not UTF-8";

pub fn unreadable(error: io::Error) -> String {
    format!("cannot be read: {error}")
}
