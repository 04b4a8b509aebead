//! Whose turn it is to write in this process.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use crate::identity::UserId;

/// Who writes in this process. Writers of one user wait for each other before they take a connection, and all of them
/// together leave connections to those who read.
pub(in crate::memory) struct WriteLocks {
    /// Users share them by a hash.
    turns: Vec<Mutex<()>>,
    slots: Semaphore,
}

impl Default for WriteLocks {
    fn default() -> Self {
        const TURNS: usize = 256;
        // Half of a pool.
        const SLOTS: usize = 8;
        Self { turns: (0..TURNS).map(|_| Mutex::new(())).collect(), slots: Semaphore::new(SLOTS) }
    }
}

impl WriteLocks {
    /// Waits for the user's turn, holding no connection.
    pub(in crate::memory) async fn lock(&self, user: &UserId) -> Result<WritePermit<'_>, sqlx::Error> {
        let turn = self.turn_of(user).lock().await;
        let slot = self.slots.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        Ok(WritePermit { _slot: slot, _turn: turn })
    }

    /// The user's turn, if it is to be had at once.
    pub(in crate::memory) fn try_lock(&self, user: &UserId) -> Option<WritePermit<'_>> {
        let turn = self.turn_of(user).try_lock().ok()?;
        Some(WritePermit { _slot: self.slots.try_acquire().ok()?, _turn: turn })
    }

    fn turn_of(&self, user: &UserId) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % self.turns.len() as u64).unwrap_or_default();
        &self.turns[place]
    }
}

/// The right to write for a user.
pub(in crate::memory) struct WritePermit<'w> {
    _slot: SemaphorePermit<'w>,
    _turn: MutexGuard<'w, ()>,
}
