//! From the archives inside this program to a directory with Postgres and pgvector.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::read::GzDecoder;
use ruzstd::decoding::StreamingDecoder;
use tar::Archive;
use tracing::debug;

use super::{super::StartupStep, EmbeddedError};

static RUNTIME: &[u8] = include_bytes!(env!("EMBEDDED_POSTGRES_RUNTIME"));
static PGVECTOR: &[u8] = include_bytes!(env!("EMBEDDED_POSTGRES_PGVECTOR"));

/// Names the version and the platform, so that a newer program unpacks anew.
const RUNTIME_DIR: &str = concat!("runtime-", env!("EMBEDDED_POSTGRES_VERSION"));

/// Under such a name a directory grows; it gets its real name when it is complete.
const PARTIAL: &str = "partial-";

/// The directory of the unpacked Postgres, unpacked now if it was not before.
pub(super) fn runtime(data_dir: &Path, progress: &dyn Fn(StartupStep)) -> Result<PathBuf, EmbeddedError> {
    let runtime = data_dir.join(RUNTIME_DIR);
    if runtime.is_dir() {
        return Ok(runtime);
    }
    progress(StartupStep::Unpacking);
    let partial = partial_path(data_dir);
    unpack(&partial).map_err(EmbeddedError::io("unpack Postgres into", &partial))?;
    flush(&partial).map_err(EmbeddedError::io("flush", &partial))?;
    publish(&partial, &runtime)?;
    Ok(runtime)
}

/// A new name in the directory. A process that a killed server left may still write under the old one for a moment.
pub(super) fn partial_path(data_dir: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    data_dir.join(format!("{PARTIAL}{}-{:x}", process::id(), now.as_nanos()))
}

/// Gives a complete directory, whose files are on the disk already, its real name.
pub(super) fn publish(partial: &Path, complete: &Path) -> Result<(), EmbeddedError> {
    fs::rename(partial, complete).map_err(EmbeddedError::io("move into place", complete))?;
    // The new name must reach the disk before rows are committed below it.
    let parent = complete.parent().unwrap_or(complete);
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(EmbeddedError::io("flush", parent))
}

/// Removes what interrupted starts and older versions left. Failing to costs space only.
pub(super) fn remove_leftovers(data_dir: &Path) {
    let Ok(entries) = fs::read_dir(data_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let old_runtime = name.starts_with("runtime-") && name != RUNTIME_DIR;
        if (old_runtime || name.starts_with(PARTIAL))
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            debug!(name, %error, "an old directory could not be removed");
        }
    }
}

fn unpack(into: &Path) -> io::Result<()> {
    unpack_tar(StreamingDecoder::new(RUNTIME).map_err(io::Error::other)?, into)?;
    unpack_tar(GzDecoder::new(PGVECTOR), into)
}

fn unpack_tar(archive: impl Read, into: &Path) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    archive.set_preserve_mtime(false);
    archive.unpack(into)
}

/// One call for hundreds of files; flushing each of them takes several times as long.
#[cfg(target_os = "linux")]
fn flush(directory: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(directory)?)?)
}

#[cfg(not(target_os = "linux"))]
fn flush(_directory: &Path) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}
