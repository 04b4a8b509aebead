//! A migrated embedded Postgres with a login for each function that has no more rights than the function needs.

use std::{path::Path, sync::Arc};

use agent_service::{
    config::Config,
    embedding::HashedEmbedder,
    memory::MemoryEngine,
    postgres::{Database, embedded},
};

pub struct TestDatabase {
    /// Direct access to the memories of the database.
    pub engine: Arc<MemoryEngine>,
    socket: String,
    _running: embedded::EmbeddedPostgres,
}

impl TestDatabase {
    pub async fn start(directory: &Path) -> Self {
        let data = directory.to_owned();
        let start = move || embedded::EmbeddedPostgres::start(&data, &|_| {}).unwrap();
        let running = tokio::task::spawn_blocking(start).await.unwrap();
        let socket = embedded::socket_path(directory).unwrap().display().to_string();
        let url = |login| url(login, &socket);
        let owner = embedded::connect_options(directory).unwrap();
        let mut owner = <sqlx::PgConnection as sqlx::Connection>::connect_with(&owner).await.unwrap();
        sqlx::raw_sql("create role writer login; create role reader login").execute(&mut owner).await.unwrap();
        let variables = [
            ("DATABASE_URL", url("writer")),
            ("DATABASE_READ_URL", url("reader")),
            ("DATABASE_ADMIN_URL", url("postgres")),
        ];
        let source = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| value.clone());
        let config = Config::read(&source).unwrap();
        let database = Database::from_config(&config.stores.database).unwrap();
        database.migrate().await.unwrap();
        let engine = MemoryEngine::new(config.memory, database.pools(), Arc::new(HashedEmbedder::new()));
        Self { engine: Arc::new(engine), socket, _running: running }
    }

    /// The URL for the login `writer`, `reader` or `postgres`.
    pub fn url(&self, login: &str) -> String {
        url(login, &self.socket)
    }
}

fn url(login: &str, socket: &str) -> String {
    format!("postgres://{login}@localhost/postgres?host={socket}")
}
