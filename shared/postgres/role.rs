//! Transactions on behalf of one user, in which the database shows and takes rows of that user alone.
//!
//! Everything is set for the transaction and nothing for the session, so that a pooler may hand the connection to somebody
//! else between two of them.

use std::{
    fmt::Write as _,
    ops::{Deref, DerefMut},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use tokio::time::timeout;

use crate::identity::UserId;

/// Most that one statement takes, where nobody says otherwise, and that it waits for a lock in any case. A caller that has
/// gone stops nothing in the database: without a limit the statement would run on and keep its connection.
const STATEMENT_LIMIT: Duration = Duration::from_secs(20);
/// The same for what only reads, which nobody waits for any longer.
const READING_LIMIT: Duration = Duration::from_secs(10);
/// Most that a transaction does nothing: its process may be frozen, as a function of Lambda is after its answer.
const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// Most that it takes to find out whether anybody takes a connection.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// Whose rights a transaction has. The roles are made by the migrations; none owns a table or bypasses row-level security.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads and writes rows of the user.
    Service,
    /// Reads rows of the user.
    Reader,
    /// Sees of all users who they are and the ids of what they have, and nothing else.
    Maintenance,
}

impl Role {
    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "agent_service",
            Self::Reader => "agent_reader",
            Self::Maintenance => "agent_maintenance",
        }
    }

    /// Takes its rights and begins a transaction, `settings` in between, in one round trip. Statements that are sent together
    /// are one transaction, and so all of it is of the one that is begun last. If it were begun first, a refusal would leave
    /// it open and failed, and with it the connection for whoever comes next.
    pub(super) fn begin(self, settings: &[&str]) -> String {
        [&[self.act()], settings, &["begin"]].concat().join("; ")
    }

    /// Takes its rights for a transaction.
    const fn act(self) -> &'static str {
        match self {
            Self::Service => "set local role agent_service",
            Self::Reader => "set transaction read only; set local role agent_reader",
            Self::Maintenance => "set transaction read only; set local role agent_maintenance",
        }
    }

    const fn limit(self) -> Duration {
        match self {
            Self::Reader => READING_LIMIT,
            Self::Service | Self::Maintenance => STATEMENT_LIMIT,
        }
    }
}

/// A database for one role, whichever login reaches it.
#[derive(Debug, Clone)]
pub struct RolePool {
    /// `None` = there is no database.
    pool: Option<PgPool>,
    role: Role,
    /// Most that one statement takes.
    limit: Duration,
    /// Most that a transaction does nothing.
    idle_limit: Duration,
    /// Whether the server may keep statements by name from one transaction to the next.
    prepared_statements: bool,
}

impl RolePool {
    pub(super) fn new(pool: Option<PgPool>, role: Role, prepared_statements: bool) -> Self {
        Self { pool, role, limit: role.limit(), idle_limit: IDLE_LIMIT, prepared_statements }
    }

    /// The same database for statements that may take longer, or less long, than others.
    #[must_use]
    pub fn with_statement_timeout(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// The same database for transactions that others wait for, so that one whose process is frozen has to end sooner.
    #[must_use]
    pub fn with_idle_timeout(&self, idle_limit: Duration) -> Self {
        Self { idle_limit, ..self.clone() }
    }

    /// Whether there is a database at all.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.pool.is_some()
    }

    /// Whether nobody takes a connection, which is found out by asking for one.
    pub async fn is_unreachable(&self) -> bool {
        let Some(pool) = &self.pool else { return true };
        let options = pool.connect_options();
        match timeout(PROBE_TIMEOUT, PgConnection::connect_with(&options)).await {
            Ok(Ok(connection)) => {
                // It served its purpose.
                drop(connection.close().await);
                false
            }
            Ok(Err(error)) => matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_)),
            Err(_) => false,
        }
    }

    /// Begins a transaction for a user. Dropping it undoes it.
    ///
    /// # Errors
    /// The database can not be reached, or the login may not act as the role.
    pub async fn begin(&self, user: &UserId) -> Result<RoleTransaction, sqlx::Error> {
        self.begin_with(&[&self.limits(), &name_user(user)]).await
    }

    /// Calls a function of ours for a user, in one round trip and a transaction of its own, and gives what it returns.
    ///
    /// Whoever stops waiting for it does not know what becomes of it.
    ///
    /// # Errors
    /// As [`RoleDatabase::begin`], or the function failed; then it has changed nothing.
    pub async fn call_function(
        &self,
        user: &UserId,
        function: &'static str,
        arguments: &[SqlArgument<'_>],
    ) -> Result<Option<PgRow>, sqlx::Error> {
        // Statements that come together are one transaction.
        let mut statements =
            format!("{}; {}; {}; select * from {function}(", self.role.act(), self.limits(), name_user(user));
        for (place, argument) in arguments.iter().enumerate() {
            statements.push_str(if place == 0 { "" } else { ", " });
            argument.write(&mut statements);
        }
        statements.push(')');
        let mut connection = self.pool()?.acquire().await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(statements)).fetch_all(&mut *connection).await?;
        // The first one is that of the user's name.
        Ok(rows.into_iter().nth(1))
    }

    /// Begins a transaction that sees no user's rows, unless the role sees something of all.
    ///
    /// # Errors
    /// As [`RoleDatabase::begin`].
    pub async fn begin_without_user(&self) -> Result<RoleTransaction, sqlx::Error> {
        self.begin_with(&[&self.limits()]).await
    }

    /// Limits what a transaction takes.
    fn limits(&self) -> String {
        format!(
            "set local statement_timeout = {}; set local lock_timeout = {}; \
             set local idle_in_transaction_session_timeout = {}",
            self.limit.as_millis(),
            STATEMENT_LIMIT.as_millis(),
            self.idle_limit.as_millis(),
        )
    }

    async fn begin_with(&self, settings: &[&str]) -> Result<RoleTransaction, sqlx::Error> {
        let inner = self.pool()?.begin_with(AssertSqlSafe(self.role.begin(settings))).await?;
        Ok(RoleTransaction { inner, prepared_statements: self.prepared_statements })
    }

    fn pool(&self) -> Result<&PgPool, sqlx::Error> {
        self.pool.as_ref().ok_or_else(|| sqlx::Error::Configuration("there is no database".into()))
    }
}

/// Shows a transaction the rows of a user.
fn name_user(user: &UserId) -> String {
    let mut statement = "select set_config('agent.user_id', ".to_owned();
    SqlArgument::Text(user.as_str()).write(&mut statement);
    statement.push_str(", true)");
    statement
}

/// An argument of a function in the database, for statements that are sent without parameters because they come together.
#[derive(Debug, Clone, Copy)]
pub enum SqlArgument<'a> {
    /// Text without NUL.
    Text(&'a str),
    /// Bytes, or null.
    Bytes(Option<&'a [u8]>),
    /// True or false.
    Bool(bool),
    /// A number, or null.
    Number(Option<i64>),
    /// A time in seconds.
    Seconds(Duration),
}

impl SqlArgument<'_> {
    /// Writes it as SQL. What is written in hexadecimal digits can not be anything but a value.
    fn write(self, sql: &mut String) {
        match self {
            Self::Text(text) => {
                sql.push_str("convert_from(decode('");
                push_hex(sql, text.as_bytes());
                sql.push_str("', 'hex'), 'UTF8')");
            }
            Self::Bytes(Some(bytes)) => {
                sql.push_str("decode('");
                push_hex(sql, bytes);
                sql.push_str("', 'hex')");
            }
            Self::Bytes(None) | Self::Number(None) => sql.push_str("null"),
            Self::Bool(is_set) => sql.push_str(if is_set { "true" } else { "false" }),
            Self::Number(Some(number)) => drop(write!(sql, "({number})::bigint")),
            Self::Seconds(time) => drop(write!(sql, "{}::float8", time.as_secs_f64())),
        }
    }
}

fn push_hex(sql: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    sql.reserve(2 * bytes.len());
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            sql.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
}

/// A transaction of a role.
pub struct RoleTransaction {
    inner: Transaction<'static, Postgres>,
    prepared_statements: bool,
}

impl RoleTransaction {
    /// A query for this transaction to execute.
    pub fn query<'q>(&self, sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(sql).persistent(self.prepared_statements)
    }

    /// A query whose text is put together from parts of ours. It is never kept by name.
    pub fn query_unprepared<'q>(&self, sql: String) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(sql)).persistent(false)
    }

    /// Makes what was done last.
    ///
    /// # Errors
    /// The database can not be reached any more, or refuses.
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
