//! Transactions of a role for one user, in which row-level security admits that user's rows only. Settings are local to
//! the transaction, so that a transaction pooler may give the connection to another client in between.

use std::{
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::{runtime::Handle, time::timeout};

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

    /// As [`begin`](Self::begin), for large statements whose plan does not depend on their arguments: Postgres may take
    /// longer to plan such a statement for each execution than to execute it.
    pub async fn begin_with_generic_plans(&self, user: &UserId) -> Result<RoleTransaction, sqlx::Error> {
        self.begin_with(&[&self.set_timeouts(), "set local plan_cache_mode = force_generic_plan", &set_user(user)])
            .await
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
        // Boxed: the futures are kilobytes, and every caller would carry them for as long as its transaction takes.
        let connection = Box::pin(self.pool()?.acquire()).await?;
        let statements = AssertSqlSafe(self.role.begin(settings)).into_sql_str();
        let inner = Begin(Some(Transaction::begin(connection, Some(statements)))).await?;
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

/// Dropped before `BEGIN` is answered, sqlx returns the connection to the pool within an open transaction of which it does
/// not know: a function call of the next user would not be committed. So a task completes it, and rolls back.
struct Begin(Option<BoxFuture<'static, Result<Transaction<'static, Postgres>, sqlx::Error>>>);

impl Future for Begin {
    type Output = Result<Transaction<'static, Postgres>, sqlx::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(begin) = &mut self.0 else { return Poll::Ready(Err(sqlx::Error::WorkerCrashed)) };
        let begun = ready!(begin.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(begun)
    }
}

impl Drop for Begin {
    fn drop(&mut self) {
        // Without a runtime the connection is closed with the process.
        if let (Some(begin), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            drop(runtime.spawn(async move { drop(begin.await) }));
        }
    }
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
