//! The order of a start, and the lock that gives a data directory one owner.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Instant,
};

use tracing::info;

use super::{
    super::StartupStep,
    EmbeddedError, cluster,
    postmaster::Postmaster,
    socket::{self, SocketDir},
    unpack,
};

/// A running Postgres that ends with this value, and with this process however that ends.
///
/// Dropping it stops Postgres in order and cuts open connections. That blocks for some 20 ms; a Postgres that does not answer
/// is ended by force after 5 s.
///
/// After a sudden end of the process the system tells Postgres to shut down on Linux; elsewhere the next start does.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    // Fields are dropped in this order: first Postgres stops, then its socket goes, then others may own the directory.
    _postmaster: Postmaster,
    _socket: SocketDir,
    _lock: File,
}

impl EmbeddedPostgres {
    /// Starts Postgres on the data directory, which is created if need be, and returns when it accepts connections.
    ///
    /// Blocks for some 50 ms, on the first start for a second or two, and for longer after a crash: call it through
    /// `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::InUse`] if another server owns the directory; the other variants if the files cannot be written or
    /// Postgres does not start.
    pub fn start(data_dir: &Path, progress: &dyn Fn(StartupStep)) -> Result<Self, EmbeddedError> {
        let started = Instant::now();
        let data_dir = &make(data_dir)?;

        // Everything below relies on being the only one here.
        let lock = own(data_dir)?;
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
        Ok(Self { _postmaster: postmaster, _socket: socket, _lock: lock })
    }
}

/// The directory of the socket for a data directory, which is created if need be.
///
/// # Errors
///
/// [`EmbeddedError::Io`] if the data directory can not be made.
pub fn socket_path(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    Ok(socket::location(&make(data_dir)?).0)
}

/// Creates the data directory unless it is there, and gives its real path.
fn make(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    // The database belongs to this user alone, so does a directory made for it.
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(EmbeddedError::io("create", data_dir))?;
    fs::canonicalize(data_dir).map_err(EmbeddedError::io("open", data_dir))
}

/// Takes the lock of the directory, which the system gives back when the process ends in whichever way.
fn own(data_dir: &Path) -> Result<File, EmbeddedError> {
    let path = data_dir.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(EmbeddedError::io("open", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The number is for the reader only: without it, the directory is just as much in use.
            let known = lock.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
            let owner = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
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
