//! An orderly end: calls that are under way, and the moment when they must end.

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// Knows the calls that are under way and can end them.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    calls: TaskTracker,
    over: CancellationToken,
}

impl Drain {
    /// Counts a call until the token is dropped.
    pub(super) fn track_call(&self) -> TaskTrackerToken {
        self.calls.token()
    }

    /// Runs something that counts as a call under way until it ends.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.calls.spawn(task);
    }

    /// Resolves when calls must end.
    pub(super) fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        self.over.clone().cancelled_owned()
    }

    /// Waits until no call is under way. New ones may still begin meanwhile.
    pub async fn wait_until_idle(&self) {
        self.calls.close();
        self.calls.wait().await;
    }

    /// Makes every stream end with an error that says that trying again helps.
    pub fn cancel_calls(&self) {
        self.over.cancel();
    }
}
