//! Where memories are kept.

use std::path::PathBuf;

use super::{Reader, Secret};

pub(super) const DATABASE_URL: &str = "DATABASE_URL";
pub(super) const DATABASE_ADMIN_URL: &str = "DATABASE_ADMIN_URL";
pub(super) const AGENT_DATA_DIR: &str = "AGENT_DATA_DIR";

/// Where data is kept.
#[derive(Debug, Clone)]
pub struct StoresConfig {
    /// Where memories are kept.
    pub memory: MemoryStoreConfig,
}

/// Where memories are kept.
#[derive(Debug, Clone)]
pub enum MemoryStoreConfig {
    /// A Postgres of our own in a directory.
    Embedded {
        /// Holds the unpacked Postgres and its data.
        data_dir: PathBuf,
    },
    /// A Postgres that runs elsewhere.
    Postgres {
        /// The service's own login.
        url: Secret,
        /// The owner's login for migrations; not set = the service's.
        admin_url: Option<Secret>,
    },
}

impl StoresConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        const SCHEMES: [&str; 2] = ["postgres", "postgresql"];
        const EXAMPLE: &str = "postgres://agent:password@127.0.0.1:5432/agent";
        let data_dir = reader.text(AGENT_DATA_DIR).map_or_else(default_data_dir, PathBuf::from);
        let admin_url = reader.url(DATABASE_ADMIN_URL, &SCHEMES, EXAMPLE).map(Secret::new);
        let memory = match reader.url(DATABASE_URL, &SCHEMES, EXAMPLE) {
            Some(url) => MemoryStoreConfig::Postgres { url: Secret::new(url), admin_url },
            None => MemoryStoreConfig::Embedded { data_dir },
        };
        Self { memory }
    }
}

/// The user's data directory by the conventions of the system (XDG base directories), else one below the current.
fn default_data_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from(".agent-service"), |base| base.join("agent-service"))
}
