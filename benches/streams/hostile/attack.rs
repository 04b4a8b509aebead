//! The hostile client: one user, who never backs off for longer than a moment.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agent_service::proto::agent_v1::{
    self as pb, agent_service_client::AgentServiceClient, memory_service_client::MemoryServiceClient,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet, time::sleep};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::common::{BenchResult, request};

const USER: &str = "hostile";
/// After a refusal. Without it the load itself would take the cores of the server.
const PAUSE: Duration = Duration::from_millis(20);
/// Streams that each of the hoarders holds without reading.
const HOARD: usize = 64;
const FLOODERS: usize = 32;
const HALF_OPEN: usize = 256;
/// 16 MB of words that no other memory has.
const HUGE_MEMORIES: usize = 250;
const HUGE_BYTES: usize = 64_000;
/// Smaller than an answer, so that a stream that is not read holds its sender back.
const WINDOW: u32 = 4 * 1024;

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
}

impl Counts {
    async fn add<T>(&self, result: Result<T, Status>) -> Option<T> {
        let (counter, value) = match result {
            Ok(value) => (&self.done, Some(value)),
            // A failure that the client made itself has a source.
            Err(status) if std::error::Error::source(&status).is_some() => (&self.broken, None),
            Err(_) => (&self.refused, None),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if value.is_none() {
            sleep(PAUSE).await;
        }
        value
    }
}

pub struct Attack {
    running: JoinSet<()>,
    counts: Vec<(&'static str, Arc<Counts>)>,
}

impl Attack {
    pub async fn start(address: &str) -> BenchResult<Self> {
        let mut attack = Self { running: JoinSet::new(), counts: Vec::new() };
        let endpoint = Endpoint::from_shared(address.to_owned())?
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 1024);

        let counts = attack.counter("unread answers");
        attack.running.spawn(hoard_answers(endpoint.connect().await?, counts, ""));
        let counts = attack.counter("repeats of one answer, unread");
        attack.running.spawn(hoard_answers(endpoint.connect().await?, counts, "the-same-request"));
        let counts = attack.counter("AddMemories of 16 MB");
        for _ in 0..2 {
            attack.running.spawn(add_huge(endpoint.connect().await?, counts.clone()));
        }
        let counts = attack.counter("RetrieveMemory");
        let channel = endpoint.connect().await?;
        for _ in 0..FLOODERS {
            attack.running.spawn(flood(channel.clone(), counts.clone()));
        }
        let counts = attack.counter("exports, unread");
        attack.running.spawn(hoard_exports(endpoint.connect().await?, counts));
        let counts = attack.counter("half-open connections");
        let host = address.strip_prefix("http://").ok_or("the address is no URL")?.to_owned();
        attack.running.spawn(half_open(host, counts));
        Ok(attack)
    }

    fn counter(&mut self, name: &'static str) -> Arc<Counts> {
        let counts = Arc::<Counts>::default();
        self.counts.push((name, counts.clone()));
        counts
    }

    pub async fn stop(&mut self) {
        self.running.shutdown().await;
    }

    /// Done, refused and broken.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, [u64; 3])> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.counts
            .iter()
            .map(move |(name, counts)| (*name, [load(&counts.done), load(&counts.refused), load(&counts.broken)]))
    }
}

struct Hoard<T>(VecDeque<Streaming<T>>);

impl<T> Hoard<T> {
    fn keep(&mut self, stream: Streaming<T>) {
        if self.0.len() == HOARD {
            self.0.pop_front();
        }
        self.0.push_back(stream);
    }
}

/// With an empty request id each answer is a new one.
async fn hoard_answers(channel: Channel, counts: Arc<Counts>, request_id: &'static str) {
    let mut agent = AgentServiceClient::new(channel);
    let mut hoard = Hoard(VecDeque::new());
    loop {
        let session_id = request_id.to_owned();
        let request =
            pb::ChatRequest { user_id: USER.to_owned(), request_id: request_id.to_owned(), session_id, ..request() };
        if let Some(answer) = counts.add(agent.stream_chat(request).await).await {
            hoard.keep(answer.into_inner());
        }
    }
}

async fn hoard_exports(channel: Channel, counts: Arc<Counts>) {
    let mut memory = MemoryServiceClient::new(channel);
    let mut hoard = Hoard(VecDeque::new());
    loop {
        let request = pb::ExportMemoriesRequest { user_id: USER.to_owned() };
        if let Some(records) = counts.add(memory.export_memories(request).await).await {
            hoard.keep(records.into_inner());
        }
    }
}

async fn add_huge(channel: Channel, counts: Arc<Counts>) {
    let mut memory = MemoryServiceClient::new(channel);
    loop {
        let memories =
            (0..HUGE_MEMORIES).map(|_| pb::MemoryInput { content: random_words(HUGE_BYTES), ..Default::default() });
        let request = pb::AddMemoriesRequest { user_id: USER.to_owned(), memories: memories.collect() };
        counts.add(memory.add_memories(request).await).await;
    }
}

fn random_words(bytes: usize) -> String {
    let mut words = String::with_capacity(bytes);
    while words.len() < bytes - 8 {
        words.extend((0..7).map(|_| fastrand::lowercase()));
        words.push(' ');
    }
    words
}

async fn flood(channel: Channel, counts: Arc<Counts>) {
    let mut agent = AgentServiceClient::new(channel);
    loop {
        let query_text = random_words(200);
        let query = pb::MemoryQuery { user_id: USER.to_owned(), query_text, limit: 100, ..Default::default() };
        counts.add(agent.retrieve_memory(query).await).await;
    }
}

/// Connections that begin HTTP/2, or nothing, and then stay silent.
async fn half_open(host: String, counts: Arc<Counts>) {
    let mut open = VecDeque::new();
    loop {
        match TcpStream::connect(&host).await {
            Ok(mut connection) => {
                if fastrand::bool() {
                    // The server may have closed it already.
                    let _ = connection.write_all(b"PRI * HTTP/2.0\r\n").await;
                }
                counts.done.fetch_add(1, Ordering::Relaxed);
                open.push_back(connection);
            }
            Err(_) => {
                counts.broken.fetch_add(1, Ordering::Relaxed);
            }
        }
        if open.len() > HALF_OPEN {
            open.pop_front();
        }
        sleep(PAUSE).await;
    }
}
