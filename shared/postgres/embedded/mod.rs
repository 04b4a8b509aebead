//! The embedded Postgres: the database of a server without `DATABASE_URL`.
//!
//! The program carries a native Postgres with pgvector, unpacks it once into its data directory and runs it while an
//! [`EmbeddedPostgres`] lives. It listens on a Unix socket in a directory that only the own user may enter. Durability is that
//! of Postgres: a committed row survives the sudden death of this process.
//!
//! Deliberately not here: pools, migrations and SQL; a second server per directory; restarting a Postgres that died, which the
//! operator has to know about; upgrades between major versions; tuning, for which `DATABASE_URL` is the answer.
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
mod error;
mod instance;
mod login;
mod postmaster;
mod socket;
mod unpack;

pub use error::EmbeddedError;
pub use instance::{EmbeddedPostgres, connect_options, socket_path};
pub use login::{PORT, USER};
