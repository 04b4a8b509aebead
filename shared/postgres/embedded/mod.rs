//! The embedded Postgres: the database of a server without `DATABASE_URL`.
//!
//! A native Postgres with pgvector, unpacked into the data directory. It listens on a Unix socket in a directory that
//! only this user may enter. A committed row survives the sudden death of this process.
//!
//! Not here: pools, migrations and SQL; restarting a Postgres that died, which the operator has to know about; upgrades
//! between major versions; tuning, for which `DATABASE_URL` is the answer.
//!
//! ```text
//! AGENT_DATA_DIR/
//!   lock           held by the owner while it runs; contains its process id
//!   runtime-…/     the unpacked Postgres; may be deleted while nothing runs
//!   postgres/      the cluster: the data
//!   socket/        the Unix socket, unless its path would be too long
//!   postgres.log   the log of the last run, at most 1 MiB
//!   partial-…/     left by an interrupted start; the next one removes it
//! ```

mod cluster;
mod data_dir;
mod error;
mod instance;
mod login;
mod postmaster;
mod socket;
mod unpack;

pub use error::EmbeddedError;
pub use instance::{EmbeddedPostgres, connect_options, socket_path};
pub use login::{PORT, USER};
