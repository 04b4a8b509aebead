//! The program as a child process: its directories, its output, its signals.

use std::{
    ffi::OsStr,
    future::Future,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
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
use tonic_health::pb::health_check_response::ServingStatus;

use crate::server::Server;

const TEST_TIMEOUT: Duration = Duration::from_mins(1);

/// The longest configurable delay, which outlasts every test.
pub const MAX_DELAY_MS: &str = "3600000";

/// A grace period that outlasts every test.
pub const LONG_GRACE_PERIOD: (&str, &str) = ("SHUTDOWN_GRACE_SECONDS", "3600");

pub async fn within_timeout<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(TEST_TIMEOUT, event).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Polls for a state without an event to await.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    within_timeout(what, async {
        while !holds().await {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let sandbox = Self { dir: TempDir::new().unwrap() };
        std::fs::create_dir(sandbox.work()).unwrap();
        sandbox
    }

    pub async fn with_server(variables: &[(&str, &str)]) -> (Self, Server) {
        let sandbox = Self::new();
        let server = sandbox.start_serving(variables).await;
        (sandbox, server)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The current directory of the process, with its `.env`.
    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The process id in `postmaster.pid`, which Postgres removes at the end of a graceful shutdown.
    pub fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.data().join("postgres/postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    #[cfg(target_os = "linux")]
    pub fn postmaster_children(&self) -> Vec<i32> {
        let postmaster = self.postmaster().unwrap();
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    #[cfg(target_os = "linux")]
    pub fn checkpointer(&self) -> i32 {
        let writes_checkpoints = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("checkpointer"))
        };
        self.postmaster_children().into_iter().find(writes_checkpoints).unwrap()
    }

    pub fn data_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn bare(&self, arguments: &[&str]) -> Command {
        self.program(env!("CARGO_BIN_EXE_agent-local").as_ref(), arguments)
    }

    pub fn program(&self, program: &OsStr, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.work()).kill_on_drop(true).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The program with its own directories and without delays; `variables` take precedence.
    pub fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = self.bare(arguments);
        command.env("GRPC_PORT", "0").env("AGENT_DATA_DIR", self.data());
        command.env("DEMO_THINKING_DELAY_MS", "0").env("DEMO_CHUNK_DELAY_MS", "0");
        command.envs(variables.iter().copied());
        command
    }

    /// As a shell starts it that has this umask.
    pub fn command_with_umask(&self, umask: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let inner = self.command(arguments, variables);
        let inner = inner.as_std();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"umask "$0"; exec "$@""#, umask]).arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(self.work()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub async fn start_listening(&self, variables: &[(&str, &str)]) -> Server {
        Server::start(self.command(&[], variables)).await
    }

    pub async fn start_serving(&self, variables: &[(&str, &str)]) -> Server {
        let server = self.start_listening(variables).await;
        server.health().await.wait_for_status(ServingStatus::Serving).await;
        server
    }

    pub async fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> ProcessOutput {
        Process::start(self.command(arguments, variables)).wait().await
    }
}

#[derive(Clone)]
pub struct OutputLines {
    lines: watch::Receiver<Vec<String>>,
}

impl OutputLines {
    fn collect(output: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (printed, lines) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Some(line) = output.next_line().await.unwrap() {
                printed.send_modify(|lines| lines.push(line));
            }
        });
        Self { lines }
    }

    pub async fn line(&self, part: &str) -> String {
        self.lines_with(part, 1).await.remove(0)
    }

    pub async fn lines_with(&self, part: &str, count: usize) -> Vec<String> {
        let with_part = |lines: &Vec<String>| lines.iter().filter(|line| line.contains(part)).count();
        let mut lines = self.lines.clone();
        let seen = within_timeout(part, lines.wait_for(|lines| with_part(lines) >= count)).await.is_ok();
        assert!(seen, "not printed {count} times: {part}\n{}", self.so_far());
        let printed = self.lines.borrow();
        printed.iter().filter(|line| line.contains(part)).take(count).cloned().collect()
    }

    pub fn so_far(&self) -> String {
        self.lines.borrow().join("\n")
    }

    async fn all(&self) -> String {
        let mut lines = self.lines.clone();
        within_timeout("end of output", async { while lines.changed().await.is_ok() {} }).await;
        self.so_far()
    }
}

pub struct Process {
    child: Child,
    pub stdout: OutputLines,
    pub stderr: OutputLines,
}

#[derive(Debug)]
pub struct ProcessOutput {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = OutputLines::collect(child.stdout.take().unwrap());
        let stderr = OutputLines::collect(child.stderr.take().unwrap());
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

    pub async fn wait(mut self) -> ProcessOutput {
        let status = within_timeout("end of process", self.child.wait()).await.unwrap();
        let (stdout, stderr) = (self.stdout.all().await, self.stderr.all().await);
        ProcessOutput { code: status.code(), signal: status.signal(), stdout, stderr }
    }

    /// SIGKILL: no cleanup, as at a power failure.
    pub async fn kill(self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait().await.signal, Some(Signal::KILL.as_raw()));
    }

    /// SIGTERM: graceful shutdown.
    pub async fn stop(self) -> ProcessOutput {
        self.signal(Signal::TERM);
        self.wait_for_success().await
    }

    pub async fn wait_for_success(self) -> ProcessOutput {
        let output = self.wait().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        output
    }
}

pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// A bound port without a listener: connections are refused, and no other process can take it.
pub struct ClosedPort {
    pub socket: TcpSocket,
}

impl ClosedPort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self { socket }
    }

    pub fn number(&self) -> u16 {
        self.socket.local_addr().unwrap().port()
    }
}
