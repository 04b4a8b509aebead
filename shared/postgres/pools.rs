use std::time::Duration;

use sqlx::{
    Connection as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{role::Role, transaction::RolePool};

/// Of one process for the memory. The embedded Postgres accepts 64.
pub(super) const MAX_CONNECTIONS: u32 = 16;
/// A pool of its own, so that no search delays a first frame.
const CONVERSATION_MAX_CONNECTIONS: u32 = 16;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than for the memory: an answer can do without memories, but a turn must be persisted.
const CONVERSATION_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Skipping the ping saves a round trip.
const MAX_IDLE_WITHOUT_PING: Duration = Duration::from_millis(500);

/// They connect on first use.
#[derive(Debug, Clone)]
pub struct RolePools {
    pub service: RolePool,
    pub conversations: RolePool,
    pub reader: RolePool,
    pub maintenance: RolePool,
}

impl RolePools {
    /// `reader` is the login of calls that only read; `None`: they share the pool of `service`.
    pub(super) fn new(
        service: &PgConnectOptions,
        reader: Option<&PgConnectOptions>,
        max_connections: u32,
        prepared_statements: bool,
    ) -> Self {
        let memory = pool(service, max_connections, ACQUIRE_TIMEOUT);
        let conversations =
            pool(service, max_connections.min(CONVERSATION_MAX_CONNECTIONS), CONVERSATION_ACQUIRE_TIMEOUT);
        let reader = reader.map_or_else(|| memory.clone(), |reader| pool(reader, max_connections, ACQUIRE_TIMEOUT));
        let role_pool = |pool, role| RolePool::new(Some(pool), role, prepared_statements);
        Self {
            reader: role_pool(reader, Role::Reader),
            maintenance: role_pool(memory.clone(), Role::Maintenance),
            service: role_pool(memory, Role::Service),
            conversations: role_pool(conversations, Role::Service),
        }
    }

    /// Every transaction fails.
    #[must_use]
    pub fn absent() -> Self {
        let role_pool = |role| RolePool::new(None, role, false);
        Self {
            service: role_pool(Role::Service),
            conversations: role_pool(Role::Service),
            reader: role_pool(Role::Reader),
            maintenance: role_pool(Role::Maintenance),
        }
    }
}

fn pool(options: &PgConnectOptions, max_connections: u32, acquire_timeout: Duration) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for >= MAX_IDLE_WITHOUT_PING {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options.clone())
}
