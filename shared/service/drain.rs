//! Graceful shutdown: the calls in flight, and the signal that ends them.

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

#[derive(Debug, Clone, Default)]
pub struct Drain {
    calls: TaskTracker,
    cancellation: CancellationToken,
}

impl Drain {
    /// The call counts as in flight until the token is dropped.
    pub(super) fn track_call(&self) -> TaskTrackerToken {
        self.calls.token()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.calls.spawn(task);
    }

    pub(super) fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        self.cancellation.clone().cancelled_owned()
    }

    /// New calls are still accepted meanwhile.
    pub async fn wait_until_idle(&self) {
        self.calls.close();
        self.calls.wait().await;
    }

    /// Ends every stream with a retryable error.
    pub fn cancel_calls(&self) {
        self.cancellation.cancel();
    }
}
