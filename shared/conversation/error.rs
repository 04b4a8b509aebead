pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// No message holds text of the user.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error("DynamoDB failed: {0}")]
    Dynamo(String),
    #[error("DynamoDB is over its throughput: the table's, or that of one user's partition")]
    Throttled,
    #[error("sessions were not all deleted: others were added meanwhile")]
    DeletionIncomplete,
    #[error("the conversation store timed out")]
    Timeout,
    /// Refuses connections, as opposed to being slow.
    #[error("the conversation store is unreachable")]
    Unreachable,
    /// Another process may have taken the session over.
    #[error("the run has lost its lease")]
    LeaseLost,
    #[error("the conversation store holds an invalid value: {0}")]
    Malformed(&'static str),
}

impl StoreError {
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Database(error) => matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_)),
            Self::Unreachable => true,
            Self::Dynamo(_)
            | Self::Throttled
            | Self::DeletionIncomplete
            | Self::Timeout
            | Self::LeaseLost
            | Self::Malformed(_) => false,
        }
    }

    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout | Self::Database(sqlx::Error::PoolTimedOut))
    }
}
