//! Connection pools by role, migrations, and supervision. Users are isolated by row-level security: the pools' roles
//! own no table, and a transaction sees its user's rows. Queries belong to the modules that own the data.

mod connection;
mod database;
#[cfg(embedded_postgres_archive)]
pub mod embedded;
mod error;
mod isolation;
mod migrate;
mod pools;
mod role;
mod sql_argument;
mod startup;
mod transaction;

pub use database::{Database, DatabaseGuard};
pub use error::DatabaseError;
pub use pools::RolePools;
pub use role::Role;
pub use sql_argument::SqlArgument;
pub use startup::{StartupProgress, StartupStep};
pub use transaction::{RolePool, RoleTransaction};
