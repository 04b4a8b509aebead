//! Databases that hold nothing but the data of one measurement.

use std::{path::Path, str::FromStr as _};

use agent_service::{config::Config, identity::UserId, memory::MemoryEngine, postgres::embedded};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};

use crate::{BenchResult, corpus::Corpus};

const NAME: &str = "memory_bench";
const BATCH: usize = 1_000;

pub struct Postgres {
    url: String,
    _embedded: Option<embedded::EmbeddedPostgres>,
}

impl Postgres {
    /// That of `TEST_DATABASE_URL`, or else an embedded one whose directory is reused between runs.
    pub fn start() -> BenchResult<Self> {
        if let Ok(url) = std::env::var("TEST_DATABASE_URL") {
            return Ok(Self { url, _embedded: None });
        }
        let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres-memory-bench");
        let embedded = embedded::EmbeddedPostgres::start(&data_dir, &|_| {})?;
        let socket = embedded::socket_path(&data_dir)?;
        let url = format!("postgres://postgres@localhost:5432/postgres?host={}", socket.display());
        Ok(Self { url, _embedded: Some(embedded) })
    }

    /// An empty database, which replaces that of the last measurement.
    pub async fn database(&self) -> BenchResult<Database> {
        let mut connection = PgConnection::connect_with(&PgConnectOptions::from_str(&self.url)?).await?;
        connection.execute(AssertSqlSafe(format!("drop database if exists {NAME} with (force)"))).await?;
        connection.execute(AssertSqlSafe(format!("create database {NAME}"))).await?;
        connection.close().await?;
        let mut url = reqwest::Url::parse(&self.url)?;
        url.set_path(NAME);
        Ok(Database { url: url.to_string() })
    }
}

pub struct Database {
    pub url: String,
}

impl Database {
    /// A connection as superuser, to whom row-level security does not apply.
    pub async fn connect(&self) -> BenchResult<PgConnection> {
        Ok(PgConnection::connect_with(&PgConnectOptions::from_str(&self.url)?).await?)
    }

    pub fn config(&self, variables: &[(&str, &str)]) -> BenchResult<Config> {
        let given =
            |name: &str| variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned());
        Ok(Config::read(&|name| {
            given(name).or_else(|| match name {
                "GRPC_PORT" => Some("0".to_owned()),
                "DEMO_MODE" => Some("on".to_owned()),
                "RATE_LIMITS" => Some("off".to_owned()),
                "EMBEDDING_PROVIDER" => Some("hashed".to_owned()),
                "DATABASE_URL" => Some(self.url.clone()),
                _ => None,
            })
        })?)
    }

    /// Updates the planner's statistics, as autovacuum would over time.
    pub async fn settle(&self) -> BenchResult<()> {
        self.connect().await?.execute("vacuum analyze").await?;
        self.connect().await?.execute("checkpoint").await?;
        Ok(())
    }
}

pub async fn fill(engine: &MemoryEngine, user: &str, corpus: &mut Corpus, mut count: usize) -> BenchResult<()> {
    let user = UserId::parse("user_id", user)?;
    while count > 0 {
        let batch = corpus.memories(count.min(BATCH));
        count -= batch.len();
        engine.add(&user, batch).await?;
    }
    Ok(())
}
