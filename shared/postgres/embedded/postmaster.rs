//! The process: starting it so that it cannot outlive its owner, knowing when it is ready, and ending it.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tracing::{error, warn};

use super::{EmbeddedError, PORT};

/// After a crash, up to 1 GB of log has to be replayed first.
const READY_WITHIN: Duration = Duration::from_mins(2);

/// How often to look whether Postgres is ready.
const POLL: Duration = Duration::from_millis(3);

/// The log starts anew at this size, in bytes.
const LOG_LIMIT: u64 = 1 << 20;

/// How to end a Postgres: ask for a fast shutdown, which writes a checkpoint and so is as slow as the disk; then for an immediate
/// one, which costs a replay of the log at the next start and no data; and if even that is not heard, kill it. Postgres itself
/// kills those of its processes that do not hear of an immediate shutdown after 5 seconds: sooner, it must not be killed before
/// them, or it leaves them, and `postmaster.pid`, behind.
const WAYS_TO_END: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(20)),
    (Signal::QUIT, Duration::from_secs(8)),
    (Signal::KILL, Duration::from_secs(2)),
];

/// A running Postgres; dropping it stops it.
#[derive(Debug)]
pub(super) struct Postmaster {
    pid: Pid,
    life: Arc<Life>,
}

/// What the owner and the thread that keeps the process both know.
#[derive(Debug, Default)]
struct Life {
    state: Mutex<State>,
    /// Notified when `State::exit` is set.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// From ready until the owner asks for the end: an end in between is a surprise, which nobody else reports.
    in_service: bool,
    /// The exit status, in words. While it is `None`, the process id is surely still that of our process.
    exit: Option<String>,
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Both fields are always consistent, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the process, at most this long, and returns how it ended.
    fn exit_within(&self, patience: Duration) -> Option<String> {
        self.ended
            .wait_timeout_while(self.lock(), patience, |state| state.exit.is_none())
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .exit
            .clone()
    }
}

impl Postmaster {
    /// Starts Postgres on the cluster and returns when it accepts connections.
    pub(super) fn start(runtime: &Path, cluster: &Path, socket_dir: &Path, log: &Path) -> Result<Self, EmbeddedError> {
        let program = runtime.join("bin/postgres");
        // If this process dies, Postgres is asked for a fast shutdown: it takes a moment, and the next start needs no replay.
        let mut postgres = command(&program, Signal::INT);
        postgres.arg("-D").arg(cluster).arg("-k").arg(socket_dir).args(["-p", &PORT.to_string()]);
        for setting in SETTINGS {
            postgres.args(["-c", setting]);
        }
        let log_file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(log)
            .map_err(EmbeddedError::io("create", log))?;

        let life = Arc::new(Life::default());
        let pid =
            keep_on_own_thread(postgres, log_file, Arc::clone(&life)).map_err(EmbeddedError::io("run", &program))?;
        let postmaster = Self { pid, life };
        postmaster.wait_until_ready(cluster, log)?;
        postmaster.life.lock().in_service = true;
        Ok(postmaster)
    }

    /// Postgres itself writes its state into `postmaster.pid`, so no client is needed to ask for it.
    fn wait_until_ready(&self, cluster: &Path, log: &Path) -> Result<(), EmbeddedError> {
        let pid_file = cluster.join("postmaster.pid");
        let deadline = Instant::now() + READY_WITHIN;
        let log_tail = || last_lines(&String::from_utf8_lossy(&fs::read(log).unwrap_or_default()));
        while Instant::now() < deadline {
            if fs::read_to_string(&pid_file).is_ok_and(|text| says_ready(&text, self.pid)) {
                return Ok(());
            }
            if let Some(status) = self.life.exit_within(POLL) {
                return Err(EmbeddedError::Failed { program: "Postgres", status, log: log_tail() });
            }
        }
        Err(EmbeddedError::NotReady { seconds: READY_WITHIN.as_secs(), log: log_tail() })
    }

    fn signal(&self, signal: Signal) {
        // The state is held meanwhile: a process that ended is not reaped before, so its id cannot be somebody else's.
        let state = self.life.lock();
        if state.exit.is_none()
            && let Err(error) = kill_process(self.pid, signal)
        {
            warn!(%error, "the embedded Postgres could not be signalled");
        }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        self.life.lock().in_service = false;
        let ended =
            end_step_by_step(|signal| self.signal(signal), |patience| self.life.exit_within(patience).is_some());
        if !ended {
            error!(pid = self.pid.as_raw_pid(), "the embedded Postgres does not end");
        }
    }
}

/// Sends ever stronger signals until the process has ended, and returns whether it has.
pub(super) fn end_step_by_step(send: impl Fn(Signal), ended_within: impl Fn(Duration) -> bool) -> bool {
    WAYS_TO_END.into_iter().any(|(signal, patience)| {
        send(signal);
        let ended = ended_within(patience);
        if !ended {
            // Told, because an end in order is what is to be expected, on a slow machine as well.
            warn!(signal = signal.as_raw(), waited_ms = patience.as_millis(), "Postgres has not ended yet");
        }
        ended
    })
}

/// The end of a log, short enough for an error message.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Sizes for one small server. Nothing here touches durability: `fsync` and all its kin keep their defaults.
const SETTINGS: &[&str] = &[
    // Only the socket: nothing to find for a port scan, no clash with another Postgres.
    "listen_addresses=",
    // initdb's own guess is 400 kB.
    "shared_buffers=64MB",
    "max_connections=40",
    // For building vector indexes.
    "maintenance_work_mem=128MB",
    // Containers often have a tiny /dev/shm, too small for a parallel index build.
    "dynamic_shared_memory_type=mmap",
    // After a crash: one call instead of opening each file. Only Linux has it.
    #[cfg(target_os = "linux")]
    "recovery_init_sync_method=syncfs",
    // The client gets its errors itself. In the log they would repeat the values of rows, which are the user's text.
    "log_min_messages=log",
    "log_min_error_statement=panic",
    "log_checkpoints=off",
];

/// A program of Postgres that hears of nobody but its owner: no terminal, no settings from the environment.
///
/// On Linux it gets the signal as soon as the *thread* that starts it ends.
pub(super) fn command(program: &Path, when_parent_ends: Signal) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // Ctrl-C goes to every process of the terminal's group; Postgres shall be stopped by its owner, after the last request.
    command.process_group(0);
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    end_with_parent(&mut command, when_parent_ends);
    command
}

#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command, signal: Signal) {
    use rustix::process::{getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    let before_exec = move || {
        set_parent_process_death_signal(Some(signal))?;
        // Had the parent ended before that call, the signal would never come.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(rustix::io::Errno::SRCH)) }
    };
    // SAFETY: the closure runs in the child between fork and exec, where other threads' locks may be held for ever. It makes
    // system calls only: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command, _signal: Signal) {}

/// Starts the process on a thread that lives as long as the process does, since the end of that thread would end it.
fn keep_on_own_thread(mut postgres: Command, log: File, life: Arc<Life>) -> io::Result<Pid> {
    let (started, pid) = mpsc::sync_channel(1);
    thread::Builder::new().name("embedded-postgres".to_owned()).spawn(move || {
        // The receiver waits for exactly one message, so neither of them can fail.
        match postgres.stderr(Stdio::piped()).spawn() {
            Ok(child) => {
                let _ = started.send(Ok(Pid::from_child(&child)));
                keep(child, log, &life);
            }
            Err(error) => drop(started.send(Err(error))),
        }
    })?;
    pid.recv().map_err(io::Error::other)?
}

/// Writes the log until Postgres has ended, and makes the end known.
fn keep(mut child: Child, log: File, life: &Life) {
    if let Some(output) = child.stderr.take() {
        copy_log(output, log);
    }
    // First wait without reaping: see `Postmaster::signal`.
    let pid = Pid::from_child(&child);
    let _ = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
    let mut state = life.lock();
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    if state.in_service {
        error!(%status, "the embedded Postgres has ended on its own: see postgres.log in the data directory");
    }
    state.exit = Some(status);
    life.ended.notify_all();
}

/// A full disk must not stop the reading, or Postgres would wait for ever to write its next line.
fn copy_log(mut output: impl Read, mut log: File) {
    let mut chunk = [0; 4096];
    let mut written = 0;
    loop {
        let length = match output.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if written > LOG_LIMIT {
            let _ = log.rewind().and_then(|()| log.set_len(0));
            written = 0;
        }
        let _ = log.write_all(&chunk[..length]);
        written += length as u64;
    }
}

/// Whether this is the `postmaster.pid` of our process (line 1) and tells that connections are accepted (line 8).
fn says_ready(pid_file: &str, pid: Pid) -> bool {
    let mut lines = pid_file.lines().map(str::trim);
    lines.next() == Some(pid.as_raw_pid().to_string().as_str()) && lines.nth(6) == Some("ready")
}
