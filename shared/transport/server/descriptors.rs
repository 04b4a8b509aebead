//! The limit of file descriptors: each connection takes one, as do the database, providers and files.

#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of this process as far as it may. Many systems set 1,024 by default, for the sake of old programs.
#[cfg(unix)]
pub fn raise_descriptor_limit() {
    let Rlimit { current: before, maximum } = getrlimit(Resource::Nofile);
    // No limit is the largest one.
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    if number(before) < number(maximum)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, limit = before, hard_limit = maximum, "the limit of file descriptors cannot be raised");
        return;
    }
    tracing::info!(limit = getrlimit(Resource::Nofile).current, before, "limit of file descriptors");
}

/// Such a limit does not exist.
#[cfg(not(unix))]
pub fn raise_descriptor_limit() {}

#[cfg(unix)]
pub(super) fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(not(unix))]
pub(super) fn descriptor_limit() -> usize {
    usize::MAX
}
