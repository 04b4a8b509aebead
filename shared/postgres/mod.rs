//! Connection pools by role, migrations, and supervision. Users are isolated by row-level security: the pools' roles
//! own no table, and a transaction sees its user's rows. Queries belong to the modules that own the data.
//!
//! # Lock order
//!
//! A transaction that locks rows of several tables, or several rows of one, takes the locks of its user first, and in this order:
//!
//! 1. in the process, before it has a connection: the write lock of the memory, or the queue of the conversations;
//! 2. `memory_users`: the user's row, for all that changes memories;
//! 3. rows of the memory: `documents`, `memories`, `memory_vectors`, `memory_history`, at last the inverted index;
//! 4. `user_usage`: the user's row, for all that changes runs, pending turns or sessions;
//! 5. `forgotten_users`, `learned_turns`, `learning_jobs`, `runs` with `run_chunks`, `pending_turns` with `pending_calls`,
//!    `sessions` with `turns`, `user_profiles`;
//! 6. `retention_queue`: the user's row, which triggers lock and insert.
//!
//! A transaction with the lock of step 2 or 4 is the only one that locks several rows of the steps that follow, so their order is free.
//! Erasing a user takes all of them. Two kinds of transactions go without the user's lock: those that lock a single row
//! (heartbeats, readers, titles, the end of an extraction job), and those that never wait for a row, because they skip locked ones
//! (claims of extraction jobs, the retention sweep). Neither can be part of a deadlock.
//!
//! No transaction locks rows of two users, except that an erasure deletes old rows of `forgotten_users`, and skips locked ones.
//! Migrations lock tables in the same order.

mod connection;
mod database;
#[cfg(embedded_postgres_archive)]
pub mod embedded;
mod error;
mod expired_rows;
mod isolation;
mod migrate;
mod pools;
mod role;
mod sql_argument;
mod startup;
mod transaction;

pub use database::{Database, DatabaseGuard};
pub use error::DatabaseError;
pub(crate) use expired_rows::ExpiredRows;
pub use pools::RolePools;
pub use role::Role;
pub use sql_argument::SqlArgument;
pub use startup::{StartupProgress, StartupStep};
pub use transaction::{RolePool, RoleTransaction};
