//! Users are isolated by the service and, should it have a bug, by row-level security of the database.

mod model;
mod random_operations;
mod reading_login;
mod row_level_security;
mod search;

use agent_service::postgres::{Database, RolePools, RoleTransaction};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use crate::harness::config;

/// All tables with a `user_id`.
pub const TABLES: &str = "
    select relname::text from pg_class
    where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace
          and exists (select from pg_attribute where attrelid = pg_class.oid and attname = 'user_id' and not attisdropped)
    order by relname";

pub const INSUFFICIENT_PRIVILEGE: &str = "42501";

pub fn roles(url: &str) -> RolePools {
    Database::from_config(&config(&[("DATABASE_URL", url)]).stores.database).unwrap().pools()
}

pub async fn query_strings(connection: &mut PgConnection, sql: impl Into<String>) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.into())).persistent(false).fetch_all(connection).await.unwrap()
}

pub async fn query_number(connection: &mut PgConnection, sql: impl Into<String>) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.into())).persistent(false).fetch_one(connection).await.unwrap()
}

pub async fn rows_affected(transaction: &mut RoleTransaction, sql: String) -> u64 {
    transaction.execute(AssertSqlSafe(sql)).await.unwrap().rows_affected()
}

/// The SQLSTATE of a rejected statement.
pub async fn error_code(connection: &mut PgConnection, sql: &str) -> String {
    let rejected = connection.execute(AssertSqlSafe(sql.to_owned())).await;
    let error = rejected.expect_err(sql).into_database_error().unwrap();
    error.code().unwrap().into_owned()
}
