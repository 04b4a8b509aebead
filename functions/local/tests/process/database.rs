//! A Postgres elsewhere, which tests can take away and give back.

use std::{io, path::PathBuf, str::FromStr as _};

use agent_service::postgres::embedded;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

use crate::server::{DeadPort, Home, Server, soon};

/// A database of its own at `TEST_DATABASE_URL` or, where that is not set, inside another server.
pub struct Elsewhere {
    address: Address,
    options: PgConnectOptions,
    /// The database to drop in the end, with a connection that can do so.
    made: Option<(String, PgConnection)>,
    _owner: Option<(Server, Home)>,
}

#[derive(Clone)]
enum Address {
    Socket(PathBuf),
    Tcp(String, u16),
}

impl Elsewhere {
    pub async fn new() -> Self {
        match std::env::var("TEST_DATABASE_URL") {
            Ok(url) => Self::at(&url).await,
            Err(_) => Self::embedded().await,
        }
    }

    async fn at(url: &str) -> Self {
        let options = PgConnectOptions::from_str(url).unwrap();
        let name = format!("process_{}_{:x}", std::process::id(), rand());
        let mut connection = soon("the test database", PgConnection::connect_with(&options)).await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let address = match options.get_socket() {
            Some(directory) => Address::Socket(directory.join(format!(".s.PGSQL.{}", options.get_port()))),
            None => Address::Tcp(options.get_host().to_owned(), options.get_port()),
        };
        Self { address, options: options.database(&name), made: Some((name, connection)), _owner: None }
    }

    async fn embedded() -> Self {
        let home = Home::new();
        // It is there for its Postgres alone.
        let server = home.serving(&[("LEARNING", "off")]).await;
        let directory = embedded::socket_path(&home.data()).unwrap();
        Self {
            address: Address::Socket(directory.join(format!(".s.PGSQL.{}", embedded::PORT))),
            options: embedded::connect_options(&home.data()).unwrap(),
            made: None,
            _owner: Some((server, home)),
        }
    }

    /// The URL of the database behind a gate.
    pub fn url(&self, gate: &Gate) -> String {
        let mut url = self.options.to_url_lossy();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(gate.port)).unwrap();
        url.to_string()
    }

    /// Lets connections through a gate.
    pub fn behind(&self, gate: &mut Gate) {
        gate.open(self.address.clone());
    }

    /// Removes what was made elsewhere.
    pub async fn end(mut self) {
        if let Some((name, mut connection)) = self.made.take() {
            connection.execute(sqlx::AssertSqlSafe(format!("drop database {name} with (force)"))).await.unwrap();
        }
    }
}

fn rand() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

/// The only way to a database. At first nobody listens at it; later it lets connections through or cuts them.
pub struct Gate {
    port: u16,
    unused: Option<DeadPort>,
    is_open: watch::Sender<bool>,
}

impl Gate {
    pub fn new() -> Self {
        let unused = DeadPort::new();
        Self { port: unused.number(), unused: Some(unused), is_open: watch::Sender::new(false) }
    }

    /// The URL of a database behind it that does not exist.
    pub fn dead_url(&self) -> String {
        format!("postgres://127.0.0.1:{}/absent", self.port)
    }

    fn open(&mut self, address: Address) {
        self.is_open.send_replace(true);
        if let Some(unused) = self.unused.take() {
            let listener = unused.socket.listen(64).unwrap();
            tokio::spawn(keep_gate(listener, address, self.is_open.subscribe()));
        }
    }

    /// Cuts all connections, and all that are made while it is closed.
    pub fn close(&self) {
        self.is_open.send_replace(false);
    }
}

async fn keep_gate(listener: TcpListener, address: Address, is_open: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        let (address, mut is_open) = (address.clone(), is_open.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = is_open.wait_for(|open| !open) => {}
                // A connection that ends is the business of its two ends.
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
