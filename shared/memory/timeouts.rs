//! Dropping database work on a timeout rolls its transaction back.

use std::time::Duration;

use tokio::time::timeout;

use super::MemoryError;

const TIMEOUT: Duration = Duration::from_secs(20);
/// For a document of 20,000 chunks, 1,000 long memories, or deleting as many.
pub(super) const BULK_TIMEOUT: Duration = Duration::from_mins(5);

pub(super) async fn with_timeout<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, MemoryError> {
    within(TIMEOUT, work).await
}

pub(super) async fn with_bulk_timeout<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, MemoryError> {
    within(BULK_TIMEOUT, work).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, MemoryError> {
    Ok(timeout(limit, work).await.map_err(|_| MemoryError::Timeout)??)
}
