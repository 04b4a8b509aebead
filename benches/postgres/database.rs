//! Databases of an embedded Postgres that does nothing on its own.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use agent_service::postgres::embedded::{self, EmbeddedPostgres};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::time::{sleep, timeout};

use crate::BenchResult;

pub struct Postgres {
    folder: PathBuf,
    _embedded: EmbeddedPostgres,
}

impl Postgres {
    pub fn start(data: &Path) -> BenchResult<Self> {
        let embedded = EmbeddedPostgres::start(data, &|_| {})?;
        Ok(Self { folder: embedded::socket_path(data)?, _embedded: embedded })
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }

    /// Its work would count.
    pub async fn disable_autovacuum(&self) -> BenchResult<()> {
        let mut connection = self.connect("postgres").await?;
        connection.execute("alter system set autovacuum = off").await?;
        connection.execute("select pg_reload_conf()").await?;
        Ok(connection.close().await?)
    }

    pub async fn create(&self, name: &str) -> BenchResult<()> {
        let mut connection = self.connect("postgres").await?;
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await?;
        Ok(connection.close().await?)
    }

    /// A connection as superuser.
    async fn connect(&self, name: &str) -> BenchResult<PgConnection> {
        let url = format!("postgres://postgres@localhost:5432/{name}?host={}", self.folder.display());
        Ok(PgConnection::connect_with(&PgConnectOptions::from_str(&url)?).await?)
    }

    /// Does the work of autovacuum, at a time of its own.
    pub async fn settle(&self, name: &str) -> BenchResult<()> {
        let mut connection = self.connect(name).await?;
        connection.execute("vacuum analyze").await?;
        connection.execute("checkpoint").await?;
        Ok(connection.close().await?)
    }

    /// Buffers of tables and their indexes that all ended connections to a database have touched. Catalogs do not count: a new
    /// connection reads much of them. Waits for connections that are about to end, which report then.
    pub async fn buffers(&self, name: &str) -> BenchResult<u64> {
        const OTHERS: &str = "
            select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
        const BUFFERS: &str = "
            select coalesce(sum(
                coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0)
                + coalesce(idx_blks_hit, 0) + coalesce(toast_blks_read, 0) + coalesce(toast_blks_hit, 0)
                + coalesce(tidx_blks_read, 0) + coalesce(tidx_blks_hit, 0)), 0)::bigint
            from pg_statio_user_tables";
        let mut connection = self.connect(name).await?;
        let ended = async {
            while sqlx::query_scalar::<_, i64>(OTHERS).fetch_one(&mut connection).await? > 0 {
                sleep(Duration::from_millis(10)).await;
            }
            BenchResult::Ok(())
        };
        timeout(Duration::from_secs(30), ended).await??;
        let buffers: i64 = sqlx::query_scalar(BUFFERS).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(u64::try_from(buffers)?)
    }
}
