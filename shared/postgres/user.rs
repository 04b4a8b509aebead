//! Transactions on behalf of one user, in which the database shows and takes rows of that user alone.
//!
//! Everything is set for the transaction and nothing for the session, so that a pooler may hand the connection to somebody
//! else between two of them.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction, postgres::PgArguments, query::Query,
};

use crate::identity::UserId;

/// Most that one statement takes, where nobody says otherwise, and that it waits for a lock in any case. A caller that has
/// gone stops nothing in the database: without a limit the statement would run on and keep its connection.
const STATEMENT_LIMIT: Duration = Duration::from_secs(20);
/// The same for what only reads, which nobody waits for any longer.
const READING_LIMIT: Duration = Duration::from_secs(10);
/// Most that a transaction does nothing: its process may be frozen, as a function of Lambda is after its answer.
const IDLE_LIMIT: Duration = Duration::from_mins(1);

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
        let mode = match self {
            Self::Service => "begin",
            Self::Reader | Self::Maintenance => "begin read only",
        };
        let role = format!("set local role {}", self.name());
        [&[role.as_str()], settings, &[mode]].concat().join("; ")
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
pub struct RoleDatabase {
    /// `None` = there is no database.
    pool: Option<PgPool>,
    role: Role,
    /// Most that one statement takes.
    limit: Duration,
    /// Whether the server may keep statements by name from one transaction to the next.
    prepared_statements: bool,
}

impl RoleDatabase {
    pub(super) fn new(pool: Option<PgPool>, role: Role, prepared_statements: bool) -> Self {
        Self { pool, role, limit: role.limit(), prepared_statements }
    }

    /// The same database for statements that may take longer, or less long, than others.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// Whether there is a database at all.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.pool.is_some()
    }

    /// Begins a transaction for a user. Dropping it undoes it.
    ///
    /// # Errors
    /// The database can not be reached, or the login may not act as the role.
    pub async fn begin(&self, user: &UserId) -> Result<RoleTransaction, sqlx::Error> {
        // One round trip takes no parameters. What is written in hexadecimal digits can not be anything but a value.
        let user: String = user.as_str().bytes().map(|byte| format!("{byte:02x}")).collect();
        let user = format!("select set_config('agent.user_id', convert_from(decode('{user}', 'hex'), 'UTF8'), true)");
        self.begin_with(&[&self.limits(), &user]).await
    }

    /// Begins a transaction that sees no user's rows, unless the role sees something of all.
    ///
    /// # Errors
    /// As [`RoleDatabase::begin`].
    pub async fn begin_for_nobody(&self) -> Result<RoleTransaction, sqlx::Error> {
        self.begin_with(&[&self.limits()]).await
    }

    /// Limits what the transaction takes.
    fn limits(&self) -> String {
        format!(
            "set local statement_timeout = {}; set local lock_timeout = {}; \
             set local idle_in_transaction_session_timeout = {}",
            self.limit.as_millis(),
            STATEMENT_LIMIT.as_millis(),
            IDLE_LIMIT.as_millis(),
        )
    }

    async fn begin_with(&self, settings: &[&str]) -> Result<RoleTransaction, sqlx::Error> {
        let absent = || sqlx::Error::Configuration("there is no database".into());
        let statement = AssertSqlSafe(self.role.begin(settings));
        let inner = self.pool.as_ref().ok_or_else(absent)?.begin_with(statement).await?;
        Ok(RoleTransaction { inner, prepared_statements: self.prepared_statements })
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
    pub fn query_once<'q>(&self, sql: String) -> Query<'q, Postgres, PgArguments> {
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
