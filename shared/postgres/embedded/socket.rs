//! Connections need no password: the permissions of the socket's directory keep other users out.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::ErrorKind,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{cluster, data_dir, error::EmbeddedError, login::PORT};

/// Bytes. `sun_path` has 104 to 108, depending on the system; some clients count the terminating NUL.
const MAX_SOCKET_PATH: usize = 99;

#[derive(Debug)]
pub(super) struct SocketDir {
    path: PathBuf,
    is_temporary: bool,
}

impl SocketDir {
    pub(super) fn create(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let (path, is_temporary) = location(data_dir);
        create_private(&path)?;
        // Left by a killed Postgres; its process id may have been reused. No other Postgres uses this directory.
        for name in [format!(".s.PGSQL.{PORT}"), format!(".s.PGSQL.{PORT}.lock")] {
            cluster::remove_if_present(&path.join(name))?;
        }
        Ok(Self { path, is_temporary })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Nobody can connect from then on. Postgres 17 does not stop while a connection that was begun during its shutdown
    /// is silent.
    pub(super) fn remove_socket(&self) {
        let _ = fs::remove_file(self.path.join(format!(".s.PGSQL.{PORT}")));
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.is_temporary {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Below the data directory or, if that does not suit, temporary (`true`).
pub(super) fn location(data_dir: &Path) -> (PathBuf, bool) {
    let preferred = data_dir.join("socket");
    if is_suitable(&preferred) { (preferred, false) } else { (temporary_path(data_dir), true) }
}

/// Postgres parses the setting as a list, in which commas and quotes are syntax.
fn is_suitable(directory: &Path) -> bool {
    let length = directory.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len();
    length <= MAX_SOCKET_PATH && directory.to_str().is_some_and(|path| !path.contains([',', '"']))
}

/// Derived from the data directory, so that a start reuses the directory of a killed server.
fn temporary_path(data_dir: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    data_dir.hash(&mut hasher);
    let name = format!("agent-pg-{:016x}", hasher.finish());
    let preferred = env::temp_dir().join(&name);
    if is_suitable(&preferred) { preferred } else { Path::new("/tmp").join(name) }
}

/// Verifies the owner: any user may have created the temporary directory.
fn create_private(path: &Path) -> Result<(), EmbeddedError> {
    match data_dir::create_private_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(EmbeddedError::io("create", path)(error)),
        _ => {}
    }
    // Does not follow links: another user's link could be redirected at any time.
    let found = fs::symlink_metadata(path).map_err(EmbeddedError::io("read", path))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(EmbeddedError::UnsafeSocketDir { path: path.to_owned() });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(EmbeddedError::io("restrict access to", path))
}
