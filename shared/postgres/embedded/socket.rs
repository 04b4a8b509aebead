//! Where Postgres listens. Its users need no password, so the directory is what keeps other users of the machine out.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{EmbeddedError, PORT, cluster};

/// The system allows 104 to 108 bytes for the path of a socket; some clients count the ending zero.
const LONGEST_SOCKET_PATH: usize = 99;

/// A directory that only this user may enter, with a path short enough for a socket.
#[derive(Debug)]
pub(super) struct SocketDir {
    path: PathBuf,
    /// It lies among the temporary files of the machine and should not stay there.
    temporary: bool,
}

impl SocketDir {
    /// Creates the directory at its [`location`].
    pub(super) fn create(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let (path, temporary) = location(data_dir);
        private_directory(&path)?;
        // A killed Postgres leaves its socket's lock behind, with a process id that may by now be somebody else's. The
        // directory is for this data directory only, whose Postgres is known not to run.
        for name in [format!(".s.PGSQL.{PORT}"), format!(".s.PGSQL.{PORT}.lock")] {
            cluster::remove_if_present(&path.join(name))?;
        }
        Ok(Self { path, temporary })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.temporary {
            // Not being able to tidy up harms nobody: the next start uses the directory again.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// In the data directory, whose real path this is, or, if that path does not suit, among the temporary files (`true`).
pub(super) fn location(data_dir: &Path) -> (PathBuf, bool) {
    let beside_data = data_dir.join("socket");
    if suits(&beside_data) { (beside_data, false) } else { (temporary_path(data_dir), true) }
}

/// Whether Postgres can listen there. It reads its setting as a list, in which commas and quotes mean something.
fn suits(directory: &Path) -> bool {
    let length = directory.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len();
    length <= LONGEST_SOCKET_PATH && directory.to_str().is_some_and(|path| !path.contains([',', '"']))
}

/// A short path that differs for each data directory and is the same at each start, lest killed servers fill the folder.
fn temporary_path(data_dir: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    data_dir.hash(&mut hasher);
    let name = format!("agent-pg-{:016x}", hasher.finish());
    // A symbolic link in the path, as on macOS, changes nothing about the length that the system sees.
    let preferred = env::temp_dir().join(&name);
    if suits(&preferred) { preferred } else { Path::new("/tmp").join(name) }
}

/// Makes sure that the directory is ours alone: anybody may have made one of that name among the temporary files.
fn private_directory(path: &Path) -> Result<(), EmbeddedError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(EmbeddedError::io("create", path)(error)),
        _ => {}
    }
    // Without following links: a link of somebody else could lead anywhere, at any later time.
    let found = fs::symlink_metadata(path).map_err(EmbeddedError::io("read", path))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(EmbeddedError::UnsafeSocketDir { path: path.to_owned() });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(EmbeddedError::io("close to others", path))
}
