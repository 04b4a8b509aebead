//! A process of the program, in places of its own.

use std::{
    future::Future,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use agent_service::proto::agent_v1::{
    self as pb, agent_service_client::AgentServiceClient, chat_response::Content,
    memory_service_client::MemoryServiceClient,
};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    net::TcpSocket,
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};

/// How long anything may take before a test counts it as hanging.
const PATIENCE: Duration = Duration::from_mins(1);

/// The longest delay that can be configured: an answer with it never ends by itself.
pub const FOR_EVER_MS: &str = "3600000";
/// A grace that outlasts every test.
pub const LONG_GRACE: (&str, &str) = ("SHUTDOWN_GRACE_SECONDS", "3600");

/// Waits for something that has to happen.
pub async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Waits for a state of which nobody tells.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    soon(what, async {
        while !holds().await {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The directories that a server works in. They outlive it, so that it can be started again.
pub struct Home {
    dir: TempDir,
}

impl Home {
    pub fn new() -> Self {
        let home = Self { dir: TempDir::new().unwrap() };
        std::fs::create_dir(home.work()).unwrap();
        home
    }

    /// The home directory of the user.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The current directory, in which a `.env` is looked for.
    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The process id in `postmaster.pid`, which Postgres removes at the end of an orderly shutdown.
    pub fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.data().join("postgres/postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// The names in the data directory, sorted.
    pub fn data_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The program with nothing set but what every user has.
    pub fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-local"));
        command.args(arguments).current_dir(self.work()).kill_on_drop(true).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The program with settings that make it fast and give it places of its own, and then with these.
    pub fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = self.bare(arguments);
        command.env("GRPC_PORT", "0").env("AGENT_DATA_DIR", self.data());
        command.env("DEMO_THINKING_DELAY_MS", "0").env("DEMO_CHUNK_DELAY_MS", "0");
        command.envs(variables.iter().copied());
        command
    }

    /// A server that listens; its database may not be ready yet.
    pub async fn listening(&self, variables: &[(&str, &str)]) -> Server {
        Server::start(self.command(&[], variables)).await
    }

    /// A server that is ready.
    pub async fn serving(&self, variables: &[(&str, &str)]) -> Server {
        let server = self.listening(variables).await;
        server.health().await.becomes(ServingStatus::Serving).await;
        server
    }

    /// Runs the program until it ends by itself.
    pub async fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
        Process::start(self.command(arguments, variables)).ended().await
    }
}

/// The lines that a process has printed so far.
#[derive(Clone)]
pub struct Printed {
    lines: watch::Receiver<Vec<String>>,
}

impl Printed {
    fn by(output: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (printed, lines) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Some(line) = output.next_line().await.unwrap() {
                printed.send_modify(|lines| lines.push(line));
            }
        });
        Self { lines }
    }

    /// The first line with this part, now or later.
    pub async fn line(&self, part: &str) -> String {
        self.lines_with(part, 1).await.remove(0)
    }

    /// The first so many lines with this part, now or later.
    pub async fn lines_with(&self, part: &str, count: usize) -> Vec<String> {
        let with_part = |lines: &Vec<String>| lines.iter().filter(|line| line.contains(part)).count();
        let mut lines = self.lines.clone();
        let seen = soon(part, lines.wait_for(|lines| with_part(lines) >= count)).await.is_ok();
        assert!(seen, "not printed {count} times: {part}\n{}", self.so_far());
        let printed = self.lines.borrow();
        printed.iter().filter(|line| line.contains(part)).take(count).cloned().collect()
    }

    pub fn so_far(&self) -> String {
        self.lines.borrow().join("\n")
    }

    /// Everything, once the process has ended.
    async fn all(&self) -> String {
        let mut lines = self.lines.clone();
        soon("the end of the output", async { while lines.changed().await.is_ok() {} }).await;
        self.so_far()
    }
}

/// A running program; it is killed when it is dropped.
pub struct Process {
    child: Child,
    pub stdout: Printed,
    pub stderr: Printed,
}

/// How a process ended and what it printed.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = Printed::by(child.stdout.take().unwrap());
        let stderr = Printed::by(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid().cast_signed(), signal);
    }

    pub async fn ended(mut self) -> Ended {
        let status = soon("the end of the process", self.child.wait()).await.unwrap();
        let (stdout, stderr) = (self.stdout.all().await, self.stderr.all().await);
        Ended { code: status.code(), signal: status.signal(), stdout, stderr }
    }

    /// Ends it as the loss of power would: it can do nothing about it.
    pub async fn kill(self) {
        self.signal(Signal::KILL);
        assert_eq!(self.ended().await.signal, Some(Signal::KILL.as_raw()));
    }

    /// Ends it in order.
    pub async fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        let ended = self.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    }
}

pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// A running server.
pub struct Server {
    pub process: Process,
    /// The address that the banner names.
    pub url: String,
}

impl Server {
    pub async fn start(command: Command) -> Self {
        let process = Process::start(command);
        let line = process.stdout.line("  address  ").await;
        let url = line.split_whitespace().nth(1).unwrap().to_owned();
        // The banner is printed line by line; a test that looks at it wants it whole.
        process.stdout.line(" recall ").await;
        Self { process, url }
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        soon("a connection", Endpoint::from_shared(self.url.clone()).unwrap().connect()).await.unwrap()
    }

    pub async fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel().await)
    }

    pub async fn memory(&self) -> MemoryServiceClient<Channel> {
        MemoryServiceClient::new(self.channel().await)
    }

    /// Watches the health of the whole server.
    pub async fn health(&self) -> Health {
        let mut client = HealthClient::new(self.channel().await);
        let watching = client.watch(HealthCheckRequest::default());
        Health { reports: soon("health", watching).await.unwrap().into_inner() }
    }

    /// Begins an answer.
    pub async fn chat(&self, request: pb::ChatRequest) -> Answer {
        let mut client = self.agent().await;
        Answer::of(soon("an answer", client.stream_chat(request)).await.unwrap())
    }

    /// Keeps one memory and waits until that is acknowledged.
    pub async fn remember(&self, content: &str) -> String {
        let mut client = self.memory().await;
        let added = soon("a memory", client.add_memories(memories(&[content]))).await.unwrap().into_inner();
        added.ids.concat()
    }

    /// What is kept of [`USER`], sorted.
    pub async fn remembered(&self) -> Vec<String> {
        let request = pb::ListMemoriesRequest { user_id: USER.to_owned(), page_size: 1_000, ..Default::default() };
        let mut client = self.memory().await;
        let listed = soon("a list", client.list_memories(request)).await.unwrap().into_inner();
        let mut contents: Vec<_> = listed.memories.into_iter().map(|memory| memory.content).collect();
        contents.sort();
        contents
    }
}

/// Reports of a server's health.
pub struct Health {
    reports: Streaming<HealthCheckResponse>,
}

impl Health {
    /// Waits until this is reported.
    pub async fn becomes(&mut self, wanted: ServingStatus) {
        while self.next().await.unwrap() != wanted {}
    }

    /// The next report; `None` where the server is gone.
    pub async fn next(&mut self) -> Option<ServingStatus> {
        let report = soon("a report of the health", self.reports.message()).await;
        report.ok().flatten().map(|report| report.status())
    }
}

/// An answer that arrives.
pub struct Answer {
    frames: Streaming<pb::ChatResponse>,
}

impl Answer {
    pub fn of(response: tonic::Response<Streaming<pb::ChatResponse>>) -> Self {
        Self { frames: response.into_inner() }
    }

    /// The frames up to the first one for which `until` holds.
    pub async fn until(&mut self, until: impl Fn(&pb::ChatResponse) -> bool) -> Vec<pb::ChatResponse> {
        let mut frames = Vec::new();
        while !frames.last().is_some_and(&until) {
            let frame = soon("a frame", self.frames.message()).await.unwrap();
            frames.push(frame.unwrap_or_else(|| panic!("the answer ended after {frames:?}")));
        }
        frames
    }

    /// The frames that are left; the call ends OK.
    pub async fn rest(mut self) -> Result<Vec<pb::ChatResponse>, Status> {
        let mut frames = Vec::new();
        while let Some(frame) = soon("a frame", self.frames.message()).await? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

/// The user of all tests, each of which has a server of its own.
pub const USER: &str = "somebody";

pub fn question(message: &str) -> pb::ChatRequest {
    pb::ChatRequest {
        user_id: USER.to_owned(),
        input: Some(pb::chat_request::Input::Message(message.to_owned())),
        ..Default::default()
    }
}

/// A question that is answered without the database.
pub fn question_without_memory(message: &str) -> pb::ChatRequest {
    pb::ChatRequest { use_document_context: Some(false), ..question(message) }
}

pub fn query(text: &str) -> pb::MemoryQuery {
    pb::MemoryQuery { user_id: USER.to_owned(), query_text: text.to_owned(), ..Default::default() }
}

pub fn memories(contents: &[&str]) -> pb::AddMemoriesRequest {
    let memory = |content: &&str| pb::MemoryInput { content: (*content).to_owned(), ..Default::default() };
    pb::AddMemoriesRequest { user_id: USER.to_owned(), memories: contents.iter().map(memory).collect() }
}

pub fn is_delta(frame: &pb::ChatResponse) -> bool {
    matches!(frame.content, Some(Content::Delta(_)))
}

/// The joined deltas.
pub fn typed(frames: &[pb::ChatResponse]) -> String {
    let delta = |frame: &pb::ChatResponse| match &frame.content {
        Some(Content::Delta(delta)) => Some(delta.clone()),
        _ => None,
    };
    frames.iter().filter_map(delta).collect()
}

/// The whole text that the last frame holds.
pub fn full_text(frames: &[pb::ChatResponse]) -> &str {
    match frames.last().map(|frame| &frame.content) {
        Some(Some(Content::FullText(text))) => text,
        last => panic!("the last frame has no text: {last:?}"),
    }
}

/// A port of this machine at which nobody listens. It is kept, so that nobody else gets it meanwhile.
pub struct DeadPort {
    pub socket: TcpSocket,
}

impl DeadPort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self { socket }
    }

    pub fn number(&self) -> u16 {
        self.socket.local_addr().unwrap().port()
    }
}
