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
use tracing::{debug, warn};

use super::{data_dir, error::EmbeddedError};
use crate::postgres::startup::StartupStep;

static RUNTIME: &[u8] = include_bytes!(env!("EMBEDDED_POSTGRES_RUNTIME"));
static PGVECTOR: &[u8] = include_bytes!(env!("EMBEDDED_POSTGRES_PGVECTOR"));

/// A newer program unpacks its own.
const RUNTIME_DIR: &str = concat!("runtime-", env!("EMBEDDED_POSTGRES_VERSION"));

const PARTIAL_PREFIX: &str = "partial-";

pub(super) fn runtime(data_dir: &Path, progress: &dyn Fn(StartupStep)) -> Result<PathBuf, EmbeddedError> {
    let runtime = data_dir.join(RUNTIME_DIR);
    if data_dir::is_untouched(&runtime) {
        return Ok(runtime);
    }
    if fs::symlink_metadata(&runtime).is_ok() {
        warn!(directory = %runtime.display(), "unpacking Postgres again: other users could have changed it");
        discard(&runtime, data_dir)?;
    }
    progress(StartupStep::Unpacking);
    let partial = partial_path(data_dir);
    unpack(&partial).map_err(EmbeddedError::io("unpack Postgres into", &partial))?;
    flush(&partial).map_err(EmbeddedError::io("flush", &partial))?;
    publish(&partial, &runtime)?;
    Ok(runtime)
}

/// Removed by [`remove_leftovers`], at the latest in the next start.
fn discard(directory: &Path, data_dir: &Path) -> Result<(), EmbeddedError> {
    let partial = partial_path(data_dir);
    fs::rename(directory, &partial).map_err(EmbeddedError::io("move away", directory))?;
    remove_leftovers(data_dir);
    Ok(())
}

/// Unique per call: a child of a killed server may still write to its directory for a moment.
pub(super) fn partial_path(data_dir: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    data_dir.join(format!("{PARTIAL_PREFIX}{}-{:x}", process::id(), now.as_nanos()))
}

pub(super) fn publish(partial: &Path, complete: &Path) -> Result<(), EmbeddedError> {
    fs::rename(partial, complete).map_err(EmbeddedError::io("move into place", complete))?;
    // The rename must be durable before rows are committed below it.
    let parent = complete.parent().unwrap_or(complete);
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(EmbeddedError::io("flush", parent))
}

/// Of interrupted starts and older versions. Failures are ignored: they cost disk space only.
pub(super) fn remove_leftovers(data_dir: &Path) {
    let Ok(entries) = fs::read_dir(data_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let old_runtime = name.starts_with("runtime-") && name != RUNTIME_DIR;
        if (old_runtime || name.starts_with(PARTIAL_PREFIX))
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            debug!(name, %error, "failed to remove an old directory");
        }
    }
}

fn unpack(into: &Path) -> io::Result<()> {
    data_dir::create_private_dir(into)?;
    unpack_tar(StreamingDecoder::new(RUNTIME).map_err(io::Error::other)?, into)?;
    unpack_tar(GzDecoder::new(PGVECTOR), into)
}

fn unpack_tar(archive: impl Read, into: &Path) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    archive.set_preserve_mtime(false);
    archive.set_mask(0o077);
    archive.unpack(into)
}

/// One `syncfs` is several times faster than an `fsync` of each of hundreds of files.
#[cfg(target_os = "linux")]
fn flush(directory: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(directory)?)?)
}

#[cfg(not(target_os = "linux"))]
fn flush(_directory: &Path) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}
