//! The data directory and its permissions. What is below it is run and trusted by this process, so nobody else may change it.
//!
//! Files and directories get their modes explicitly: a umask can add nothing to them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::process::geteuid;

use super::error::EmbeddedError;

const ROOT: u32 = 0;
/// Stands for every user that a container does not know, such as root of the host as the owner of `/` (user_namespaces(7)).
const UNMAPPED_USER: u32 = 65_534;

const GROUP_WRITE: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
/// Only the owner of a file may rename or remove it.
const STICKY: u32 = 0o1000;

/// Creates the directory if it is missing, and refuses one that another user could change or replace.
pub(super) fn create(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(EmbeddedError::io("create", data_dir))?;
    let data_dir = fs::canonicalize(data_dir).map_err(EmbeddedError::io("open", data_dir))?;
    for directory in data_dir.ancestors() {
        verify(directory, directory == data_dir)?;
    }
    Ok(data_dir)
}

/// `holds_data` = it is the data directory or below it.
pub(super) fn verify(directory: &Path, holds_data: bool) -> Result<(), EmbeddedError> {
    let metadata = fs::metadata(directory).map_err(EmbeddedError::io("read", directory))?;
    match weakness(metadata.uid(), metadata.mode(), geteuid().as_raw(), holds_data) {
        Some(weakness) => Err(EmbeddedError::UnsafeDataDir { path: directory.to_owned(), weakness }),
        None => Ok(()),
    }
}

/// How other users could change the data directory, or replace it by changing a directory above, and what to do about it.
/// Groups of the directories above are trusted: many systems give each user a group.
fn weakness(owner: u32, mode: u32, user: u32, holds_data: bool) -> Option<String> {
    let is_trusted = owner == user || owner == ROOT || !holds_data && owner == UNMAPPED_USER;
    let permissions = mode & 0o7777;
    if !is_trusted {
        return Some(format!(
            "belongs to another user (id {owner}), but the server runs as user {user}: run it as its owner"
        ));
    }
    if holds_data && mode & (GROUP_WRITE | OTHERS_WRITE) != 0 {
        return Some(format!("can be changed by other users (mode {permissions:04o}): make it private with chmod 700"));
    }
    let is_replaceable = mode & OTHERS_WRITE != 0 && mode & STICKY == 0;
    (!holds_data && is_replaceable).then(|| {
        format!(
            "is above the data directory, and other users can rename what is in it (mode {permissions:04o}): chmod o-w"
        )
    })
}

/// Whether only this user could have changed a directory below the data directory. Versions before these rules left modes to
/// the umask.
pub(super) fn is_untouched(directory: &Path) -> bool {
    let is_private = |found: &fs::Metadata| {
        found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & (GROUP_WRITE | OTHERS_WRITE) == 0
    };
    fs::symlink_metadata(directory).as_ref().is_ok_and(is_private)
}

pub(super) fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = 1000;
    const STRANGER: u32 = 1001;

    #[test]
    fn data_dir_is_unsafe_if_others_may_write_or_own_it() {
        for (owner, mode, expected) in [
            (USER, 0o40_700, None),
            (USER, 0o40_755, None),
            (ROOT, 0o40_755, None),
            (USER, 0o40_775, Some("can be changed by other users (mode 0775)")),
            (USER, 0o40_702, Some("can be changed by other users (mode 0702)")),
            // Not even if they cannot remove what others made.
            (USER, 0o41_777, Some("can be changed by other users (mode 1777)")),
            (STRANGER, 0o40_755, Some("belongs to another user (id 1001)")),
            (UNMAPPED_USER, 0o40_755, Some("belongs to another user (id 65534)")),
        ] {
            let found = weakness(owner, mode, USER, true);
            assert_eq!(found.is_some(), expected.is_some(), "{owner} {mode:o}: {found:?}");
            assert!(found.unwrap_or_default().starts_with(expected.unwrap_or_default()));
        }
    }

    #[test]
    fn directory_above_is_unsafe_if_others_may_replace_the_data_dir() {
        for (owner, mode, is_safe) in [
            (USER, 0o40_700, true),
            (ROOT, 0o40_755, true),
            (ROOT, 0o41_777, true),
            (USER, 0o40_775, true),
            (UNMAPPED_USER, 0o40_755, true),
            (USER, 0o40_777, false),
            (ROOT, 0o40_757, false),
            (STRANGER, 0o40_755, false),
            (STRANGER, 0o41_777, false),
        ] {
            assert_eq!(weakness(owner, mode, USER, false).is_none(), is_safe, "{owner} {mode:o}");
        }
    }

    #[test]
    fn existing_file_becomes_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        open_private(OpenOptions::new().append(true), &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
