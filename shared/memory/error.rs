//! Messages hold no text of the user.

use std::time::Duration;

use crate::{embedding::EmbedError, error::InvalidArgument};

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database timed out")]
    Timeout,
    /// Other writers kept this one waiting for too long: those of the user, or those of all users.
    #[error("other writes took too long")]
    Contended,
    /// Other writers kept a deletion waiting for too long between two of its transactions.
    #[error("other writes took too long, after a part was deleted")]
    PartlyDeleted,
    /// The same call always fails.
    #[error(transparent)]
    Invalid(#[from] InvalidArgument),
    /// The query has no vector, and the inverted index is still being built.
    #[error("the inverted index is still being built")]
    IndexIncomplete,
    #[error(transparent)]
    Embedding(#[from] EmbedError),
    #[error("an internal task failed")]
    Internal,
    #[error("there is no such memory")]
    NotFound,
    #[error("the user's embedding budget of the day does not suffice")]
    EmbeddingBudgetExceeded {
        bytes_per_day: u64,
        /// `None` = never: the request alone exceeds the budget.
        retry_after: Option<Duration>,
    },
}

impl MemoryError {
    /// Other writers, in this process or another, kept this one waiting for too long.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        // lock_not_available
        let is_lock_timeout = |error: &sqlx::Error| {
            error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "55P03")
        };
        match self {
            Self::Contended => true,
            Self::Database(error) => is_lock_timeout(error),
            _ => false,
        }
    }

    /// The same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use sqlx::Error;
        match self {
            Self::Timeout | Self::IndexIncomplete | Self::Contended | Self::PartlyDeleted => true,
            Self::Embedding(error) => error.is_transient(),
            Self::Internal | Self::NotFound | Self::Invalid(_) | Self::EmbeddingBudgetExceeded { .. } => false,
            Self::Database(Error::PoolTimedOut | Error::PoolClosed | Error::Io(_) | Error::Tls(_)) => true,
            // Connection exceptions (08), resources (53), statement timeouts (57), serialization failures, deadlocks
            // (40001, 40P01), lock timeouts (55P03), a table or role that a migration has yet to create (42P01, 22023).
            Self::Database(Error::Database(error)) => error.code().is_some_and(|code| {
                ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                    || matches!(&*code, "40001" | "40P01" | "55P03" | "42P01" | "22023")
            }),
            Self::Database(_) => false,
        }
    }
}
