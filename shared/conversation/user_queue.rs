//! Lets few calls of one user into a store at a time, where they would wait for a lock of that user anyway. Otherwise each
//! of them would wait with a connection, and a user whose rows are locked would take the connections of all others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Result, StoreError};
use crate::identity::UserId;

/// Calls of one user without a lease that wait; more fail at once. Above the concurrent streams of any plan. Calls with a lease
/// always wait: their runs are admitted, and end with them.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
pub(super) struct UserQueues {
    calls_per_user: usize,
    users: Mutex<HashMap<UserId, UserQueue>>,
}

#[derive(Debug)]
struct UserQueue {
    permits: Arc<Semaphore>,
    /// The call in the store has exceeded its timeout.
    is_stuck: bool,
    visits: usize,
    /// Of these, calls without a lease.
    bounded_visits: usize,
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
    is_bounded: bool,
    user: UserId,
    queues: Arc<UserQueues>,
}

impl UserQueues {
    pub(super) fn new(calls_per_user: usize) -> Arc<Self> {
        Arc::new(Self { calls_per_user, users: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, UserQueue>> {
        // No holder of the lock leaves the map half-changed.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails at once where too many calls wait.
    pub(super) async fn enter(self: &Arc<Self>, user: &UserId) -> Result<CallPermit> {
        self.enter_as(user, true).await
    }

    /// For calls that hold a lease.
    pub(super) async fn enter_with_lease(self: &Arc<Self>, user: &UserId) -> Result<CallPermit> {
        self.enter_as(user, false).await
    }

    async fn enter_as(self: &Arc<Self>, user: &UserId, is_bounded: bool) -> Result<CallPermit> {
        let (visit, permits) = self.visit(user, is_bounded)?;
        let permit = permits.acquire_owned().await;
        // Semaphores are never closed.
        Ok(CallPermit { _permit: permit.map_err(|_| StoreError::Timeout)?, visit })
    }

    fn visit(self: &Arc<Self>, user: &UserId, is_bounded: bool) -> Result<(Visit, Arc<Semaphore>)> {
        let mut users = self.lock();
        let queue = users.entry(user.clone()).or_insert_with(|| UserQueue {
            permits: Arc::new(Semaphore::new(self.calls_per_user)),
            is_stuck: false,
            visits: 0,
            bounded_visits: 0,
        });
        if is_bounded && queue.bounded_visits >= MAX_WAITING {
            return Err(StoreError::Timeout);
        }
        queue.visits += 1;
        queue.bounded_visits += usize::from(is_bounded);
        Ok((Visit { is_bounded, user: user.clone(), queues: self.clone() }, queue.permits.clone()))
    }

    pub(super) fn set_stuck(&self, user: &UserId) {
        if let Some(queue) = self.lock().get_mut(user) {
            queue.is_stuck = true;
        }
    }

    pub(super) fn is_stuck(&self, user: &UserId) -> bool {
        self.lock().get(user).is_some_and(|queue| queue.is_stuck)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        if let Some(queue) = self.visit.queues.lock().get_mut(&self.visit.user) {
            queue.is_stuck = false;
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut users = self.queues.lock();
        let Some(queue) = users.get_mut(&self.user) else { return };
        queue.visits -= 1;
        queue.bounded_visits -= usize::from(self.is_bounded);
        if queue.visits == 0 {
            users.remove(&self.user);
        }
    }
}
