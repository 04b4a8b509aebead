//! A proxy in front of Postgres that counts what passes: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::BenchResult;

#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Executed, including `begin` and `commit`.
    pub statements: u64,
    /// Waits of the client for an answer; statements that are sent together share one.
    pub round_trips: u64,
    /// Explicit ones, and statements outside of one.
    pub transactions: u64,
}

/// Dropping it closes all connections.
pub struct CountingProxy {
    pub address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
    _closed: DropGuard,
}

impl CountingProxy {
    pub async fn start(socket: PathBuf) -> BenchResult<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, counts, closing) = (listener.local_addr()?, Arc::default(), CancellationToken::new());
        let (shared, closed) = (Arc::clone(&counts), closing.clone());
        tokio::spawn(closed.clone().run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&socket).await else { break };
                let (client_reader, client_writer) = client.into_split();
                let (server_reader, server_writer) = server.into_split();
                let connection = Arc::new(Mutex::new(Connection { counts: Arc::clone(&shared), ..Default::default() }));
                let (requests, replies) = (Arc::clone(&connection), connection);
                let forward = relay(client_reader, server_writer, Splitter::requests(), move |tag, _| {
                    lock(&requests).request(tag);
                });
                let backward = relay(server_reader, client_writer, Splitter::default(), move |tag, body| {
                    lock(&replies).reply(tag, body);
                });
                let both = async { tokio::join!(forward, backward) };
                tokio::spawn(closing.clone().run_until_cancelled_owned(both));
            }
        }));
        Ok(Self { address, counts, _closed: closed.drop_guard() })
    }

    pub fn counts(&self) -> Counts {
        *lock(&self.counts)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message counts before it is passed on, so that the client cannot react to it first.
async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut splitter: Splitter,
    mut count: impl FnMut(u8, &[u8]),
) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        splitter.push(&piece[..length], &mut count);
        if to.write_all(&piece[..length]).await.is_err() {
            break;
        }
    }
    // The other direction ends as well.
    let _ = to.shutdown().await;
}

/// Finds the messages in the pieces of a stream.
#[derive(Default)]
struct Splitter {
    bytes: Vec<u8>,
    /// A client's first message has no tag.
    is_startup: bool,
}

impl Splitter {
    fn requests() -> Self {
        Self { is_startup: true, ..Self::default() }
    }

    fn push(&mut self, piece: &[u8], message: &mut impl FnMut(u8, &[u8])) {
        self.bytes.extend_from_slice(piece);
        loop {
            let head = usize::from(!self.is_startup);
            let Some(length) = self.bytes.get(head..head + 4) else { return };
            let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            let Some(body) = self.bytes.get(head + 4..head + length) else { return };
            if !self.is_startup {
                message(self.bytes[0], body);
            }
            self.is_startup = false;
            self.bytes.drain(..head + length);
        }
    }
}

#[derive(Default)]
struct Connection {
    counts: Arc<Mutex<Counts>>,
    /// Requests for an answer that has not ended.
    unanswered: u32,
    /// Messages without such a request follow the first one.
    has_begun: bool,
    /// Statements were executed since the last end of a transaction.
    is_used: bool,
}

impl Connection {
    fn request(&mut self, tag: u8) {
        let mut counts = lock(&self.counts);
        match tag {
            // Execute, Query.
            b'E' | b'Q' => {
                counts.statements += 1;
                self.is_used = true;
            }
            // Parse, Bind, Describe, Close, Flush, Sync.
            b'P' | b'B' | b'D' | b'C' | b'H' | b'S' => {}
            _ => return,
        }
        if !self.has_begun && self.unanswered == 0 {
            counts.round_trips += 1;
        }
        // Sync and Query ask for the answer.
        self.has_begun = !matches!(tag, b'S' | b'Q');
        self.unanswered += u32::from(!self.has_begun);
    }

    fn reply(&mut self, tag: u8, body: &[u8]) {
        // ReadyForQuery. The first one follows the startup.
        if tag != b'Z' {
            return;
        }
        self.unanswered = self.unanswered.saturating_sub(1);
        if body == b"I" && self.is_used {
            lock(&self.counts).transactions += 1;
            self.is_used = false;
        }
    }
}
