use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Turns that this process has stored and that may be learned from.
#[derive(Debug, Default)]
pub struct StoredTurns {
    count: AtomicU64,
    wakeup: Notify,
}

impl StoredTurns {
    pub(super) fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.wakeup.notify_one();
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns at once if there was one since the last wait. For one waiter.
    pub async fn wait_for_next(&self) {
        self.wakeup.notified().await;
    }
}
