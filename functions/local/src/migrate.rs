//! `agent-local migrate`: applies the migrations with the login of the table owner.

use std::process::ExitCode;

use agent_service::{
    config::{Config, DatabaseConfig},
    postgres::Database,
};

use crate::CommandResult;

pub async fn run(config: Config) -> CommandResult {
    if matches!(config.stores.database, DatabaseConfig::Embedded { .. }) {
        return Err(
            "nothing to migrate: DATABASE_URL is not set, and the server migrates its embedded Postgres itself".into(),
        );
    }
    Database::from_config(&config.stores.database)?.migrate().await?;
    println!("The tables are up to date.");
    Ok(ExitCode::SUCCESS)
}
