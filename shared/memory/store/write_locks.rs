//! Serializes the writers of one user within a process, and bounds the writers of all users.
//!
//! Each user has a mutex of their own, which exists for as long as a writer holds it or waits for it. So no user can wait for a
//! writer of another one, except where all slots are taken.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedMutexGuard, Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{identity::UserId, memory::MemoryError};

/// Half of a pool's connections, so that readers have some.
const SLOTS: usize = 8;
/// As long as a transaction waits for a row that another process has locked.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(20);
/// Writers of one user, one of which writes. Each waits with the content of its request.
const MAX_WRITERS: usize = 32;

#[derive(Default)]
struct UserMutexes(Mutex<HashMap<UserId, Writers>>);

#[derive(Default)]
struct Writers {
    mutex: Arc<tokio::sync::Mutex<()>>,
    /// Of [`UserMutex`]es.
    count: usize,
}

pub(crate) struct WriteLocks {
    users: Arc<UserMutexes>,
    slots: Semaphore,
}

impl Default for WriteLocks {
    fn default() -> Self {
        Self { users: Arc::default(), slots: Semaphore::new(SLOTS) }
    }
}

impl WriteLocks {
    /// Waits without a connection, for [`MAX_WAIT`] at most.
    pub(crate) async fn lock(&self, user: &UserId) -> Result<WritePermit<'_>, MemoryError> {
        let user = UserMutex::new(&self.users, user);
        if user.writers > MAX_WRITERS {
            return Err(MemoryError::Contended);
        }
        let wait = async { (user.mutex.clone().lock_owned().await, self.slots.acquire().await) };
        let (guard, slot) = timeout(MAX_WAIT, wait).await.map_err(|_| MemoryError::Contended)?;
        // The semaphore is never closed.
        let slot = slot.map_err(|_| MemoryError::Internal)?;
        Ok(WritePermit { _slot: slot, _guard: guard, _user: user })
    }

    pub(crate) fn try_lock(&self, user: &UserId) -> Option<WritePermit<'_>> {
        let user = UserMutex::new(&self.users, user);
        let guard = user.mutex.clone().try_lock_owned().ok()?;
        Some(WritePermit { _slot: self.slots.try_acquire().ok()?, _guard: guard, _user: user })
    }
}

impl UserMutexes {
    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, Writers>> {
        // No holder of the lock leaves the map half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct WritePermit<'w> {
    _slot: SemaphorePermit<'w>,
    _guard: OwnedMutexGuard<()>,
    _user: UserMutex,
}

/// A writer that waits or writes. The last one of a user removes the mutex.
struct UserMutex {
    users: Arc<UserMutexes>,
    user: UserId,
    mutex: Arc<tokio::sync::Mutex<()>>,
    /// Of this user when this one came, itself included.
    writers: usize,
}

impl UserMutex {
    fn new(users: &Arc<UserMutexes>, user: &UserId) -> Self {
        let mut locked = users.lock();
        let of_user = locked.entry(user.clone()).or_default();
        of_user.count += 1;
        let (mutex, writers) = (of_user.mutex.clone(), of_user.count);
        drop(locked);
        Self { users: users.clone(), user: user.clone(), mutex, writers }
    }
}

impl Drop for UserMutex {
    fn drop(&mut self) {
        let mut users = self.users.lock();
        if let Some(of_user) = users.get_mut(&self.user) {
            of_user.count -= 1;
            if of_user.count == 0 {
                users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::parse("user_id", id).unwrap()
    }

    /// More users than any table of shared mutexes would have.
    #[tokio::test]
    async fn write_lock_of_a_user_blocks_no_other_user() {
        let locks = WriteLocks::default();
        let ann = locks.lock(&user("ann")).await.ok().unwrap();
        for number in 0..10_000 {
            let other = user(&format!("user-{number}"));
            assert!(locks.try_lock(&other).is_some(), "{other} waits for ann");
        }
        assert!(locks.try_lock(&user("ann")).is_none());
        drop(ann);
        assert!(locks.try_lock(&user("ann")).is_some());
    }

    #[tokio::test]
    async fn write_locks_hold_nothing_of_users_without_writers() {
        let locks = WriteLocks::default();
        let ann = locks.lock(&user("ann")).await.ok().unwrap();
        {
            let name = user("ann");
            let mut waiting = Box::pin(locks.lock(&name));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            assert!(locks.try_lock(&name).is_none());
        }
        assert_eq!(locks.users.lock().len(), 1);
        drop(ann);
        assert!(locks.users.lock().is_empty());
        drop(locks.try_lock(&user("ann")));
        assert!(locks.users.lock().is_empty());
    }

    #[test]
    fn write_locks_hold_nothing_where_writers_end_at_once() {
        let locks = WriteLocks::default();
        for number in 0..2_000 {
            let name = user(&format!("user-{number}"));
            let both = [UserMutex::new(&locks.users, &name), UserMutex::new(&locks.users, &name)];
            let at_once = std::sync::Barrier::new(both.len());
            std::thread::scope(|scope| {
                for writer in both {
                    scope.spawn(|| {
                        let writer = writer;
                        at_once.wait();
                        drop(writer);
                    });
                }
            });
        }
        assert!(locks.users.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn write_lock_is_refused_after_a_bounded_wait() {
        let locks = WriteLocks::default();
        let _ann = locks.lock(&user("ann")).await.ok().unwrap();
        let begun = tokio::time::Instant::now();
        assert!(matches!(locks.lock(&user("ann")).await, Err(MemoryError::Contended)));
        assert_eq!(begun.elapsed(), MAX_WAIT);
        // The bound holds for the slots as well.
        let mut permits = Vec::new();
        for number in 1..SLOTS {
            permits.push(locks.lock(&user(&format!("user-{number}"))).await.ok().unwrap());
        }
        assert!(matches!(locks.lock(&user("bob")).await, Err(MemoryError::Contended)));
        assert_eq!(locks.users.lock().len(), SLOTS, "a refused writer leaves nothing behind");
    }

    #[tokio::test]
    async fn write_lock_is_refused_at_once_where_many_writers_wait() {
        let locks = WriteLocks::default();
        let ann = user("ann");
        let _first = locks.lock(&ann).await.ok().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..2 * MAX_WRITERS {
            let mut lock = Box::pin(locks.lock(&ann));
            match futures_util::poll!(&mut lock) {
                std::task::Poll::Pending => waiting.push(lock),
                std::task::Poll::Ready(refused) => assert!(matches!(refused, Err(MemoryError::Contended))),
            }
        }
        assert_eq!(waiting.len(), MAX_WRITERS - 1);
    }
}
