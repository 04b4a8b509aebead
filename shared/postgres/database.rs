use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use sqlx::{Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

#[cfg(embedded_postgres_archive)]
use super::embedded::{self, EmbeddedPostgres};
use super::{
    connection::{connect, parse_url},
    error::DatabaseError,
    isolation,
    migrate::{self, LoginGrant},
    pools::{MAX_CONNECTIONS, RolePools},
    role::Role,
    startup::{StartupProgress, StartupStep},
};
use crate::config::{DatabaseConfig, Secret};

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads no row and needs no right on the tables.
const TABLES_PROBE: &str = "select 'memories'::regclass, 'memory_users'::regclass";

/// The embedded Postgres has one server: no process drives a run from before its start.
const RELEASE_LEASES: &str = "
    update runs set lease_until = clock_timestamp()
    where ended_at is null and lease_until > clock_timestamp() and started_at < to_timestamp($1)";

#[cfg(embedded_postgres_archive)]
type RunningPostgres = EmbeddedPostgres;
#[cfg(not(embedded_postgres_archive))]
type RunningPostgres = std::convert::Infallible;

#[derive(Debug, Clone)]
pub struct Database {
    service: PgConnectOptions,
    /// `None`: the service's login.
    reader: Option<PgConnectOptions>,
    owner: PgConnectOptions,
    prepared_statements: bool,
    is_read_only: bool,
    #[cfg(embedded_postgres_archive)]
    data_dir: Option<PathBuf>,
}

impl Database {
    /// Connects to nothing.
    pub fn from_config(config: &DatabaseConfig) -> Result<Self, DatabaseError> {
        match config {
            DatabaseConfig::Postgres { url, read_url, admin_url, prepared_statements, is_read_only } => {
                let service = parse_url("DATABASE_URL", url.expose())?;
                let parse = |variable, url: &Option<Secret>| {
                    url.as_ref().map(|url| parse_url(variable, url.expose())).transpose()
                };
                Ok(Self {
                    reader: parse("DATABASE_READ_URL", read_url)?,
                    owner: parse("DATABASE_ADMIN_URL", admin_url)?.unwrap_or_else(|| service.clone()),
                    service,
                    prepared_statements: *prepared_statements,
                    is_read_only: *is_read_only,
                    #[cfg(embedded_postgres_archive)]
                    data_dir: None,
                })
            }
            DatabaseConfig::Embedded { data_dir } => Self::embedded(data_dir.clone()),
            DatabaseConfig::Absent => Err(DatabaseError::NotConfigured),
        }
    }

    #[cfg(embedded_postgres_archive)]
    fn embedded(data_dir: PathBuf) -> Result<Self, DatabaseError> {
        let options = embedded::connect_options(&data_dir)?;
        Ok(Self {
            service: options.clone(),
            reader: None,
            owner: options,
            prepared_statements: true,
            is_read_only: false,
            data_dir: Some(data_dir),
        })
    }

    #[cfg(not(embedded_postgres_archive))]
    fn embedded(_data_dir: PathBuf) -> Result<Self, DatabaseError> {
        Err(DatabaseError::EmbeddedUnsupported)
    }

    #[must_use]
    pub fn pools(&self) -> RolePools {
        self.pools_with_limit(MAX_CONNECTIONS)
    }

    #[must_use]
    pub fn pools_with_limit(&self, max_connections: u32) -> RolePools {
        RolePools::new(&self.service, self.reader.as_ref(), max_connections, self.prepared_statements)
    }

    /// Applies migrations as the table owner and grants the logins their roles.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let all_roles = [Role::Service, Role::Reader, Role::Maintenance];
        let mut grants = vec![
            LoginGrant::new(self.owner.get_username(), &all_roles),
            LoginGrant::new(self.service.get_username(), &all_roles),
        ];
        grants.extend(self.reader.as_ref().map(|reader| LoginGrant::new(reader.get_username(), &[Role::Reader])));
        let mut owner = connect(&self.owner).await?;
        migrate::migrate(&mut owner, &grants).await?;
        Ok(owner.close().await?)
    }

    /// Checks with each login that the tables are current and users isolated; changes nothing.
    /// [`DatabaseError::Unreachable`] leaves it open, any other error forbids using the database.
    pub async fn check(&self) -> Result<(), DatabaseError> {
        let mut service = connect(&self.service).await?;
        if !migrate::is_up_to_date(&mut service).await? {
            return Err(DatabaseError::NotMigrated);
        }
        if !self.is_read_only {
            isolation::check(&mut service, Role::Service).await?;
            isolation::check(&mut service, Role::Maintenance).await?;
        }
        match &self.reader {
            Some(options) => {
                let mut reader = connect(options).await?;
                isolation::check(&mut reader, Role::Reader).await?;
                reader.close().await?;
            }
            None => isolation::check(&mut service, Role::Reader).await?,
        }
        Ok(service.close().await?)
    }

    /// Migrates only if needed: otherwise no login of a table owner is required.
    async fn prepare(&self) -> Result<(), DatabaseError> {
        match self.check().await {
            Err(DatabaseError::NotMigrated) => {
                self.migrate().await?;
                self.check().await
            }
            checked => checked,
        }
    }

    /// Starts the embedded Postgres unless it runs already.
    pub async fn open(&self, progress: StartupProgress) -> Result<DatabaseGuard, DatabaseError> {
        let running = match connect(&self.service).await {
            Ok(connection) => {
                connection.close().await?;
                None
            }
            Err(_) => self.start_embedded(progress).await?,
        };
        self.prepare().await?;
        Ok(DatabaseGuard { _running: running })
    }

    pub(crate) async fn connect_owner(&self) -> Result<PgConnection, sqlx::Error> {
        connect(&self.owner).await
    }

    /// Probes the database until the future is dropped, which stops the embedded Postgres. Fails if users are not
    /// isolated or the embedded Postgres does not start; an unreachable external database is retried.
    pub async fn supervise(&self, ready: &watch::Sender<bool>, progress: StartupProgress) -> Result<(), DatabaseError> {
        let started = Timestamp::now();
        let running = self.start_embedded(progress.clone()).await?;
        self.prepare_with_retries().await?;
        if running.is_some() {
            self.release_leases(started).await?;
        }
        progress(StartupStep::Ready);
        let mut connection = None;
        loop {
            let probe = timeout(CHECK_TIMEOUT, probe_tables(&mut connection, &self.service)).await;
            let is_reachable = matches!(probe, Ok(Ok(())));
            if !is_reachable {
                connection = None;
            }
            let changed = ready.send_if_modified(|was| std::mem::replace(was, is_reachable) != is_reachable);
            if changed && is_reachable {
                tracing::info!("the database is ready");
            } else if changed {
                tracing::error!("the database cannot be reached");
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    async fn release_leases(&self, started: Timestamp) -> Result<(), DatabaseError> {
        let mut owner = connect(&self.owner).await?;
        sqlx::query(RELEASE_LEASES).bind(started.as_duration().as_secs_f64()).execute(&mut owner).await?;
        Ok(owner.close().await?)
    }

    async fn prepare_with_retries(&self) -> Result<(), DatabaseError> {
        let mut is_reported = false;
        while let Err(error) = self.prepare().await {
            if matches!(error, DatabaseError::NotIsolated(_)) {
                return Err(error);
            }
            if !std::mem::replace(&mut is_reported, true) {
                tracing::warn!(%error, retry_interval_ms = CHECK_INTERVAL.as_millis(), "the database is not ready; retrying");
            }
            sleep(CHECK_INTERVAL).await;
        }
        Ok(())
    }

    #[cfg(embedded_postgres_archive)]
    async fn start_embedded(&self, progress: StartupProgress) -> Result<Option<RunningPostgres>, DatabaseError> {
        let Some(data_dir) = self.data_dir.clone() else { return Ok(None) };
        let start = move || EmbeddedPostgres::start(&data_dir, &*progress);
        match tokio::task::spawn_blocking(start).await {
            Ok(started) => Ok(Some(started?)),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    #[cfg(not(embedded_postgres_archive))]
    async fn start_embedded(&self, _progress: StartupProgress) -> Result<Option<RunningPostgres>, DatabaseError> {
        Ok(None)
    }
}

#[must_use]
pub struct DatabaseGuard {
    _running: Option<RunningPostgres>,
}

/// A connection of its own: an exhausted pool must not look like an unreachable database.
async fn probe_tables(connection: &mut Option<PgConnection>, options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    match connection {
        Some(open) => open.execute(TABLES_PROBE).await.map(drop),
        None => connection.insert(PgConnection::connect_with(options).await?).execute(TABLES_PROBE).await.map(drop),
    }
}
