//! The database: where it is, making it ready, and watching whether it can be reached.

use std::{path::PathBuf, str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::config::MemoryStoreConfig;

#[cfg(embedded_postgres_archive)]
pub mod embedded;

static MIGRATIONS: Migrator = sqlx::migrate!("infra/migrations");

/// Connections of one process. The embedded Postgres takes 40, and a turn holds one only while it searches.
const MAX_CONNECTIONS: u32 = 16;
/// Longest wait for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time between two checks whether the database can be reached.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds out whether the table can be read, and reads nothing.
const CHECK: &str = "select from memories, memory_users limit 0";

/// Lets the login that the setting `agent.service` names use the tables, which it does not own.
const GRANTS: &str = "
    do $$
    begin
        execute format('grant usage on schema public to %I', current_setting('agent.service'));
        execute format('grant select on _sqlx_migrations to %I', current_setting('agent.service'));
        execute format('grant select, insert, update, delete on memories, memory_users, memory_postings, memory_terms to %I',
                       current_setting('agent.service'));
    end
    $$";

/// A step on the way to a database that is ready, told as it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The embedded Postgres is unpacked; only once.
    Unpacking,
    /// An empty database is made; only once.
    Initialising,
    /// The embedded Postgres starts.
    Starting,
    /// It can be used.
    Ready,
}

/// Why the database can not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The address can not be used.
    #[error("{variable} can not be used: {problem}")]
    Address {
        /// The variable that holds it.
        variable: &'static str,
        /// What is wrong, without the address.
        problem: String,
    },
    /// It can not be reached.
    #[error("the database can not be reached: {0}")]
    Unreachable(#[from] sqlx::Error),
    /// Its tables can not be made.
    #[error("the migration failed: {0}")]
    Migration(#[from] MigrateError),
    /// The embedded Postgres can not run.
    #[cfg(embedded_postgres_archive)]
    #[error(transparent)]
    Embedded(#[from] embedded::EmbeddedError),
    /// This build has no embedded Postgres.
    #[error("this build has no Postgres of its own: set DATABASE_URL, for example postgres://agent@127.0.0.1/agent")]
    NoEmbedded,
}

/// A database that may not be ready yet.
#[derive(Debug, Clone)]
pub struct Database {
    /// The service's own connection.
    service: PgConnectOptions,
    /// The owner's connection, for migrations.
    owner: PgConnectOptions,
    /// Of the embedded Postgres, if that is the one.
    #[cfg(embedded_postgres_archive)]
    data_dir: Option<PathBuf>,
}

impl Database {
    /// The database that the configuration names. Nothing is started or connected.
    ///
    /// # Errors
    /// An address can not be used.
    pub fn from_config(config: &MemoryStoreConfig) -> Result<Self, DatabaseError> {
        match config {
            MemoryStoreConfig::Postgres { url, admin_url } => {
                let service = parse_url("DATABASE_URL", url.expose())?;
                let owner = match admin_url {
                    Some(url) => parse_url("DATABASE_ADMIN_URL", url.expose())?,
                    None => service.clone(),
                };
                Ok(Self {
                    service,
                    owner,
                    #[cfg(embedded_postgres_archive)]
                    data_dir: None,
                })
            }
            MemoryStoreConfig::Embedded { data_dir } => Self::embedded(data_dir.clone()),
        }
    }

    #[cfg(embedded_postgres_archive)]
    fn embedded(data_dir: PathBuf) -> Result<Self, DatabaseError> {
        let options = embedded::connect_options(&data_dir)?;
        Ok(Self { service: options.clone(), owner: options, data_dir: Some(data_dir) })
    }

    #[cfg(not(embedded_postgres_archive))]
    fn embedded(_data_dir: PathBuf) -> Result<Self, DatabaseError> {
        Err(DatabaseError::NoEmbedded)
    }

    /// A pool that connects when it is first used.
    #[must_use]
    pub fn pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(self.service.clone())
    }

    /// Brings the tables up to date, as their owner, and lets the service's own login use them.
    ///
    /// # Errors
    /// The database can not be reached, or refuses a change.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let mut owner = connect(&self.owner).await?;
        MIGRATIONS.run(&mut owner).await?;
        if self.service.get_username() != self.owner.get_username() {
            sqlx::query("select set_config('agent.service', $1, false)")
                .bind(self.service.get_username())
                .execute(&mut owner)
                .await?;
            owner.execute(GRANTS).await?;
        }
        Ok(owner.close().await?)
    }

    /// Migrates, unless the service's own login sees that there is nothing to do: it may not change tables.
    async fn migrate_if_needed(&self) -> Result<(), DatabaseError> {
        let mut service = connect(&self.service).await?;
        let applied =
            sqlx::query_scalar("select version from _sqlx_migrations where success").fetch_all(&mut service).await;
        service.close().await?;
        let applied: Vec<i64> = applied.unwrap_or_default();
        if MIGRATIONS.iter().all(|migration| applied.contains(&migration.version)) {
            Ok(())
        } else {
            self.migrate().await
        }
    }

    /// Makes the database ready and then watches it: `ready` tells whether it can be used. Runs until it is dropped, which
    /// stops the embedded Postgres.
    ///
    /// # Errors
    /// The embedded Postgres can not run. A database elsewhere that can not be reached is no error: it is tried again.
    pub async fn keep(&self, ready: &watch::Sender<bool>, progress: Progress) -> Result<(), DatabaseError> {
        let _running = self.start_embedded(progress.clone()).await?;
        let mut reported = false;
        while let Err(error) = self.migrate_if_needed().await {
            if !std::mem::replace(&mut reported, true) {
                tracing::warn!(%error, "the database is not ready; trying again until it is");
            }
            sleep(CHECK_INTERVAL).await;
        }
        progress(Step::Ready);
        let mut connection = None;
        loop {
            let reachable = timeout(CHECK_TIMEOUT, check(&mut connection, &self.service)).await;
            let reachable = matches!(reachable, Ok(Ok(())));
            if !reachable {
                connection = None;
            }
            let changed = ready.send_if_modified(|was| std::mem::replace(was, reachable) != reachable);
            if changed && reachable {
                tracing::info!("the database is ready");
            } else if changed {
                tracing::error!("the database can not be reached");
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    #[cfg(embedded_postgres_archive)]
    async fn start_embedded(&self, progress: Progress) -> Result<Option<embedded::EmbeddedPostgres>, DatabaseError> {
        let Some(data_dir) = self.data_dir.clone() else { return Ok(None) };
        let start = move || embedded::EmbeddedPostgres::start(&data_dir, &*progress);
        match tokio::task::spawn_blocking(start).await {
            Ok(started) => Ok(Some(started?)),
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        }
    }

    #[cfg(not(embedded_postgres_archive))]
    async fn start_embedded(&self, _progress: Progress) -> Result<Option<std::convert::Infallible>, DatabaseError> {
        Ok(None)
    }
}

/// Called before each step on the way to a database that is ready.
pub type Progress = Arc<dyn Fn(Step) + Send + Sync>;

/// Asks whether the tables can be used, on a connection of its own, so that a busy pool does not look like a dead database.
async fn check(connection: &mut Option<PgConnection>, options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    match connection {
        Some(open) => open.execute(CHECK).await.map(drop),
        None => connection.insert(PgConnection::connect_with(options).await?).execute(CHECK).await.map(drop),
    }
}

/// Connects within a time in which a database that is well would have answered.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    match timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options)).await {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

fn parse_url(variable: &'static str, url: &str) -> Result<PgConnectOptions, DatabaseError> {
    // The parser's message may quote the password.
    PgConnectOptions::from_str(url)
        .map(|options| options.application_name("agent-service"))
        .map_err(|_| DatabaseError::Address { variable, problem: "it is not a valid Postgres URL".to_owned() })
}
