use std::{str::FromStr as _, time::Duration};

use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;

use super::error::DatabaseError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    match timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options)).await {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

pub(super) fn parse_url(variable: &'static str, url: &str) -> Result<PgConnectOptions, DatabaseError> {
    PgConnectOptions::from_str(url)
        // Poolers such as PgBouncer refuse startup parameters that they do not know.
        .map(|options| options.application_name("agent-service").extra_float_digits(None))
        // sqlx's message may quote the password.
        .map_err(|_| DatabaseError::InvalidUrl { variable, problem: "it is not a Postgres URL".to_owned() })
}
