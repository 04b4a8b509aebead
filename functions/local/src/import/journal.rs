//! What has been imported, kept in a file so that an interrupted import goes on where it stopped.

use std::{
    collections::HashMap,
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How far into a file an import has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub bytes: u64,
    /// Of these bytes.
    pub sha256: String,
    /// How many lines these bytes are, where lines are counted.
    pub lines: u64,
}

impl Progress {
    /// The whole of a text.
    pub fn whole(text: &str) -> Self {
        Self { bytes: text.len() as u64, sha256: hex(&Sha256::digest(text)), lines: 0 }
    }
}

/// What has been imported of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of the file.
    pub id: String,
    pub tags: Vec<String>,
    #[serde(flatten)]
    pub progress: Progress,
    /// Lines that could not be imported.
    pub skipped: u64,
}

/// The entries of one user at one server. Each is a line of a file that is only ever appended to, so that a program that is
/// killed loses nothing but the line that it writes.
#[derive(Default)]
pub struct Journal {
    entries: HashMap<String, Entry>,
    file: Option<File>,
}

impl Journal {
    /// Opens the journal, which may not exist yet. A line that is no entry was torn and counts for nothing.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        if !bytes.is_empty() && !bytes.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
        let entries = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let entries = entries.map(|entry: Entry| (entry.id.clone(), entry)).collect();
        Ok(Self { entries, file: Some(file) })
    }

    /// Forgets what has been imported.
    pub fn forget(&mut self) {
        self.entries.clear();
    }

    /// Whether an interrupted import can go on.
    pub fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// What has been imported of a file with the same tags.
    pub fn entry(&self, id: &str, tags: &[String]) -> Option<&Entry> {
        self.entries.get(id).filter(|entry| entry.tags == tags)
    }

    /// Notes what has been imported. After an error nothing more is noted.
    pub fn note(&mut self, entry: &Entry) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line).inspect_err(|_| self.file = None)
    }
}

/// Where the journal of a user at a server is, by the conventions of the system (XDG base directories).
pub fn path(address: &str, user: &str) -> Option<PathBuf> {
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| env::home_dir().map(|home| home.join(".local/state")))?;
    let name = hex(&Sha256::digest(format!("{}\n{user}", address.trim_end_matches('/'))));
    Some(state.join("agent-service/import").join(format!("{}.jsonl", &name[..16])))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, text: &str) -> Entry {
        Entry { id: id.to_owned(), tags: vec!["math".to_owned()], progress: Progress::whole(text), skipped: 1 }
    }

    #[test]
    fn the_last_entry_of_a_file_counts_and_a_torn_line_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/import/journal.jsonl");
        let tags = ["math".to_owned()];
        let (old, new, other) = (entry("a.md", "old"), entry("a.md", "new"), entry("b.md", "text"));
        let mut journal = Journal::open(&path).unwrap();
        for entry in [&old, &other, &new] {
            journal.note(entry).unwrap();
        }
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();

        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.entry("a.md", &tags), Some(&old));
        journal.note(&new).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.entry("a.md", &tags), Some(&new));
        assert_eq!(journal.entry("b.md", &tags), Some(&other));
        assert_eq!(journal.entry("b.md", &[]), None, "other tags");
        journal.forget();
        assert_eq!(journal.entry("a.md", &tags), None);
    }

    #[test]
    fn every_user_at_every_server_has_a_journal() {
        let one = path("http://127.0.0.1:50051", "ann");
        assert_eq!(path("http://127.0.0.1:50051/", "ann"), one);
        assert_ne!(path("http://127.0.0.1:50051", "bob"), one);
        assert_ne!(path("http://127.0.0.1:50052", "ann"), one);
    }
}
