//! An OpenAI-compatible server that sends scripted bytes. Every crate with tests that need a provider includes this file.

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

#[derive(Debug, Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Sends these bytes a number of times, or until the client disconnects.
    Repeat(Vec<u8>, usize),
    /// Sends these bytes one by one with a pause after each, in a loop until the client disconnects.
    Drip(Vec<u8>, Duration),
    /// Resets the connection (RST): the client sees an error, not an end of stream.
    Reset,
    /// Waits until the client disconnects, then reports it in [`FakeProvider::disconnects`].
    AwaitDisconnect,
    /// Waits until the test releases the latch.
    AwaitLatch(Latch),
    /// Keeps the connection open for the next request.
    KeepAlive,
}

#[derive(Debug, Clone)]
pub struct Latch(Arc<Mutex<oneshot::Receiver<()>>>);

impl Latch {
    pub fn new(released: oneshot::Receiver<()>) -> Self {
        Self(Arc::new(Mutex::new(released)))
    }
}

#[derive(Debug)]
pub struct ReceivedRequest {
    pub head: String,
    pub body: Value,
}

#[derive(Default)]
struct ScriptQueue {
    /// One for each of the next requests.
    next: VecDeque<Vec<Step>>,
    /// For all further requests; without it their connection closes.
    fallback: Option<Vec<Step>>,
}

pub struct FakeProvider {
    pub base_url: String,
    pub requests: mpsc::UnboundedReceiver<ReceivedRequest>,
    pub disconnects: mpsc::UnboundedReceiver<()>,
    scripts: Arc<Mutex<ScriptQueue>>,
    connections: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl FakeProvider {
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let scripts = Arc::<Mutex<ScriptQueue>>::default();
        let (received, requests) = mpsc::unbounded_channel();
        let (disconnected, disconnects) = mpsc::unbounded_channel();
        let queue = scripts.clone();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(socket, queue.clone(), received.clone(), disconnected.clone()));
            }
        });
        Self { base_url, requests, disconnects, scripts, connections, accepting }
    }

    pub async fn script(&self, steps: Vec<Step>) {
        self.scripts.lock().await.next.push_back(steps);
    }

    /// Scripts the response to all requests that have none of their own.
    pub async fn script_all(&self, steps: Vec<Step>) {
        self.scripts.lock().await.fallback = Some(steps);
    }

    /// The requests that arrived since the last call, in order.
    pub fn take_requests(&mut self) -> Vec<ReceivedRequest> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    pub async fn stream(&self, events: &[&str]) {
        self.script(stream(events)).await;
    }

    pub async fn respond(&self, status: u16, body: &str) {
        self.script(http_response(status, "", body)).await;
    }

    /// Variables of a server with this provider and without retries.
    pub fn variables(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("LLM_MAX_ATTEMPTS", "1"),
            ("LLM_PROVIDER", "compatible"),
            ("LLM_API_BASE_URL", &self.base_url),
            ("LLM_API_KEY", "test-key"),
            ("LLM_MODEL_NAME", "test-model"),
        ]
    }

    /// Variables of a server with this embedder and without retries; vectors have two dimensions.
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

/// A response head; the body ends with the connection.
pub fn head(status: u16, content_type: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Scripted\r\ncontent-type: {content_type}\r\nconnection: close\r\n\r\n").into_bytes()
}

pub fn stream_head() -> Step {
    Step::Send(head(200, "text/event-stream"))
}

pub fn events(events: &[&str]) -> Step {
    Step::Send(events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>().into_bytes())
}

/// A stream of events that ends with its connection.
pub fn stream(contents: &[&str]) -> Vec<Step> {
    vec![stream_head(), events(contents)]
}

/// A recorded stream of `tests/golden/streams`.
pub fn golden_stream(file: &str) -> Vec<Step> {
    let path = format!("{}/tests/golden/streams/{file}.sse", env!("CARGO_MANIFEST_DIR"));
    vec![Step::Send(head(200, "text/event-stream; charset=utf-8")), Step::Send(std::fs::read(path).unwrap())]
}

/// A stream that starts with a delta; the connection closes unless more steps follow.
pub fn partial_answer(text: &str) -> Vec<Step> {
    stream(&[&delta(text)])
}

/// A JSON response; each of the additional `headers` ends with CRLF.
pub fn http_response(status: u16, headers: &str, body: &str) -> Vec<Step> {
    let fixed = "content-type: application/json\r\nconnection: close";
    vec![Step::Send(format!("HTTP/1.1 {status} Scripted\r\n{fixed}\r\n{headers}\r\n{body}").into_bytes())]
}

pub fn delta(text: &str) -> String {
    serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}).to_string()
}

pub fn finish(reason: &str) -> String {
    serde_json::json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}).to_string()
}

/// The chunk with the usage, the last of a stream.
pub fn usage(prompt: u32, completion: u32) -> String {
    let total = prompt + completion;
    let usage = serde_json::json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total});
    serde_json::json!({"choices": [], "usage": usage}).to_string()
}

async fn answer(
    mut socket: TcpStream,
    scripts: Arc<Mutex<ScriptQueue>>,
    received: mpsc::UnboundedSender<ReceivedRequest>,
    disconnected: mpsc::UnboundedSender<()>,
) {
    'requests: while let Some(request) = Box::pin(read_request(&mut socket)).await {
        if received.send(request).is_err() {
            return;
        }
        let steps = {
            let mut scripts = scripts.lock().await;
            scripts.next.pop_front().or_else(|| scripts.fallback.clone())
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
                // Some tests disconnect early.
                Step::Send(bytes) => drop(socket.write_all(&bytes).await),
                Step::AwaitDisconnect => {
                    let mut byte = [0];
                    // A client sends nothing after its request, so a read returns at its disconnect.
                    let _ = socket.read(&mut byte).await;
                    let _ = disconnected.send(());
                }
                Step::AwaitLatch(gate) => drop((&mut *gate.0.lock().await).await),
                Step::KeepAlive => continue 'requests,
            }
        }
        return;
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<ReceivedRequest> {
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
            return Some(ReceivedRequest { head, body });
        }
    }
}
