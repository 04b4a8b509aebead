//! Dropping database work on a timeout rolls its transaction back.

use std::time::Duration;

use tokio::time::timeout;

use super::MemoryError;

const TIMEOUT: Duration = Duration::from_secs(20);
/// Several times what the largest write takes that the [budgets](super::budget) admit.
pub(super) const BULK_TIMEOUT: Duration = Duration::from_mins(5);

pub(super) async fn with_timeout<T>(work: impl Future<Output = Result<T, MemoryError>>) -> Result<T, MemoryError> {
    within(TIMEOUT, work).await
}

pub(super) async fn with_bulk_timeout<T>(work: impl Future<Output = Result<T, MemoryError>>) -> Result<T, MemoryError> {
    within(BULK_TIMEOUT, work).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, MemoryError>>) -> Result<T, MemoryError> {
    timeout(limit, work).await.map_err(|_| MemoryError::Timeout)?
}
