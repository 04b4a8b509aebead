//! The database: where it is, making it ready, and watching whether it can be reached.

use std::{
    path::PathBuf,
    str::FromStr as _,
    sync::{Arc, LazyLock},
    time::Duration,
};

use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool, Row as _,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::config::{DatabaseConfig, Secret};

#[cfg(embedded_postgres_archive)]
pub mod embedded;
mod isolation;
mod role;

pub use role::{Role, RolePool, RoleTransaction, SqlArgument};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("infra/migrations");
    // Its lock is one of the session, which a pooler would keep after a failure.
    migrations.set_locking(false);
    migrations
});

/// Makes this transaction the only one that migrates, and forgets statements that a pooler's connection may have kept.
const BEGIN_MIGRATION: &str = "select pg_advisory_xact_lock(hashtext('agent-service migrations')); deallocate all";

/// Connections of one process for the memory. The embedded Postgres takes 40, and a turn holds one only while it searches.
const MAX_CONNECTIONS: u32 = 16;
/// As many of them, and no more, are there for conversations beside those, so that no search holds up a first frame.
const MAX_FOR_CONVERSATIONS: u32 = 8;
/// Longest wait for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// The same for conversations: what was said is worth waiting for.
const ACQUIRE_TIMEOUT_FOR_CONVERSATIONS: Duration = Duration::from_secs(10);
/// Longest that a connection lies idle and is taken without a test.
const UNTESTED: Duration = Duration::from_millis(500);
/// Time between two checks whether the database can be reached.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds out whether the tables are there, and reads nothing. It needs no right to see them.
const CHECK: &str = "select 'memories'::regclass, 'memory_users'::regclass";

/// Lets a login, which the setting `agent.login` names, act as the roles of `agent.roles`, and see that the tables are up to
/// date. A superuser may do so anyway.
const GRANTS: &str = "
    do $$
    declare
        login text := current_setting('agent.login');
        granted text;
    begin
        if (select rolsuper from pg_roles where rolname = login) then
            return;
        end if;
        foreach granted in array string_to_array(current_setting('agent.roles'), ' ') loop
            -- To act as a role is not to have its rights all the time. Before Postgres 16 the login itself says so.
            if current_setting('server_version_num')::int >= 160000 then
                execute format('grant %I to %I with inherit false, set true', granted, login);
            else
                execute format('grant %I to %I', granted, login);
            end if;
        end loop;
        execute format('grant usage on schema public to %I', login);
        execute format('grant select on _sqlx_migrations to %I', login);
    end
    $$";

/// A step on the way to a database that is ready, told as it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupStep {
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
    InvalidUrl {
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
    /// Its tables are missing, or of an older version of the service.
    #[error("the tables are not up to date: run `agent-local migrate` with DATABASE_ADMIN_URL")]
    NotMigrated,
    /// The embedded Postgres can not run.
    #[cfg(embedded_postgres_archive)]
    #[error(transparent)]
    Embedded(#[from] embedded::EmbeddedError),
    /// The owner may not let the logins act as the service's roles.
    #[error(
        "the owner of the tables may not grant the service's roles, which docs/database.md tells how to prepare: {0}"
    )]
    RoleGrant(#[source] sqlx::Error),
    /// It could show one user's rows to another.
    #[error("the database does not keep users apart: {0}")]
    NotIsolated(String),
    /// None is configured.
    #[error("there is no database: set DATABASE_URL, for example postgres://agent@127.0.0.1/agent")]
    NotConfigured,
    /// This build has no embedded Postgres.
    #[error("this build has no Postgres of its own: set DATABASE_URL, for example postgres://agent@127.0.0.1/agent")]
    EmbeddedUnsupported,
}

/// A database that may not be ready yet.
#[derive(Debug, Clone)]
pub struct Database {
    /// The service's own connection.
    service: PgConnectOptions,
    /// The connection of calls that only read; not set = the service's.
    reader: Option<PgConnectOptions>,
    /// The owner's connection, for migrations.
    owner: PgConnectOptions,
    /// Whether the server may keep statements by name; a transaction pooler may not allow it.
    prepared_statements: bool,
    /// Whether the service's login is one that only reads.
    only_reads: bool,
    /// Of the embedded Postgres, if that is the one.
    #[cfg(embedded_postgres_archive)]
    data_dir: Option<PathBuf>,
}

impl Database {
    /// The database that the configuration names. Nothing is started or connected.
    ///
    /// # Errors
    /// An address can not be used.
    pub fn from_config(config: &DatabaseConfig) -> Result<Self, DatabaseError> {
        match config {
            DatabaseConfig::Postgres { url, read_url, admin_url, prepared_statements, is_read_only: only_reads } => {
                let service = parse_url("DATABASE_URL", url.expose())?;
                let parse = |variable, url: &Option<Secret>| {
                    url.as_ref().map(|url| parse_url(variable, url.expose())).transpose()
                };
                Ok(Self {
                    reader: parse("DATABASE_READ_URL", read_url)?,
                    owner: parse("DATABASE_ADMIN_URL", admin_url)?.unwrap_or_else(|| service.clone()),
                    service,
                    prepared_statements: *prepared_statements,
                    only_reads: *only_reads,
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
            only_reads: false,
            data_dir: Some(data_dir),
        })
    }

    #[cfg(not(embedded_postgres_archive))]
    fn embedded(_data_dir: PathBuf) -> Result<Self, DatabaseError> {
        Err(DatabaseError::EmbeddedUnsupported)
    }

    /// The database for each role; it connects when it is first used.
    #[must_use]
    pub fn pools(&self) -> RolePools {
        self.pools_with_limit(MAX_CONNECTIONS)
    }

    /// The database for each role, by at most so many connections to each address.
    #[must_use]
    pub fn pools_with_limit(&self, max_connections: u32) -> RolePools {
        let pool_with = |options: &PgConnectOptions, max_connections, acquire_timeout| {
            PgPoolOptions::new()
                .max_connections(max_connections)
                .acquire_timeout(acquire_timeout)
                // A connection that was in use just now needs no round trip that shows that it still is one.
                .test_before_acquire(false)
                .before_acquire(|connection, known| {
                    Box::pin(async move {
                        if known.idle_for >= UNTESTED {
                            connection.ping().await?;
                        }
                        Ok(true)
                    })
                })
                .connect_lazy_with(options.clone())
        };
        let pool = |options: &PgConnectOptions| pool_with(options, max_connections, ACQUIRE_TIMEOUT);
        let service = pool(&self.service);
        let most = max_connections.min(MAX_FOR_CONVERSATIONS);
        let conversations = pool_with(&self.service, most, ACQUIRE_TIMEOUT_FOR_CONVERSATIONS);
        let reader = self.reader.as_ref().map_or_else(|| service.clone(), pool);
        let role = |pool: &PgPool, role| RolePool::new(Some(pool.clone()), role, self.prepared_statements);
        RolePools {
            reader: role(&reader, Role::Reader),
            service: role(&service, Role::Service),
            conversations: role(&conversations, Role::Service),
            maintenance: role(&service, Role::Maintenance),
        }
    }

    /// Brings the tables up to date, as their owner, and lets the logins act as the service's roles.
    ///
    /// # Errors
    /// The database can not be reached, or refuses a change.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let mut owner = connect(&self.owner).await?;
        let mut transaction = owner.begin().await?;
        transaction.execute(BEGIN_MIGRATION).await?;
        MIGRATIONS.run(&mut *transaction).await?;
        let every_role = [Role::Service, Role::Reader, Role::Maintenance].map(Role::name).join(" ");
        let mut logins = vec![(self.owner.get_username(), every_role.as_str())];
        logins.push((self.service.get_username(), &every_role));
        logins.extend(self.reader.as_ref().map(|reader| (reader.get_username(), Role::Reader.name())));
        for (login, roles) in logins {
            let named = "select set_config('agent.login', $1, true), set_config('agent.roles', $2, true)";
            sqlx::query(named).bind(login).bind(roles).execute(&mut *transaction).await?;
            transaction.execute(GRANTS).await.map_err(DatabaseError::RoleGrant)?;
        }
        transaction.commit().await?;
        Ok(owner.close().await?)
    }

    /// Migrates, unless the service's own login sees that there is nothing to do: it may not change tables. Then checks that
    /// each login is held to one user's rows.
    async fn prepare(&self) -> Result<(), DatabaseError> {
        match self.check().await {
            Err(DatabaseError::NotMigrated) => {
                self.migrate().await?;
                self.check().await
            }
            checked => checked,
        }
    }

    /// Checks, by the logins of the service and of calls that only read, that the tables are up to date and that each login
    /// is held to one user's rows. Nothing is changed.
    ///
    /// # Errors
    /// [`DatabaseError::Unreachable`] where nothing can be said, [`DatabaseError::NotMigrated`] and
    /// [`DatabaseError::NotIsolated`] where the database must not be used.
    pub async fn check(&self) -> Result<(), DatabaseError> {
        let mut service = connect(&self.service).await?;
        let applied =
            match sqlx::raw_sql("select version from _sqlx_migrations where success").fetch_all(&mut service).await {
                // Before the first migration there is no such table, or the login may not see it yet.
                Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P01" | "42501")) => {
                    Vec::new()
                }
                applied => applied?,
            };
        let applied: Vec<i64> = applied.iter().filter_map(|row| row.try_get("version").ok()).collect();
        if !MIGRATIONS.iter().all(|migration| applied.contains(&migration.version)) {
            return Err(DatabaseError::NotMigrated);
        }
        if !self.only_reads {
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

    /// Makes the database ready for as long as the guard is kept: starts the embedded Postgres unless it runs already.
    ///
    /// # Errors
    /// The database can not be reached, or does not keep users apart.
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

    /// A connection as the owner of the tables.
    pub(crate) async fn connect_owner(&self) -> Result<PgConnection, sqlx::Error> {
        connect(&self.owner).await
    }

    /// Makes the database ready and then watches it: `ready` tells whether it can be used. Runs until it is dropped, which
    /// stops the embedded Postgres.
    ///
    /// # Errors
    /// The embedded Postgres can not run, or the database does not keep users apart. A database elsewhere that can not be
    /// reached is no error: it is tried again.
    pub async fn supervise(&self, ready: &watch::Sender<bool>, progress: StartupProgress) -> Result<(), DatabaseError> {
        let _running = self.start_embedded(progress.clone()).await?;
        let mut reported = false;
        while let Err(error) = self.prepare().await {
            if matches!(error, DatabaseError::NotIsolated(_)) {
                return Err(error);
            }
            if !std::mem::replace(&mut reported, true) {
                tracing::warn!(%error, "the database is not ready; trying again until it is");
            }
            sleep(CHECK_INTERVAL).await;
        }
        progress(StartupStep::Ready);
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
    async fn start_embedded(&self, progress: StartupProgress) -> Result<Option<Running>, DatabaseError> {
        let Some(data_dir) = self.data_dir.clone() else { return Ok(None) };
        let start = move || embedded::EmbeddedPostgres::start(&data_dir, &*progress);
        match tokio::task::spawn_blocking(start).await {
            Ok(started) => Ok(Some(started?)),
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        }
    }

    #[cfg(not(embedded_postgres_archive))]
    async fn start_embedded(&self, _progress: StartupProgress) -> Result<Option<Running>, DatabaseError> {
        Ok(None)
    }
}

#[cfg(embedded_postgres_archive)]
type Running = embedded::EmbeddedPostgres;
#[cfg(not(embedded_postgres_archive))]
type Running = std::convert::Infallible;

/// A database that is ready. Dropping it stops an embedded Postgres that was started for it.
#[must_use]
pub struct DatabaseGuard {
    _running: Option<Running>,
}

/// The database for each role.
#[derive(Debug, Clone)]
pub struct RolePools {
    /// For what changes a user's rows.
    pub service: RolePool,
    /// The same for conversations, by connections of their own.
    pub conversations: RolePool,
    /// For what reads a user's rows.
    pub reader: RolePool,
    /// For what is done for all users.
    pub maintenance: RolePool,
}

impl RolePools {
    /// No database: every transaction fails.
    #[must_use]
    pub fn absent() -> Self {
        let role = |role| RolePool::new(None, role, false);
        Self {
            service: role(Role::Service),
            conversations: role(Role::Service),
            reader: role(Role::Reader),
            maintenance: role(Role::Maintenance),
        }
    }
}

/// Called before each step on the way to a database that is ready.
pub type StartupProgress = Arc<dyn Fn(StartupStep) + Send + Sync>;

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
        // Poolers refuse settings that they do not know.
        .map(|options| options.application_name("agent-service").extra_float_digits(None))
        .map_err(|_| DatabaseError::InvalidUrl { variable, problem: "it is not a valid Postgres URL".to_owned() })
}
