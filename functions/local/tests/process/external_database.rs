//! An external Postgres behind a proxy that tests can close and open.

use std::{io, path::PathBuf, str::FromStr as _};

use agent_service::postgres::embedded;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

use crate::{
    process::{ClosedPort, Sandbox, within_timeout},
    server::Server,
};

impl Sandbox {
    pub async fn connect_as_owner(&self) -> PgConnection {
        let options = embedded::connect_options(&self.data()).unwrap();
        within_timeout("connecting as owner", PgConnection::connect_with(&options)).await.unwrap()
    }
}

/// A new database at `TEST_DATABASE_URL`, or else in the embedded Postgres of another server.
pub struct ExternalDatabase {
    address: Address,
    options: PgConnectOptions,
    made: Option<(String, PgConnection)>,
    _owner: Option<(Server, Sandbox)>,
}

#[derive(Clone)]
enum Address {
    Socket(PathBuf),
    Tcp(String, u16),
}

impl ExternalDatabase {
    pub async fn new() -> Self {
        match std::env::var("TEST_DATABASE_URL") {
            Ok(url) => Self::at(&url).await,
            Err(_) => Self::embedded().await,
        }
    }

    async fn at(url: &str) -> Self {
        let options = PgConnectOptions::from_str(url).unwrap();
        let name = format!("process_{}_{:x}", std::process::id(), rand());
        let mut connection = within_timeout("the test database", PgConnection::connect_with(&options)).await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let address = match options.get_socket() {
            Some(directory) => Address::Socket(directory.join(format!(".s.PGSQL.{}", options.get_port()))),
            None => Address::Tcp(options.get_host().to_owned(), options.get_port()),
        };
        Self { address, options: options.database(&name), made: Some((name, connection)), _owner: None }
    }

    async fn embedded() -> Self {
        let sandbox = Sandbox::new();
        // Only its Postgres is used.
        let server = sandbox.start_serving(&[("LEARNING", "off")]).await;
        let directory = embedded::socket_path(&sandbox.data()).unwrap();
        Self {
            address: Address::Socket(directory.join(format!(".s.PGSQL.{}", embedded::PORT))),
            options: embedded::connect_options(&sandbox.data()).unwrap(),
            made: None,
            _owner: Some((server, sandbox)),
        }
    }

    pub fn url(&self, proxy: &DatabaseProxy) -> String {
        let mut url = self.options.to_url_lossy();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(proxy.port)).unwrap();
        url.to_string()
    }

    pub fn connect_through(&self, proxy: &mut DatabaseProxy) {
        proxy.open(self.address.clone());
    }

    pub async fn end(mut self) {
        if let Some((name, mut connection)) = self.made.take() {
            connection.execute(sqlx::AssertSqlSafe(format!("drop database {name} with (force)"))).await.unwrap();
        }
    }
}

fn rand() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

/// A TCP proxy of a database. Connections are refused until it is first opened, and cut while it is closed.
pub struct DatabaseProxy {
    port: u16,
    unused: Option<ClosedPort>,
    is_open: watch::Sender<bool>,
}

impl DatabaseProxy {
    pub fn new() -> Self {
        let unused = ClosedPort::new();
        Self { port: unused.number(), unused: Some(unused), is_open: watch::Sender::new(false) }
    }

    pub fn unreachable_url(&self) -> String {
        format!("postgres://127.0.0.1:{}/absent", self.port)
    }

    fn open(&mut self, address: Address) {
        self.is_open.send_replace(true);
        if let Some(unused) = self.unused.take() {
            let listener = unused.socket.listen(64).unwrap();
            tokio::spawn(run_proxy(listener, address, self.is_open.subscribe()));
        }
    }

    /// Cuts all connections, and new ones until it is opened again.
    pub fn close(&self) {
        self.is_open.send_replace(false);
    }
}

async fn run_proxy(listener: TcpListener, address: Address, is_open: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        let (address, mut is_open) = (address.clone(), is_open.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = is_open.wait_for(|open| !open) => {}
                _ = forward(client, address) => {}
            }
        });
    }
}

async fn forward(client: TcpStream, address: Address) -> io::Result<()> {
    match address {
        Address::Socket(path) => join(client, UnixStream::connect(path).await?).await,
        Address::Tcp(host, port) => join(client, TcpStream::connect((host, port)).await?).await,
    }
}

async fn join(mut client: TcpStream, mut server: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}
