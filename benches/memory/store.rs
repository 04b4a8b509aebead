//! Databases to search, each with nothing in it but what a measurement puts there.

use std::{path::Path, str::FromStr as _};

use agent_service::{config::Config, identity::UserId, memory::MemoryEngine, postgres::embedded};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};

use crate::{Outcome, corpus::Corpus};

const NAME: &str = "memory_bench";
/// Memories that are written at once.
const BATCH: usize = 1_000;

/// The Postgres of a run.
pub struct Postgres {
    url: String,
    _embedded: Option<embedded::EmbeddedPostgres>,
}

impl Postgres {
    /// The one of `TEST_DATABASE_URL`, or else an embedded one, whose directory is kept from run to run.
    pub fn start() -> Outcome<Self> {
        if let Ok(url) = std::env::var("TEST_DATABASE_URL") {
            return Ok(Self { url, _embedded: None });
        }
        let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres-memory-bench");
        let embedded = embedded::EmbeddedPostgres::start(&data_dir, &|_| {})?;
        let socket = embedded::socket_path(&data_dir)?;
        let url = format!("postgres://postgres@localhost:5432/postgres?host={}", socket.display());
        Ok(Self { url, _embedded: Some(embedded) })
    }

    /// A database of one measurement, in place of the one before. It has no tables yet.
    pub async fn database(&self) -> Outcome<Database> {
        let mut connection = PgConnection::connect_with(&PgConnectOptions::from_str(&self.url)?).await?;
        connection.execute(AssertSqlSafe(format!("drop database if exists {NAME} with (force)"))).await?;
        connection.execute(AssertSqlSafe(format!("create database {NAME}"))).await?;
        connection.close().await?;
        let mut url = reqwest::Url::parse(&self.url)?;
        url.set_path(NAME);
        Ok(Database { url: url.to_string() })
    }
}

/// A database of one measurement.
pub struct Database {
    pub url: String,
}

impl Database {
    /// A connection beside the server, as a superuser, who is held to no user's rows.
    pub async fn connect(&self) -> Outcome<PgConnection> {
        Ok(PgConnection::connect_with(&PgConnectOptions::from_str(&self.url)?).await?)
    }

    /// What the server is configured with.
    pub fn config(&self, variables: &[(&str, &str)]) -> Outcome<Config> {
        let given =
            |name: &str| variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned());
        Ok(Config::read(&|name| {
            given(name).or_else(|| match name {
                "GRPC_PORT" => Some("0".to_owned()),
                "DEMO_MODE" => Some("on".to_owned()),
                "EMBEDDING_PROVIDER" => Some("hashed".to_owned()),
                "DATABASE_URL" => Some(self.url.clone()),
                _ => None,
            })
        })?)
    }

    /// Has the planner know what there is, as it does in a database that has run for a while.
    pub async fn settle(&self) -> Outcome<()> {
        self.connect().await?.execute("vacuum analyze").await?;
        self.connect().await?.execute("checkpoint").await?;
        Ok(())
    }
}

/// Gives a user memories.
pub async fn fill(engine: &MemoryEngine, user: &str, corpus: &mut Corpus, mut count: usize) -> Outcome<()> {
    let user = UserId::parse("user_id", user)?;
    while count > 0 {
        let batch = corpus.memories(count.min(BATCH));
        count -= batch.len();
        engine.add(&user, batch).await?;
    }
    Ok(())
}
