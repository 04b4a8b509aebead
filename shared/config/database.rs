//! Where memories are kept.

use std::{path::PathBuf, time::Duration};

use super::{EntryPoint, EnvReader, Secret};

pub(super) const DATABASE_URL: &str = "DATABASE_URL";
pub(super) const DATABASE_READ_URL: &str = "DATABASE_READ_URL";
pub(super) const DATABASE_ADMIN_URL: &str = "DATABASE_ADMIN_URL";
pub(super) const DATABASE_PREPARED_STATEMENTS: &str = "DATABASE_PREPARED_STATEMENTS";
pub(super) const AGENT_DATA_DIR: &str = "AGENT_DATA_DIR";
pub(super) const ADMISSION_TIMEOUT_MS: &str = "ADMISSION_TIMEOUT_MS";

/// Where data is kept.
#[derive(Debug, Clone)]
pub struct StoresConfig {
    /// Where memories are kept.
    pub database: DatabaseConfig,
    /// Most that a call may wait for a store before its first frame.
    pub admission_timeout: Duration,
}

/// Where memories are kept.
#[derive(Debug, Clone)]
pub enum DatabaseConfig {
    /// A Postgres of our own in a directory.
    Embedded {
        /// Holds the unpacked Postgres and its data.
        data_dir: PathBuf,
    },
    /// Nowhere: there is no memory.
    Absent,
    /// A Postgres that runs elsewhere.
    Postgres {
        /// The service's own login.
        url: Secret,
        /// The login of calls that only read; not set = the service's.
        read_url: Option<Secret>,
        /// The owner's login for migrations; not set = the service's.
        admin_url: Option<Secret>,
        /// Whether statements may be kept by name, which some transaction poolers do not allow.
        prepared_statements: bool,
        /// Whether `url` is a login of calls that only read, and there is no other.
        is_read_only: bool,
    },
}

impl StoresConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>, place: EntryPoint) -> Self {
        const SCHEMES: [&str; 2] = ["postgres", "postgresql"];
        const EXAMPLE: &str = "postgres://agent:password@127.0.0.1:5432/agent";
        let data_dir = reader.text(AGENT_DATA_DIR).map_or_else(default_data_dir, PathBuf::from);
        let read_url = reader.url(DATABASE_READ_URL, &SCHEMES, EXAMPLE).map(Secret::new);
        let prepared_statements = reader.switch(DATABASE_PREPARED_STATEMENTS).unwrap_or(true);
        let admin_url = reader.url(DATABASE_ADMIN_URL, &SCHEMES, EXAMPLE).map(Secret::new);
        let memory = match reader.url(DATABASE_URL, &SCHEMES, EXAMPLE) {
            Some(url) => {
                let url = Secret::new(url);
                DatabaseConfig::Postgres { url, read_url, admin_url, prepared_statements, is_read_only: false }
            }
            None => match (place, read_url) {
                (EntryPoint::Server, _) => DatabaseConfig::Embedded { data_dir },
                // A function that only reads needs no login that may write.
                (EntryPoint::Function, Some(url)) => {
                    DatabaseConfig::Postgres { url, read_url: None, admin_url, prepared_statements, is_read_only: true }
                }
                (EntryPoint::Function, None) => DatabaseConfig::Absent,
            },
        };
        Self { database: memory, admission_timeout: reader.milliseconds(ADMISSION_TIMEOUT_MS, 200) }
    }
}

/// The user's data directory by the conventions of the system (XDG base directories), else one below the current.
fn default_data_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from(".agent-service"), |base| base.join("agent-service"))
}
