//! Transactions of a role for one user, in which row-level security admits that user's rows only. Settings are local to
//! the transaction, so that a transaction pooler may give the connection to another client in between.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout;

use super::{
    role::{Role, STATEMENT_TIMEOUT},
    sql_argument::SqlArgument,
};
use crate::identity::UserId;

/// Ends transactions of a frozen process, as a Lambda function is after its answer.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct RolePool {
    /// `None`: no database is configured.
    pool: Option<PgPool>,
    role: Role,
    statement_timeout: Duration,
    idle_timeout: Duration,
    /// Whether queries may be prepared by name for later transactions.
    prepared_statements: bool,
}

impl RolePool {
    pub(super) fn new(pool: Option<PgPool>, role: Role, prepared_statements: bool) -> Self {
        let statement_timeout = role.statement_timeout();
        Self { pool, role, statement_timeout, idle_timeout: IDLE_TIMEOUT, prepared_statements }
    }

    #[must_use]
    pub fn with_statement_timeout(&self, statement_timeout: Duration) -> Self {
        Self { statement_timeout, ..self.clone() }
    }

    #[must_use]
    pub fn with_idle_timeout(&self, idle_timeout: Duration) -> Self {
        Self { idle_timeout, ..self.clone() }
    }

    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.pool.is_some()
    }

    /// A new connection is refused, as opposed to slow.
    pub async fn is_unreachable(&self) -> bool {
        let Some(pool) = &self.pool else { return true };
        let options = pool.connect_options();
        match timeout(PROBE_TIMEOUT, PgConnection::connect_with(&options)).await {
            Ok(Ok(connection)) => {
                drop(connection.close().await);
                false
            }
            Ok(Err(error)) => matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_)),
            Err(_) => false,
        }
    }

    /// Dropping the transaction rolls back. Fails if the login may not act as the role.
    pub async fn begin(&self, user: &UserId) -> Result<RoleTransaction, sqlx::Error> {
        self.begin_with(&[&self.set_timeouts(), &set_user(user)]).await
    }

    /// Admits no user's rows, except those that the role sees of all users.
    pub async fn begin_without_user(&self) -> Result<RoleTransaction, sqlx::Error> {
        self.begin_with(&[&self.set_timeouts()]).await
    }

    /// Takes one round trip and returns the rows of the function. If it fails, nothing changed; dropping the future leaves
    /// open whether the call took effect.
    pub async fn call_function(
        &self,
        user: &UserId,
        function: &'static str,
        arguments: &[SqlArgument<'_>],
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        // The other timeouts cannot pass: the statement ends before a lock wait may, and the transaction is never idle.
        let mut statements = format!(
            "{}; set local statement_timeout = {}; {}; select * from {function}(",
            self.role.assume(),
            self.statement_timeout.min(STATEMENT_TIMEOUT).as_millis(),
            set_user(user),
        );
        for (index, argument) in arguments.iter().enumerate() {
            statements.push_str(if index == 0 { "" } else { ", " });
            argument.write(&mut statements);
        }
        statements.push(')');
        let mut connection = Box::pin(self.pool()?.acquire()).await?;
        let mut rows = sqlx::raw_sql(AssertSqlSafe(statements)).fetch_all(&mut *connection).await?;
        // The row of `set_config`.
        drop(rows.drain(..rows.len().min(1)));
        Ok(rows)
    }

    fn set_timeouts(&self) -> String {
        format!(
            "set local statement_timeout = {}; set local lock_timeout = {}; \
             set local idle_in_transaction_session_timeout = {}",
            self.statement_timeout.as_millis(),
            STATEMENT_TIMEOUT.as_millis(),
            self.idle_timeout.as_millis(),
        )
    }

    async fn begin_with(&self, settings: &[&str]) -> Result<RoleTransaction, sqlx::Error> {
        // Boxed: the future is 4 KiB, and every caller would carry it for as long as its transaction takes.
        let inner = Box::pin(self.pool()?.begin_with(AssertSqlSafe(self.role.begin(settings)))).await?;
        Ok(RoleTransaction { inner, prepared_statements: self.prepared_statements })
    }

    fn pool(&self) -> Result<&PgPool, sqlx::Error> {
        self.pool.as_ref().ok_or_else(|| sqlx::Error::Configuration("no database is configured".into()))
    }
}

fn set_user(user: &UserId) -> String {
    let mut statement = "select set_config('agent.user_id', ".to_owned();
    SqlArgument::Text(user.as_str()).write(&mut statement);
    statement.push_str(", true)");
    statement
}

/// Dropping it rolls back.
pub struct RoleTransaction {
    inner: Transaction<'static, Postgres>,
    prepared_statements: bool,
}

impl RoleTransaction {
    pub fn query<'q>(&self, sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(sql).persistent(self.prepared_statements)
    }

    /// For SQL that is assembled at run time: it is never prepared by name. No input may be part of its text.
    pub fn query_unprepared<'q>(&self, sql: String) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(sql)).persistent(false)
    }

    /// A lost connection leaves open whether the commit took effect.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.inner.commit().await
    }
}

impl Deref for RoleTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for RoleTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}
