//! The stand-in on platforms without an archive of Postgres: it compiles everywhere and never starts.

use std::{convert::Infallible, path::Path};

use super::{EmbeddedError, Progress};

/// Cannot exist on this platform.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    never: Infallible,
}

impl EmbeddedPostgres {
    /// # Errors
    ///
    /// Always [`EmbeddedError::UnsupportedPlatform`].
    pub fn start(_data_dir: &Path, _progress: &dyn Fn(Step)) -> Result<Self, EmbeddedError> {
        Err(EmbeddedError::UnsupportedPlatform)
    }

    /// The directory of the socket.
    pub fn socket_dir(&self) -> &Path {
        match self.never {}
    }

    /// Stops Postgres.
    pub fn stop(self) {
        match self.never {}
    }
}
