//! Erases a user from the memory: one transaction across the modules that store something derived from what the user said.
//!
//! Sessions are not erased: they are deleted by [`ConversationStore::delete_sessions`], which the client calls by itself.
//!
//! The locks are taken in the order that [`postgres`](crate::postgres) documents.
//!
//! [`ConversationStore::delete_sessions`]: crate::conversation::ConversationStore::delete_sessions

use futures_util::future::BoxFuture;

use crate::{
    conversation,
    identity::UserId,
    learning,
    memory::{MemoryEngine, MemoryError},
    postgres::RoleTransaction,
    turn_ledger,
};

/// Erases all memories, extraction jobs and pending turns of a user; returns how many memories there were. Turns from before
/// are not extracted any more.
///
/// # Errors
/// The database failed; then nothing is erased.
pub async fn erase_user(memory: &MemoryEngine, user: &UserId) -> Result<usize, MemoryError> {
    memory.erase_user(user, erase_derived_rows).await
}

fn erase_derived_rows<'t>(
    transaction: &'t mut RoleTransaction,
    user: &'t UserId,
) -> BoxFuture<'t, Result<(), sqlx::Error>> {
    Box::pin(async move {
        let row = conversation::UserRow::lock(transaction, user).await?;
        turn_ledger::erase_user(transaction, user).await?;
        learning::erase_jobs(transaction, user).await?;
        conversation::erase_pending_turns(transaction, user).await?;
        row.remove_if_new(transaction).await
    })
}
