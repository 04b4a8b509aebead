//! Starts the embedded Postgres in this order: lock (a data directory has one owner), end of an earlier Postgres,
//! runtime, cluster, socket, postmaster. Released in reverse.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use sqlx::postgres::PgConnectOptions;
use tracing::info;

use super::{
    cluster, data_dir,
    error::EmbeddedError,
    login::{PORT, USER},
    postmaster::Postmaster,
    socket::{self, SocketDir},
    unpack,
};
use crate::postgres::startup::StartupStep;

/// Dropping it shuts Postgres down, which blocks for some 20 ms. If this process dies, the kernel signals Postgres on
/// Linux; elsewhere the next start ends it.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    // Drop order: Postgres stops, the directory of its socket is removed, the lock is released.
    _postmaster: Postmaster,
    socket: SocketDir,
    _lock: File,
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        self.socket.remove_socket();
    }
}

impl EmbeddedPostgres {
    /// Blocks for 50 ms, on the first start for seconds, and longer after a crash: use `spawn_blocking`. Fails with
    /// [`EmbeddedError::InUse`] if another server owns the directory.
    pub fn start(data_dir: &Path, progress: &dyn Fn(StartupStep)) -> Result<Self, EmbeddedError> {
        let started = Instant::now();
        let data_dir = &data_dir::create(data_dir)?;

        let lock = lock_data_dir(data_dir)?;
        let cluster = data_dir.join("postgres");
        cluster::end_previous_run(&cluster)?;
        unpack::remove_leftovers(data_dir);
        let runtime = unpack::runtime(data_dir, progress)?;
        cluster::create_if_missing(&runtime, data_dir, &cluster, progress)?;
        let socket = SocketDir::create(data_dir)?;

        progress(StartupStep::Starting);
        let postmaster = Postmaster::start(&runtime, &cluster, socket.path(), &data_dir.join("postgres.log"))?;
        info!(
            data_dir = %data_dir.display(),
            elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the embedded Postgres is ready"
        );
        Ok(Self { _postmaster: postmaster, socket, _lock: lock })
    }
}

/// Works whether Postgres runs or not.
pub fn connect_options(data_dir: &Path) -> Result<PgConnectOptions, EmbeddedError> {
    let socket = socket_path(data_dir)?;
    Ok(PgConnectOptions::new_without_pgpass().socket(socket).port(PORT).username(USER).database(USER))
}

pub fn socket_path(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    Ok(socket::location(&data_dir::create(data_dir)?).0)
}

/// The system releases the lock when the process ends, however that happens.
fn lock_data_dir(data_dir: &Path) -> Result<File, EmbeddedError> {
    let path = data_dir.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut lock = data_dir::open_private(&mut options, &path).map_err(EmbeddedError::io("open", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let is_known = lock.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
            let owner = if is_known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
            return Err(EmbeddedError::InUse { owner, data_dir: data_dir.to_owned() });
        }
        Err(TryLockError::Error(error)) => return Err(EmbeddedError::io("lock", &path)(error)),
    }
    write_pid(&mut lock).map_err(EmbeddedError::io("write", &path))?;
    Ok(lock)
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())
}
