//! The import journal: a file of what has been imported, so that an interrupted import resumes where it stopped.

use std::{
    collections::HashMap,
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The part of a file, from its beginning, that has been imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedPrefix {
    pub bytes: u64,
    pub sha256: String,
    /// 0 for documents.
    pub lines: u64,
}

impl ImportedPrefix {
    pub fn whole(text: &str) -> Self {
        Self { bytes: text.len() as u64, sha256: hex(&Sha256::digest(text)), lines: 0 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    pub id: String,
    pub tags: Vec<String>,
    #[serde(flatten)]
    pub prefix: ImportedPrefix,
    /// Lines that could not be imported.
    pub skipped: u64,
}

/// The entries of one user at one server. The file is append-only with one entry per line: a killed program loses at most the
/// line that it was writing.
#[derive(Default)]
pub struct Journal {
    entries: HashMap<String, JournalEntry>,
    file: Option<File>,
}

impl Journal {
    /// Creates the journal if necessary. Lines that cannot be parsed (torn writes) are ignored.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            create_private_folder(folder)?;
        }
        let mut file = open_private(OpenOptions::new().create(true).read(true).append(true), path)?;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        if !bytes.is_empty() && !bytes.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
        let entries = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let entries = entries.map(|entry: JournalEntry| (entry.id.clone(), entry)).collect();
        Ok(Self { entries, file: Some(file) })
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    pub fn is_persistent(&self) -> bool {
        self.file.is_some()
    }

    pub fn entry(&self, id: &str, tags: &[String]) -> Option<&JournalEntry> {
        self.entries.get(id).filter(|entry| entry.tags == tags)
    }

    /// After an error nothing more is written.
    pub fn append(&mut self, entry: &JournalEntry) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line).inspect_err(|_| self.file = None)
    }
}

#[cfg(unix)]
fn create_private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn create_private_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

/// The names of imported files and their tags are the user's.
#[cfg(unix)]
fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let file = options.mode(0o600).open(path)?;
    // A journal of an earlier version has the mode that the umask left.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(not(unix))]
fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.open(path)
}

/// By the XDG base directory specification.
pub fn path(address: &str, user: &str) -> Option<PathBuf> {
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| env::home_dir().map(|home| home.join(".local/state")))?;
    let name = hex(&Sha256::digest(format!("{}\n{user}", address.trim_end_matches('/'))));
    Some(state.join("agent-service/import").join(format!("{}.jsonl", &name[..16])))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, text: &str) -> JournalEntry {
        JournalEntry {
            id: id.to_owned(),
            tags: vec!["math".to_owned()],
            prefix: ImportedPrefix::whole(text),
            skipped: 1,
        }
    }

    #[test]
    fn journal_uses_last_entry_and_ignores_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/import/journal.jsonl");
        let tags = ["math".to_owned()];
        let (old, new, other) = (entry("a.md", "old"), entry("a.md", "new"), entry("b.md", "text"));
        let mut journal = Journal::open(&path).unwrap();
        for entry in [&old, &other, &new] {
            journal.append(entry).unwrap();
        }
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();

        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.entry("a.md", &tags), Some(&old));
        journal.append(&new).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.entry("a.md", &tags), Some(&new));
        assert_eq!(journal.entry("b.md", &tags), Some(&other));
        assert_eq!(journal.entry("b.md", &[]), None, "other tags");
        journal.clear();
        assert_eq!(journal.entry("a.md", &tags), None);
    }

    #[test]
    fn journal_path_differs_by_user_and_server() {
        let one = path("http://127.0.0.1:50051", "ann");
        assert_eq!(path("http://127.0.0.1:50051/", "ann"), one);
        assert_ne!(path("http://127.0.0.1:50051", "bob"), one);
        assert_ne!(path("http://127.0.0.1:50052", "ann"), one);
    }
}
