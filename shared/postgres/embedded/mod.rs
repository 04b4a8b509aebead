//! A Postgres of one's own: the database of a server that was given no `DATABASE_URL`.
//!
//! The program carries a native Postgres with pgvector, unpacks it once into its data directory and runs it for as long as
//! [`EmbeddedPostgres`] lives. It listens on a Unix socket in a directory that only the own user may enter, and it keeps
//! all the guarantees of Postgres: a committed row survives the sudden death of this process.
//!
//! Deliberately not here: no pool, no migrations and no SQL, which belong to the store; no second server on one directory;
//! no restart of a Postgres that died, because whoever runs the server has to know about it; no upgrade of a cluster from one
//! major version to the next; and no tuning, since a server that outgrows the settings wants a real `DATABASE_URL`.
//!
//! ```text
//! AGENT_DATA_DIR/
//!   lock           held by the owner while it runs; contains its process id
//!   runtime-…/     the unpacked Postgres; may be deleted while nothing runs
//!   postgres/      the cluster: the data
//!   socket/        where Postgres listens, unless the path is too long for a socket
//!   postgres.log   the log of the last run, at most 1 MiB
//!   partial-…/     what an interrupted start left; the next one removes it
//! ```

use std::{
    io,
    path::{Path, PathBuf},
};

use sqlx::postgres::PgConnectOptions;

mod cluster;
mod instance;
mod postmaster;
mod socket;
mod unpack;

pub use instance::{EmbeddedPostgres, socket_path};

/// The superuser of the cluster. It has no password: whoever may enter the socket directory is trusted.
pub const USER: &str = "postgres";

/// The port, which is a part of the socket's file name. Set it when connecting, lest `PGPORT` in the environment changes it.
pub const PORT: u16 = 5432;

/// How to connect to the Postgres of a data directory, which may not run yet.
///
/// # Errors
/// The directory can not be made.
pub fn connect_options(data_dir: &Path) -> Result<PgConnectOptions, EmbeddedError> {
    let socket = socket_path(data_dir)?;
    Ok(PgConnectOptions::new_without_pgpass().socket(socket).port(PORT).username(USER).database(USER))
}

/// Why there is no embedded Postgres.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// Another server owns the data directory.
    #[error(
        "{owner} already uses the data directory {}: connect to that server with --addr, or set another AGENT_DATA_DIR, \
         or set DATABASE_URL",
        data_dir.display()
    )]
    InUse {
        /// The owner as a reader may call it: "process 4711".
        owner: String,
        /// The data directory that both want.
        data_dir: PathBuf,
    },
    /// The Postgres of an owner that was killed does not end, although it was told to.
    #[error("the Postgres process {pid} of an earlier run does not end: stop it, then start again")]
    StillRunning {
        /// The process id of the old postmaster.
        pid: i32,
    },
    /// The directory for the socket belongs to somebody else, who could read along.
    #[error("{} is not a directory of this user: remove it, or set another AGENT_DATA_DIR", path.display())]
    UnsafeSocketDir {
        /// The directory in question.
        path: PathBuf,
    },
    /// `initdb` failed, or Postgres ended before it was ready.
    #[error("{program} failed ({status}); it said last:\n{log}")]
    Failed {
        /// The program that failed.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// The last lines that it wrote.
        log: String,
    },
    /// Postgres was not ready in time.
    #[error("Postgres was not ready after {seconds} s; it said last:\n{log}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// The last lines that it wrote.
        log: String,
    },
    /// A file operation failed.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The reason of the system.
        source: io::Error,
    },
}

impl EmbeddedError {
    /// For `map_err`: an I/O error together with what was tried on which path.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
