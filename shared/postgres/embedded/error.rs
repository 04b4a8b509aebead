use std::{
    io,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    #[error(
        "{owner} already uses the data directory {}: connect to that server with --addr, or set another AGENT_DATA_DIR, \
         or set DATABASE_URL",
        data_dir.display()
    )]
    InUse { owner: String, data_dir: PathBuf },
    /// Ignores all signals; its owner was killed.
    #[error("the Postgres process {pid} of an earlier run does not end: stop it, then start again")]
    StillRunning { pid: i32 },
    /// Another user owns the directory and could intercept connections.
    #[error("{} is not a directory of this user: remove it, or set another AGENT_DATA_DIR", path.display())]
    UnsafeSocketDir { path: PathBuf },
    /// Another user could change programs and data that this process trusts.
    #[error("{} {weakness}, or set another AGENT_DATA_DIR", path.display())]
    UnsafeDataDir { path: PathBuf, weakness: String },
    #[error("{program} failed ({status}); its last output:\n{log}")]
    Failed { program: &'static str, status: String, log: String },
    #[error("Postgres was not ready after {seconds} s; its last output:\n{log}")]
    NotReady { seconds: u64, log: String },
    #[error("failed to {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl EmbeddedError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
