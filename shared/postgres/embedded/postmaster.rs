use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tracing::{error, warn};

use super::{data_dir, error::EmbeddedError, login::PORT};

/// Crash recovery replays up to 1 GB of WAL first.
const READY_TIMEOUT: Duration = Duration::from_mins(2);

const READY_POLL_INTERVAL: Duration = Duration::from_millis(3);

const MAX_LOG_BYTES: u64 = 1 << 20;

/// Fast, which depends on the disk; immediate, which costs a WAL replay; SIGKILL. Killed within 5 seconds of an
/// immediate shutdown, Postgres leaves children and `postmaster.pid` behind.
const SHUTDOWN_SIGNALS: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(20)),
    (Signal::QUIT, Duration::from_secs(8)),
    (Signal::KILL, Duration::from_secs(2)),
];

#[derive(Debug)]
pub(super) struct Postmaster {
    pid: Pid,
    process: Arc<ProcessMonitor>,
}

#[derive(Debug, Default)]
struct ProcessMonitor {
    state: Mutex<ProcessState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct ProcessState {
    /// From ready until the shutdown: an exit in between is unexpected and logged.
    in_service: bool,
    /// While it is `None`, the process is not reaped and its id cannot be reused.
    exit: Option<String>,
}

impl ProcessMonitor {
    fn lock(&self) -> MutexGuard<'_, ProcessState> {
        // A panic cannot leave the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exit_within(&self, timeout: Duration) -> Option<String> {
        self.ended
            .wait_timeout_while(self.lock(), timeout, |state| state.exit.is_none())
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .exit
            .clone()
    }
}

impl Postmaster {
    pub(super) fn start(runtime: &Path, cluster: &Path, socket_dir: &Path, log: &Path) -> Result<Self, EmbeddedError> {
        let program = runtime.join("bin/postgres");
        // If this process dies, Postgres does a fast shutdown, after which the next start needs no recovery.
        let mut postgres = command(&program, Signal::INT);
        postgres.arg("-D").arg(cluster).arg("-k").arg(socket_dir).args(["-p", &PORT.to_string()]);
        for setting in SETTINGS {
            postgres.args(["-c", setting]);
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let log_file = data_dir::open_private(&mut options, log).map_err(EmbeddedError::io("create", log))?;

        let process = Arc::new(ProcessMonitor::default());
        let pid =
            spawn_monitored(postgres, log_file, Arc::clone(&process)).map_err(EmbeddedError::io("run", &program))?;
        let postmaster = Self { pid, process };
        postmaster.wait_until_ready(cluster, log)?;
        postmaster.process.lock().in_service = true;
        Ok(postmaster)
    }

    fn wait_until_ready(&self, cluster: &Path, log: &Path) -> Result<(), EmbeddedError> {
        let pid_file = cluster.join("postmaster.pid");
        let deadline = Instant::now() + READY_TIMEOUT;
        let log_tail = || last_lines(&String::from_utf8_lossy(&fs::read(log).unwrap_or_default()));
        while Instant::now() < deadline {
            if fs::read_to_string(&pid_file).is_ok_and(|text| is_ready(&text, self.pid)) {
                return Ok(());
            }
            if let Some(status) = self.process.exit_within(READY_POLL_INTERVAL) {
                return Err(EmbeddedError::Failed { program: "Postgres", status, log: log_tail() });
            }
        }
        Err(EmbeddedError::NotReady { seconds: READY_TIMEOUT.as_secs(), log: log_tail() })
    }

    fn signal(&self, signal: Signal) {
        // Holding the lock keeps the process from being reaped, so its id cannot be reused meanwhile.
        let state = self.process.lock();
        if state.exit.is_none()
            && let Err(error) = kill_process(self.pid, signal)
        {
            warn!(%error, "failed to signal the embedded Postgres");
        }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        self.process.lock().in_service = false;
        let ended =
            end_with_signals(|signal| self.signal(signal), |timeout| self.process.exit_within(timeout).is_some());
        if !ended {
            error!(pid = self.pid.as_raw_pid(), "the embedded Postgres does not end");
        }
    }
}

/// False if the process outlives all of them.
pub(super) fn end_with_signals(send: impl Fn(Signal), ended_within: impl Fn(Duration) -> bool) -> bool {
    SHUTDOWN_SIGNALS.into_iter().any(|(signal, timeout)| {
        send(signal);
        let ended = ended_within(timeout);
        if !ended {
            warn!(signal = signal.as_raw(), waited_ms = timeout.as_millis(), "Postgres has not ended yet");
        }
        ended
    })
}

pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Durability settings such as `fsync` keep their defaults.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    // The socket's directory is private already.
    "unix_socket_permissions=0700",
    // initdb's guess is 400 kB.
    "shared_buffers=64MB",
    "max_connections=64",
    "maintenance_work_mem=128MB",
    // A commit that waits for the disk holds up no other transaction for lack of space.
    "wal_buffers=16MB",
    // The log of changes is most of what a turn writes. Images of whole pages compress to a third.
    "wal_compression=on",
    "max_wal_size=160MB",
    // Containers often have a /dev/shm that is too small for a parallel index build.
    "dynamic_shared_memory_type=mmap",
    // One syncfs instead of opening each file (Linux only).
    #[cfg(target_os = "linux")]
    "recovery_init_sync_method=syncfs",
    // Errors in the log would quote rows, which are user text.
    "log_min_messages=log",
    "log_min_error_statement=panic",
    "log_checkpoints=off",
];

/// All that Postgres gets of the environment. The rest holds secrets of this process, which the files of a process, a core dump
/// or a function of SQL could disclose.
const INHERITED_VARIABLES: [&str; 3] = ["LD_LIBRARY_PATH", "PATH", "TZ"];

/// On Linux the signal is sent when the *thread* that started the process ends (`PR_SET_PDEATHSIG`).
pub(super) fn command(program: &Path, when_parent_ends: Signal) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // Ctrl-C signals the terminal's process group, but Postgres must outlive the last request.
    command.process_group(0);
    // On macOS, Postgres does not start without a locale.
    command.env_clear().env("LC_ALL", "C");
    command.envs(INHERITED_VARIABLES.into_iter().filter_map(|name| Some((name, env::var_os(name)?))));
    end_with_parent(&mut command, when_parent_ends);
    command
}

#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command, signal: Signal) {
    use rustix::process::{getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    let before_exec = move || {
        set_parent_process_death_signal(Some(signal))?;
        // If the parent ended before that call, the signal would never be sent.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(rustix::io::Errno::SRCH)) }
    };
    #[expect(unsafe_code, reason = "there is no other way to call prctl in the child")]
    // SAFETY: the closure runs between fork and exec, where locks of other threads may never be released. It makes
    // system calls only: it neither allocates nor locks.
    unsafe {
        command.pre_exec(before_exec)
    };
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command, _signal: Signal) {}

/// The thread lives as long as the process, because the end of the thread would end it.
fn spawn_monitored(mut postgres: Command, log: File, process: Arc<ProcessMonitor>) -> io::Result<Pid> {
    let (started, pid) = mpsc::sync_channel(1);
    thread::Builder::new().name("embedded-postgres".to_owned()).spawn(move || {
        // The receiver waits for exactly one message, so sending cannot fail.
        match postgres.stderr(Stdio::piped()).spawn() {
            Ok(child) => {
                let _ = started.send(Ok(Pid::from_child(&child)));
                monitor(child, log, &process);
            }
            Err(error) => drop(started.send(Err(error))),
        }
    })?;
    pid.recv().map_err(io::Error::other)?
}

fn monitor(mut child: Child, log: File, process: &ProcessMonitor) {
    if let Some(output) = child.stderr.take() {
        copy_log(output, log);
    }
    // Wait without reaping, which requires the lock: see `Postmaster::signal`.
    let pid = Pid::from_child(&child);
    let _ = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
    let mut state = process.lock();
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    if state.in_service {
        error!(%status, "the embedded Postgres exited unexpectedly; see postgres.log in the data directory");
    }
    state.exit = Some(status);
    process.ended.notify_all();
}

/// Ignores write errors such as a full disk: otherwise Postgres would block on its next line.
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
        if written > MAX_LOG_BYTES {
            let _ = log.rewind().and_then(|()| log.set_len(0));
            written = 0;
        }
        let _ = log.write_all(&chunk[..length]);
        written += length as u64;
    }
}

/// Of `postmaster.pid`, line 1 is the process id and line 8 the state.
fn is_ready(pid_file: &str, pid: Pid) -> bool {
    let mut lines = pid_file.lines().map(str::trim);
    lines.next() == Some(pid.as_raw_pid().to_string().as_str()) && lines.nth(6) == Some("ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_inherits_no_other_variable() {
        let mut printing = command(Path::new("/usr/bin/env"), Signal::KILL);
        let output = printing.stdout(Stdio::piped()).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let names: Vec<_> = printed.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        let is_expected = |name: &&str| *name == "LC_ALL" || INHERITED_VARIABLES.contains(name);
        let own = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        assert!(own.filter(|name| !is_expected(&name.as_str())).count() > 0, "there is nothing to inherit");
        assert!(names.contains(&"PATH") && names.contains(&"LC_ALL"), "{names:?}");
        assert!(names.iter().all(is_expected), "{names:?}");
    }
}
