use std::{
    fs,
    io::ErrorKind,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tracing::{debug, info};

use super::{data_dir, error::EmbeddedError, login::USER, postmaster, unpack};
use crate::postgres::startup::StartupStep;

/// The end of a process that is not our child cannot be awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A complete cluster gets its name last, so an interrupted `initdb` is repeated.
pub(super) fn create_if_missing(
    runtime: &Path,
    data_dir: &Path,
    cluster: &Path,
    progress: &dyn Fn(StartupStep),
) -> Result<(), EmbeddedError> {
    if cluster.is_dir() {
        return data_dir::verify(cluster, true);
    }
    progress(StartupStep::Initializing);
    let partial = unpack::partial_path(data_dir);
    // `trust` is safe: the permissions of the socket directory decide who can connect. The built-in locale sorts the
    // same on every machine.
    let mut initdb = postmaster::command(&runtime.join("bin/initdb"), Signal::KILL);
    initdb.arg("-D").arg(&partial);
    initdb.args(["-U", USER, "-A", "trust", "-E", "UTF8", "--no-instructions"]);
    initdb.args(["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
    let output = initdb
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(EmbeddedError::io("run", &runtime.join("bin/initdb")))?;
    if !output.status.success() {
        let log = [output.stdout, output.stderr].concat();
        return Err(EmbeddedError::Failed {
            program: "initdb",
            status: output.status.to_string(),
            log: postmaster::last_lines(&String::from_utf8_lossy(&log)),
        });
    }
    unpack::publish(&partial, cluster)
}

/// Ends a Postgres whose owner was killed. The caller holds the directory's lock, so no living server owns it.
pub(super) fn end_previous_run(cluster: &Path) -> Result<(), EmbeddedError> {
    let pid_file = cluster.join("postmaster.pid");
    let Some(pid) = fs::read_to_string(&pid_file).ok().and_then(|text| first_pid(&text)) else { return Ok(()) };
    if is_postmaster(pid, cluster) {
        info!(pid = pid.as_raw_pid(), "stopping the Postgres of an earlier run");
        // Fails if it has ended in the meantime, which is as good.
        let send = |signal| {
            let _ = kill_process(pid, signal);
        };
        if !postmaster::end_with_signals(send, |timeout| ended_within(pid, cluster, timeout)) {
            return Err(EmbeddedError::StillRunning { pid: pid.as_raw_pid() });
        }
    }
    // Postgres refuses to start while the process id in the file is in use, even by a zombie or an unrelated process.
    if test_kill_process(pid) != Err(rustix::io::Errno::SRCH) {
        debug!(pid = pid.as_raw_pid(), "removing postmaster.pid, whose process is not a Postgres of this directory");
        remove_if_present(&pid_file)?;
    }
    Ok(())
}

pub(super) fn remove_if_present(file: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(EmbeddedError::io("remove", file)(error)),
        _ => Ok(()),
    }
}

fn first_pid(text: &str) -> Option<Pid> {
    text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw)
}

#[expect(clippy::disallowed_methods, reason = "`start` blocks by contract, and only the end of a child can be awaited")]
fn ended_within(pid: Pid, cluster: &Path, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while is_postmaster(pid, cluster) {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
    true
}

/// False for another process with a reused id.
#[cfg(target_os = "linux")]
fn is_postmaster(pid: Pid, cluster: &Path) -> bool {
    let process = Path::new("/proc").join(pid.as_raw_pid().to_string());
    let program = fs::read_link(process.join("exe")).ok();
    // Linux appends " (deleted)" if the file is gone.
    let is_postgres = program
        .as_deref()
        .and_then(Path::file_name)
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgres"));
    is_postgres && fs::read_link(process.join("cwd")).is_ok_and(|directory| directory == cluster)
}

#[cfg(not(target_os = "linux"))]
fn is_postmaster(pid: Pid, cluster: &Path) -> bool {
    let pid = pid.as_raw_pid().to_string();
    let mut ps = std::process::Command::new("/bin/ps");
    let listed = ps.env_clear().args(["-ww", "-o", "command=", "-p", &pid]).output();
    listed.is_ok_and(|output| {
        let command = String::from_utf8_lossy(&output.stdout);
        command.contains("bin/postgres ") && command.contains(&*cluster.to_string_lossy())
    })
}
