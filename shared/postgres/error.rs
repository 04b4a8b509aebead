#[cfg(embedded_postgres_archive)]
use super::embedded::EmbeddedError;

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("{variable} is invalid: {problem}")]
    InvalidUrl {
        variable: &'static str,
        /// Without the URL, which holds a password.
        problem: String,
    },
    #[error("the database cannot be reached: {0}")]
    Unreachable(#[from] sqlx::Error),
    #[error("the migration failed: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("the tables are not up to date: run `agent-local migrate` with DATABASE_ADMIN_URL")]
    NotMigrated,
    #[cfg(embedded_postgres_archive)]
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error("the table owner may not grant the service's roles to its logins; see docs/how-to/postgres.md: {0}")]
    RoleGrant(#[source] sqlx::Error),
    /// A query could return another user's rows.
    #[error("the database does not isolate users: {0}")]
    NotIsolated(String),
    #[error("no database is configured: set DATABASE_URL, for example postgres://agent@127.0.0.1/agent")]
    NotConfigured,
    #[error("this build has no embedded Postgres: set DATABASE_URL, for example postgres://agent@127.0.0.1/agent")]
    EmbeddedUnsupported,
}
