//! Lets few calls of one user into a store at a time, where they would wait for a lock of that user anyway. Otherwise each
//! of them would wait with a connection, and a user whose rows are locked would take the connections of all others.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Result, StoreError};
use crate::identity::UserId;

/// Calls of one user that wait; more fail at once. Above the concurrent streams of any plan.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
pub(super) struct UserQueues {
    calls_per_user: usize,
    users: Mutex<HashMap<UserId, Arc<UserQueue>>>,
}

#[derive(Debug)]
struct UserQueue {
    permits: Arc<Semaphore>,
    is_stuck: AtomicBool,
}

/// A call in the store. The user's next one starts when it is dropped.
#[derive(Debug)]
pub(super) struct CallPermit {
    // Drop order: the permit returns before the queue may be removed.
    _permit: OwnedSemaphorePermit,
    visit: Visit,
}

/// A call that waits or is in the store. The last one of a user removes the queue.
#[derive(Debug)]
struct Visit {
    queue: Arc<UserQueue>,
    user: UserId,
    queues: Arc<UserQueues>,
}

impl UserQueues {
    pub(super) fn new(calls_per_user: usize) -> Arc<Self> {
        Arc::new(Self { calls_per_user, users: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, Arc<UserQueue>>> {
        // No holder of the lock leaves the map half-changed.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn enter(self: &Arc<Self>, user: &UserId) -> Result<CallPermit> {
        let visit = self.visit(user)?;
        let permit = visit.queue.permits.clone().acquire_owned().await;
        // Semaphores are never closed.
        Ok(CallPermit { _permit: permit.map_err(|_| StoreError::Timeout)?, visit })
    }

    fn visit(self: &Arc<Self>, user: &UserId) -> Result<Visit> {
        let mut users = self.lock();
        let queue = users.entry(user.clone()).or_insert_with(|| {
            Arc::new(UserQueue {
                permits: Arc::new(Semaphore::new(self.calls_per_user)),
                is_stuck: AtomicBool::new(false),
            })
        });
        // One reference is the map's.
        if Arc::strong_count(queue) > MAX_WAITING {
            return Err(StoreError::Timeout);
        }
        Ok(Visit { queue: queue.clone(), user: user.clone(), queues: self.clone() })
    }

    /// The call in the store has exceeded its timeout.
    pub(super) fn set_stuck(&self, user: &UserId) {
        if let Some(queue) = self.lock().get(user) {
            queue.is_stuck.store(true, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn is_stuck(&self, user: &UserId) -> bool {
        self.lock().get(user).is_some_and(|queue| queue.is_stuck.load(Ordering::Relaxed))
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.visit.queue.is_stuck.store(false, Ordering::Relaxed);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut users = self.queues.lock();
        // The map's reference and this one.
        if Arc::strong_count(&self.queue) == 2 {
            users.remove(&self.user);
        }
    }
}
