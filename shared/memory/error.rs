//! Why the memory failed.

use crate::embedding::EmbedError;

/// Why the memory failed. It holds no text of the user.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The database took longer than a call may take.
    #[error("the database took too long")]
    Timeout,
    /// Words alone were to be searched, and their index is still being made.
    #[error("the index of the words is being made")]
    IndexIncomplete,
    /// There is no vector to store or to search with.
    #[error(transparent)]
    Embedding(#[from] EmbedError),
    /// A defect of ours.
    #[error("an internal defect")]
    Internal,
    /// The user has no memory with this id.
    #[error("there is no such memory")]
    NotFound,
}

impl MemoryError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use sqlx::Error;
        match self {
            Self::Timeout | Self::IndexIncomplete => true,
            Self::Embedding(error) => error.is_transient(),
            Self::Internal | Self::NotFound => false,
            Self::Database(Error::PoolTimedOut | Error::PoolClosed | Error::Io(_) | Error::Tls(_)) => true,
            // Connections (08), resources (53), an operator's intervention such as a restart, or a statement that took too
            // long (57), a collision of transactions (40001, 40P01), a lock that another holds
            // (55P03), a table or role that the migration of a starting server has yet to make (42P01, 22023).
            Self::Database(Error::Database(error)) => error.code().is_some_and(|code| {
                ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                    || matches!(&*code, "40001" | "40P01" | "55P03" | "42P01" | "22023")
            }),
            Self::Database(_) => false,
        }
    }
}
