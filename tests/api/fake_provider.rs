//! An OpenAI-compatible server that says, byte for byte, what a test tells it to.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc, oneshot},
};

/// What to do on a connection once the request has been read.
#[derive(Debug, Clone)]
pub enum Step {
    /// Send these bytes as they are.
    Send(Vec<u8>),
    /// Send these bytes so many times, or until the client has gone.
    Repeat(Vec<u8>, usize),
    /// Send these bytes one by one with a pause between them, again and again until the client has gone.
    Drip(Vec<u8>, Duration),
    /// Break the connection: the client is told of an error, not of an end.
    Reset,
    /// Wait until the client has gone, then tell it.
    AwaitGone,
    /// Wait until the test says so.
    AwaitGate(Gate),
    /// Keep the connection for the next request.
    AwaitNext,
}

/// Something that a test opens once.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<oneshot::Receiver<()>>>);

impl Gate {
    pub fn new(opened: oneshot::Receiver<()>) -> Self {
        Self(Arc::new(Mutex::new(opened)))
    }
}

/// A request as it arrived.
#[derive(Debug)]
pub struct Received {
    pub head: String,
    pub body: Value,
}

/// What to answer.
#[derive(Default)]
struct Scripts {
    /// To the next requests, one each.
    next: VecDeque<Vec<Step>>,
    /// To all that follow; without it they find no answer.
    always: Option<Vec<Step>>,
}

pub struct FakeProvider {
    pub base_url: String,
    pub requests: mpsc::UnboundedReceiver<Received>,
    /// A message for each [`Step::AwaitGone`] that came true.
    pub gone: mpsc::UnboundedReceiver<()>,
    scripts: Arc<Mutex<Scripts>>,
    connections: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl FakeProvider {
    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let scripts = Arc::<Mutex<Scripts>>::default();
        let (received, requests) = mpsc::unbounded_channel();
        let (left, gone) = mpsc::unbounded_channel();
        let queue = scripts.clone();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(socket, queue.clone(), received.clone(), left.clone()));
            }
        });
        Self { base_url, requests, gone, scripts, connections, accepting }
    }

    /// Tells what to answer to the next request that has no script yet.
    pub async fn script(&self, steps: Vec<Step>) {
        self.scripts.lock().await.next.push_back(steps);
    }

    /// Tells what to answer to all requests that have no script.
    pub async fn always(&self, steps: Vec<Step>) {
        self.scripts.lock().await.always = Some(steps);
    }

    /// The requests that have arrived, in order.
    pub fn received(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    /// Answers the next request with a complete stream of these events.
    pub async fn stream(&self, events: &[&str]) {
        self.script(stream(events)).await;
    }

    /// Answers the next request with an error.
    pub async fn refuse(&self, status: u16, body: &str) {
        self.script(refusal(status, "", body)).await;
    }

    /// The variables that point a server at this provider, which then asks once and not again.
    pub fn variables(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("LLM_MAX_ATTEMPTS", "1"),
            ("LLM_PROVIDER", "compatible"),
            ("LLM_API_BASE_URL", &self.base_url),
            ("LLM_API_KEY", "test-key"),
            ("LLM_MODEL_NAME", "test-model"),
        ]
    }

    /// The variables that make it the embedder of a server, with vectors of two numbers.
    pub fn embedding_variables(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("LLM_MAX_ATTEMPTS", "1"),
            ("EMBEDDING_PROVIDER", "openai"),
            ("EMBEDDING_API_BASE_URL", &self.base_url),
            ("EMBEDDING_API_KEY", "embedding-key"),
            ("EMBEDDING_MODEL", "tiny"),
            ("EMBEDDING_DIM", "2"),
        ]
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The head of an answer whose body ends with the connection.
pub fn head(status: u16, content_type: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Scripted\r\ncontent-type: {content_type}\r\nconnection: close\r\n\r\n").into_bytes()
}

/// A complete stream of events.
pub fn stream(events: &[&str]) -> Vec<Step> {
    let body = events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>();
    vec![Step::Send(head(200, "text/event-stream")), Step::Send(body.into_bytes())]
}

/// An answer with an error status, and with more headers, each with its line end.
pub fn refusal(status: u16, headers: &str, body: &str) -> Vec<Step> {
    let type_of = "content-type: application/json\r\nconnection: close";
    vec![Step::Send(format!("HTTP/1.1 {status} Scripted\r\n{type_of}\r\n{headers}\r\n{body}").into_bytes())]
}

/// A chunk with a piece of text.
pub fn delta(text: &str) -> String {
    serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}).to_string()
}

/// The chunk that ends the text.
pub fn finish(reason: &str) -> String {
    serde_json::json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}).to_string()
}

/// The chunk with the usage, which comes last.
pub fn usage(prompt: u32, completion: u32) -> String {
    let total = prompt + completion;
    let usage = serde_json::json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total});
    serde_json::json!({"choices": [], "usage": usage}).to_string()
}

async fn answer(
    mut socket: TcpStream,
    scripts: Arc<Mutex<Scripts>>,
    received: mpsc::UnboundedSender<Received>,
    left: mpsc::UnboundedSender<()>,
) {
    'requests: while let Some(request) = read_request(&mut socket).await {
        // The test may have ended.
        if received.send(request).is_err() {
            return;
        }
        let steps = {
            let mut scripts = scripts.lock().await;
            scripts.next.pop_front().or_else(|| scripts.always.clone())
        };
        let Some(steps) = steps else { return };
        for step in steps {
            match step {
                Step::Repeat(bytes, times) => {
                    for _ in 0..times {
                        if socket.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                }
                Step::Drip(bytes, pause) => {
                    for byte in bytes.iter().cycle() {
                        if socket.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(pause).await;
                    }
                }
                Step::Reset => {
                    socket.set_zero_linger().unwrap();
                    return;
                }
                // A client that left early is what some tests are about.
                Step::Send(bytes) => drop(socket.write_all(&bytes).await),
                Step::AwaitGone => {
                    let mut byte = [0];
                    // Nothing more is sent by a client, so that whatever comes is its end.
                    let _ = socket.read(&mut byte).await;
                    let _ = left.send(());
                }
                Step::AwaitGate(gate) => drop((&mut *gate.0.lock().await).await),
                Step::AwaitNext => continue 'requests,
            }
        }
        return;
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = socket.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or(Value::Null);
            return Some(Received { head, body });
        }
    }
}
