use std::{
    io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// For the operator who configured the directory.
#[derive(Debug, thiserror::Error)]
pub enum LocalModelError {
    #[error("{path} cannot be read: {source}; {expected}", path = .path.display())]
    Unreadable { path: PathBuf, expected: &'static str, source: io::Error },
    #[error("{path} is invalid: {problem}", path = .path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{path} requires {required}; supported are {supported}", path = .path.display())]
    Unsupported { path: PathBuf, required: String, supported: &'static str },
}

pub(super) fn read(path: &Path, expected: &'static str) -> Result<Vec<u8>, LocalModelError> {
    std::fs::read(path).map_err(|source| LocalModelError::Unreadable { path: path.to_owned(), expected, source })
}

/// `None`: there is no such file.
pub(super) fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LocalModelError> {
    match std::fs::read(path) {
        Ok(content) => parse(path, &content).map(Some),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            let expected = "it should be a file that this process may read";
            Err(LocalModelError::Unreadable { path: path.to_owned(), expected, source })
        }
    }
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, content: &[u8]) -> Result<T, LocalModelError> {
    serde_json::from_slice(content).map_err(|error| malformed(path, error))
}

pub(super) fn malformed(path: &Path, problem: impl ToString) -> LocalModelError {
    LocalModelError::Malformed { path: path.to_owned(), problem: problem.to_string() }
}

pub(super) fn unsupported(path: &Path, required: String, supported: &'static str) -> LocalModelError {
    LocalModelError::Unsupported { path: path.to_owned(), required, supported }
}
