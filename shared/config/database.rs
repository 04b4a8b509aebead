use std::{path::PathBuf, time::Duration};

use super::{EntryPoint, EnvReader, Secret};

pub(super) const DATABASE_URL: &str = "DATABASE_URL";
pub(super) const DATABASE_READ_URL: &str = "DATABASE_READ_URL";
pub(super) const DATABASE_ADMIN_URL: &str = "DATABASE_ADMIN_URL";
pub(super) const DATABASE_PREPARED_STATEMENTS: &str = "DATABASE_PREPARED_STATEMENTS";
pub(super) const AGENT_DATA_DIR: &str = "AGENT_DATA_DIR";
pub(super) const ADMISSION_TIMEOUT_MS: &str = "ADMISSION_TIMEOUT_MS";

#[derive(Debug, Clone)]
pub struct StoresConfig {
    pub database: DatabaseConfig,
    /// Time that a call may wait for a store before its first frame.
    pub admission_timeout: Duration,
}

#[derive(Debug, Clone)]
pub enum DatabaseConfig {
    /// A Postgres that this process unpacks and runs.
    Embedded { data_dir: PathBuf },
    /// Calls to the memory fail.
    Absent,
    Postgres {
        url: Secret,
        /// The login of calls that only read; `None` = the service's.
        read_url: Option<Secret>,
        /// The table owner's login for migrations; `None` = the service's.
        admin_url: Option<Secret>,
        /// Some transaction poolers do not allow named prepared statements.
        prepared_statements: bool,
        /// `url` is a login that only reads, and there is no other.
        is_read_only: bool,
    },
}

impl StoresConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>, entry_point: EntryPoint) -> Self {
        const SCHEMES: [&str; 2] = ["postgres", "postgresql"];
        const EXAMPLE: &str = "postgres://agent:password@127.0.0.1:5432/agent";
        let data_dir = reader.text(AGENT_DATA_DIR).map_or_else(default_data_dir, PathBuf::from);
        let read_url = reader.url(DATABASE_READ_URL, &SCHEMES, EXAMPLE).map(Secret::new);
        let prepared_statements = reader.switch(DATABASE_PREPARED_STATEMENTS).unwrap_or(true);
        let admin_url = reader.url(DATABASE_ADMIN_URL, &SCHEMES, EXAMPLE).map(Secret::new);
        let url = reader.url(DATABASE_URL, &SCHEMES, EXAMPLE).map(Secret::new);
        let database = match (url, entry_point, read_url) {
            (Some(url), _, read_url) => {
                DatabaseConfig::Postgres { url, read_url, admin_url, prepared_statements, is_read_only: false }
            }
            (None, EntryPoint::Server, _) => DatabaseConfig::Embedded { data_dir },
            // A function that only reads needs no login with write access.
            (None, EntryPoint::Function, Some(url)) => {
                DatabaseConfig::Postgres { url, read_url: None, admin_url, prepared_statements, is_read_only: true }
            }
            (None, EntryPoint::Function, None) => DatabaseConfig::Absent,
        };
        Self { database, admission_timeout: reader.milliseconds(ADMISSION_TIMEOUT_MS, 2_000) }
    }
}

/// The user's data directory (XDG base directories), else one below the current directory.
fn default_data_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from(".agent-service"), |base| base.join("agent-service"))
}
