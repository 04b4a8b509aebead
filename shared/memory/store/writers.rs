//! Whose turn it is to write in this process.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use crate::identity::UserId;

/// Who writes in this process. Writers of one user wait for each other before they take a connection, and all of them
/// together leave connections to those who read.
pub(in crate::memory) struct Writers {
    /// Users share them by a hash.
    turns: Vec<Mutex<()>>,
    slots: Semaphore,
}

impl Default for Writers {
    fn default() -> Self {
        const TURNS: usize = 256;
        // Half of a pool.
        const SLOTS: usize = 8;
        Self { turns: (0..TURNS).map(|_| Mutex::new(())).collect(), slots: Semaphore::new(SLOTS) }
    }
}

impl Writers {
    /// Waits for the user's turn, holding no connection.
    pub(in crate::memory) async fn enter(&self, user: &UserId) -> Result<Turn<'_>, sqlx::Error> {
        let turn = self.turn_of(user).lock().await;
        let slot = self.slots.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        Ok(Turn { _slot: slot, _turn: turn })
    }

    /// The user's turn, if it is to be had at once.
    pub(in crate::memory) fn try_enter(&self, user: &UserId) -> Option<Turn<'_>> {
        let turn = self.turn_of(user).try_lock().ok()?;
        Some(Turn { _slot: self.slots.try_acquire().ok()?, _turn: turn })
    }

    fn turn_of(&self, user: &UserId) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % self.turns.len() as u64).unwrap_or_default();
        &self.turns[place]
    }
}

/// The right to write for a user.
pub(in crate::memory) struct Turn<'w> {
    _slot: SemaphorePermit<'w>,
    _turn: MutexGuard<'w, ()>,
}
