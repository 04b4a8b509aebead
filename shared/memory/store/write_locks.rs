//! Serializes the writers of one user within a process, and bounds the writers of all users.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use crate::identity::UserId;

/// Users share a mutex by their hash.
const MUTEXES: usize = 256;
/// Half of a pool's connections, so that readers have some.
const SLOTS: usize = 8;

pub(crate) struct WriteLocks {
    mutexes: Vec<Mutex<()>>,
    slots: Semaphore,
}

impl Default for WriteLocks {
    fn default() -> Self {
        Self { mutexes: (0..MUTEXES).map(|_| Mutex::new(())).collect(), slots: Semaphore::new(SLOTS) }
    }
}

impl WriteLocks {
    /// Waits without a connection.
    pub(crate) async fn lock(&self, user: &UserId) -> Result<WritePermit<'_>, sqlx::Error> {
        let guard = self.mutex(user).lock().await;
        let slot = self.slots.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        Ok(WritePermit { _slot: slot, _guard: guard })
    }

    pub(crate) fn try_lock(&self, user: &UserId) -> Option<WritePermit<'_>> {
        let guard = self.mutex(user).try_lock().ok()?;
        Some(WritePermit { _slot: self.slots.try_acquire().ok()?, _guard: guard })
    }

    fn mutex(&self, user: &UserId) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % self.mutexes.len() as u64).unwrap_or_default();
        &self.mutexes[index]
    }
}

pub(crate) struct WritePermit<'w> {
    _slot: SemaphorePermit<'w>,
    _guard: MutexGuard<'w, ()>,
}
