//! Migrations and role grants, by the table owner. Each migration is a transaction of its own, so that it holds no lock while
//! the next one waits for another table.
//!
//! A migration runs while turns do. It first locks its tables in their lock order, see [`super`]. Turns wait
//! behind its lock requests, so those give up soon, and the migration begins again.

use std::{sync::LazyLock, time::Duration};

use sqlx::{
    Connection as _, Executor as _, PgConnection, Postgres, Row as _, Transaction,
    migrate::{MigrateError, Migrator},
};
use tokio::time::sleep;

use super::{error::DatabaseError, role::Role};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("infra/migrations");
    // sqlx takes a session lock, which a transaction pooler would keep after a failure.
    migrations.set_locking(false);
    migrations
});

/// Serializes migrations, and drops named statements that a pooler's connection may have kept. The time for one lock is above
/// the `deadlock_timeout` of Postgres, after which an autovacuum gives way.
const BEGIN_MIGRATION: &str = "select pg_advisory_xact_lock(hashtext('agent-service migrations')); deallocate all;
                               set local lock_timeout = '2s'; set local client_min_messages = warning";
const MAX_ATTEMPTS: u32 = 21;
/// Longer than turns have waited for the attempt.
const RETRY_DELAY: Duration = Duration::from_secs(3);
/// lock_not_available, deadlock_detected.
const RETRYABLE: [&str; 2] = ["55P03", "40P01"];

/// Settings `agent.login` and `agent.roles`. A superuser needs no grant.
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
            -- The login may act as the role without inheriting its rights. Before Postgres 16 the login itself says so.
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

/// The roles are separated by spaces.
pub(super) struct LoginGrant<'a> {
    pub login: &'a str,
    pub roles: String,
}

impl<'a> LoginGrant<'a> {
    pub fn new(login: &'a str, roles: &[Role]) -> Self {
        let roles: Vec<_> = roles.iter().map(|role| role.name()).collect();
        Self { login, roles: roles.join(" ") }
    }
}

pub(super) async fn migrate(owner: &mut PgConnection, grants: &[LoginGrant<'_>]) -> Result<(), DatabaseError> {
    let applied = applied_versions(owner).await?;
    for migration in MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)) {
        apply(owner, migration.version).await?;
    }
    let mut transaction = begin(owner).await?;
    // Applies nothing, and compares those that are applied with these.
    MIGRATIONS.run(&mut *transaction).await?;
    for LoginGrant { login, roles } in grants {
        let settings = "select set_config('agent.login', $1, true), set_config('agent.roles', $2, true)";
        sqlx::query(settings).bind(login).bind(roles).execute(&mut *transaction).await?;
        transaction.execute(GRANTS).await.map_err(DatabaseError::RoleGrant)?;
    }
    Ok(transaction.commit().await?)
}

async fn begin(owner: &mut PgConnection) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
    let mut transaction = owner.begin().await?;
    transaction.execute(BEGIN_MIGRATION).await?;
    // sqlx would execute those of the transaction before, which are dropped.
    transaction.clear_cached_statements().await?;
    Ok(transaction)
}

async fn apply(owner: &mut PgConnection, version: i64) -> Result<(), DatabaseError> {
    for attempt in 1.. {
        let mut transaction = begin(owner).await?;
        // Another process may have applied it meanwhile: then nothing is left to do.
        match MIGRATIONS.run_to(version, &mut *transaction).await {
            Ok(()) => return Ok(transaction.commit().await?),
            Err(error) if attempt < MAX_ATTEMPTS && is_retryable(&error) => transaction.rollback().await?,
            Err(error) => return Err(error.into()),
        }
        tracing::info!(version, attempt, "a migration waits for running transactions; retrying");
        sleep(RETRY_DELAY).await;
    }
    Ok(())
}

fn is_retryable(error: &MigrateError) -> bool {
    let (MigrateError::ExecuteMigration(error, _) | MigrateError::Execute(error)) = error else { return false };
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| RETRYABLE.contains(&&*code))
}

pub(super) async fn is_up_to_date(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let applied = applied_versions(connection).await?;
    Ok(MIGRATIONS.iter().all(|migration| applied.contains(&migration.version)))
}

async fn applied_versions(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    let applied = sqlx::raw_sql("select version from _sqlx_migrations where success").fetch_all(connection).await;
    match applied {
        Ok(rows) => Ok(rows.iter().filter_map(|row| row.try_get("version").ok()).collect()),
        // undefined_table, insufficient_privilege: before the first migration.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P01" | "42501")) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}
