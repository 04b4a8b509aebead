//! Migrations and role grants, in one transaction of the table owner.

use std::sync::LazyLock;

use sqlx::{Connection as _, Executor as _, PgConnection, Row as _, migrate::Migrator};

use super::{error::DatabaseError, role::Role};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("infra/migrations");
    // sqlx takes a session lock, which a transaction pooler would keep after a failure.
    migrations.set_locking(false);
    migrations
});

/// Serializes migrations, and drops named statements that a pooler's connection may have kept.
const BEGIN_MIGRATION: &str = "select pg_advisory_xact_lock(hashtext('agent-service migrations')); deallocate all";

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
    let mut transaction = owner.begin().await?;
    transaction.execute(BEGIN_MIGRATION).await?;
    MIGRATIONS.run(&mut *transaction).await?;
    for LoginGrant { login, roles } in grants {
        let settings = "select set_config('agent.login', $1, true), set_config('agent.roles', $2, true)";
        sqlx::query(settings).bind(login).bind(roles).execute(&mut *transaction).await?;
        transaction.execute(GRANTS).await.map_err(DatabaseError::RoleGrant)?;
    }
    Ok(transaction.commit().await?)
}

pub(super) async fn is_up_to_date(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let applied = sqlx::raw_sql("select version from _sqlx_migrations where success").fetch_all(connection).await;
    let applied: Vec<i64> = match applied {
        Ok(rows) => rows.iter().filter_map(|row| row.try_get("version").ok()).collect(),
        // undefined_table, insufficient_privilege: before the first migration.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P01" | "42501")) => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(MIGRATIONS.iter().all(|migration| applied.contains(&migration.version)))
}
