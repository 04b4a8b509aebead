//! A database for each test, and configurations.

use std::{collections::HashMap, path::PathBuf, str::FromStr as _};

use agent_service::{
    config::Config,
    postgres::{Database, embedded},
};
use sqlx::{Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The Postgres of `TEST_DATABASE_URL`, or else an embedded one.
struct Postgres {
    url: String,
    /// The migrated template database; each test gets a copy.
    template: String,
    _embedded: Option<embedded::EmbeddedPostgres>,
}

async fn postgres() -> &'static Postgres {
    static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
    POSTGRES
        .get_or_init(|| async {
            let (url, embedded) = match std::env::var("TEST_DATABASE_URL") {
                Ok(url) => (url, None),
                Err(_) => tokio::task::spawn_blocking(start_embedded).await.unwrap(),
            };
            let template = format!("agent_test_template_{}", Uuid::now_v7().simple());
            create_database(&url, &template, "template1").await;
            database(&with_database(&url, &template)).migrate().await.unwrap();
            Postgres { url, template, _embedded: embedded }
        })
        .await
}

/// Starts an embedded Postgres in a directory that is reused between runs, and that no concurrent run uses.
fn start_embedded() -> (String, Option<embedded::EmbeddedPostgres>) {
    for number in 0..100 {
        let data_dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-{number}"));
        match embedded::EmbeddedPostgres::start(&data_dir, &|_| {}) {
            Err(embedded::EmbeddedError::InUse { .. }) => {}
            started => {
                let socket = embedded::socket_path(&data_dir).unwrap();
                let url = format!("postgres://postgres@localhost:5432/postgres?host={}", socket.display());
                return (url, Some(started.unwrap()));
            }
        }
    }
    panic!("every directory for an embedded Postgres is in use");
}

fn with_database(url: &str, name: &str) -> String {
    let mut url = reqwest::Url::parse(url).unwrap();
    url.set_path(name);
    url.to_string()
}

async fn create_database(url: &str, name: &str, template: &str) {
    let mut connection = PgConnection::connect_with(&PgConnectOptions::from_str(url).unwrap()).await.unwrap();
    let statement = format!("create database {name} template {template}");
    connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
}

fn database(url: &str) -> Database {
    Database::from_config(&config(&[("DATABASE_URL", url)]).stores.database).unwrap()
}

/// The URL of a database through the pooler of `TEST_POOLER_URL`, if there is one.
pub fn pooled_url(url: &str) -> String {
    let Ok(pooler) = std::env::var("TEST_POOLER_URL") else { return url.to_owned() };
    let (direct, mut pooled) = (reqwest::Url::parse(url).unwrap(), reqwest::Url::parse(&pooler).unwrap());
    pooled.set_path(direct.path());
    pooled.set_username(direct.username()).unwrap();
    pooled.to_string()
}

/// Dropped with the test.
pub struct TestDatabase {
    /// The direct URL, as owner.
    pub url: String,
    name: String,
}

impl TestDatabase {
    pub async fn create() -> Self {
        let postgres = postgres().await;
        let name = format!("agent_test_{}", Uuid::now_v7().simple());
        create_database(&postgres.url, &name, &postgres.template).await;
        Self { url: with_database(&postgres.url, &name), name }
    }

    /// The URL for servers, possibly through a pooler.
    pub fn service_url(&self) -> String {
        pooled_url(&self.url)
    }

    /// A direct connection as owner, to whom row-level security does not apply.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&PgConnectOptions::from_str(&self.url).unwrap()).await.unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (url, name) = (with_database(&self.url, "postgres"), self.name.clone());
        // The runtime of the test may be shutting down.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = PgConnection::connect_with(&PgConnectOptions::from_str(&url).unwrap()).await?;
                connection.execute(sqlx::AssertSqlSafe(format!("drop database {name} with (force)"))).await
            })
        });
        // A leftover database only takes space.
        let _ = dropped.join();
    }
}

/// A configuration from these variables only.
pub fn config(variables: &[(&str, &str)]) -> Config {
    let mut all = HashMap::new();
    if std::env::var_os("TEST_POOLER_URL").is_some() {
        all.insert("DATABASE_PREPARED_STATEMENTS", "off");
    }
    all.extend(variables.iter().copied());
    let variables = all;
    Config::read(&|name| variables.get(name).map(|value| (*value).to_owned())).unwrap()
}
