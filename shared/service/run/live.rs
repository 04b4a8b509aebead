//! The runs that this process drives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedSemaphorePermit;

use super::log::FrameLog;
use crate::identity::{RequestId, UserId};

type LiveRunKey = (UserId, RequestId);

#[derive(Clone, Default)]
pub(super) struct LiveRuns(Arc<Mutex<HashMap<LiveRunKey, Arc<FrameLog>>>>);

impl LiveRuns {
    pub(super) fn insert(&self, key: LiveRunKey, log: Arc<FrameLog>, permit: OwnedSemaphorePermit) -> LiveRun {
        self.lock().insert(key.clone(), log.clone());
        LiveRun { log, key, runs: self.clone(), _permit: permit }
    }

    pub(super) fn get(&self, key: &LiveRunKey) -> Option<Arc<FrameLog>> {
        self.lock().get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LiveRunKey, Arc<FrameLog>>> {
        // No holder of the lock leaves the map half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes its run from the list, and returns the permit, when dropped.
pub(super) struct LiveRun {
    pub(super) log: Arc<FrameLog>,
    key: LiveRunKey,
    runs: LiveRuns,
    _permit: OwnedSemaphorePermit,
}

impl Drop for LiveRun {
    fn drop(&mut self) {
        let mut runs = self.runs.lock();
        // After a lost lease the same request may have started another run.
        if runs.get(&self.key).is_some_and(|log| Arc::ptr_eq(log, &self.log)) {
            runs.remove(&self.key);
        }
    }
}
