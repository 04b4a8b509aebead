//! The directory with the data: creating it, and making sure that no Postgres of an earlier run still works on it.

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

use super::{super::StartupStep, EmbeddedError, USER, postmaster, unpack};

/// How often to look whether a process that is not our child has ended.
const POLL: Duration = Duration::from_millis(10);

/// Creates the cluster unless it is there. Only a complete one has the name, so a cut `initdb` is simply repeated.
pub(super) fn create_if_missing(
    runtime: &Path,
    data_dir: &Path,
    cluster: &Path,
    progress: &dyn Fn(StartupStep),
) -> Result<(), EmbeddedError> {
    if cluster.is_dir() {
        return Ok(());
    }
    progress(StartupStep::Initialising);
    let partial = unpack::partial_path(data_dir);
    // Trust is no risk: only who may enter the socket directory can connect at all. The locale is built into Postgres: it
    // gives the same order of text on every machine, and no machine lacks it.
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
        let said = [output.stdout, output.stderr].concat();
        return Err(EmbeddedError::Failed {
            program: "initdb",
            status: output.status.to_string(),
            log: postmaster::last_lines(&String::from_utf8_lossy(&said)),
        });
    }
    unpack::publish(&partial, cluster)
}

/// Ends a Postgres whose owner was killed, and clears what would keep the next one from starting.
///
/// Call it with the lock of the data directory held: then no living server owns that Postgres.
pub(super) fn end_previous_run(cluster: &Path) -> Result<(), EmbeddedError> {
    let pid_file = cluster.join("postmaster.pid");
    let Some(pid) = fs::read_to_string(&pid_file).ok().and_then(|text| first_pid(&text)) else { return Ok(()) };
    if is_postmaster(pid, cluster) {
        info!(pid = pid.as_raw_pid(), "the Postgres of an earlier run still runs and is stopped first");
        // It may have ended since the last look; then there is nobody to signal and nothing to do.
        let send = |signal| {
            let _ = kill_process(pid, signal);
        };
        if !postmaster::end_step_by_step(send, |patience| ended_within(pid, cluster, patience)) {
            return Err(EmbeddedError::StillRunning { pid: pid.as_raw_pid() });
        }
    }
    // Postgres itself sees that a process id is of no living process. One that nobody reaped, or that was given to another
    // process in the meantime, as happens after a reboot or in a container, would stop it for ever.
    if test_kill_process(pid) != Err(rustix::io::Errno::SRCH) {
        debug!(pid = pid.as_raw_pid(), "postmaster.pid names a process that is no Postgres of this directory");
        remove_if_present(&pid_file)?;
    }
    Ok(())
}

/// Removes a stale file, which its owner may just have removed itself.
pub(super) fn remove_if_present(file: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(EmbeddedError::io("remove", file)(error)),
        _ => Ok(()),
    }
}

fn first_pid(text: &str) -> Option<Pid> {
    text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw)
}

#[expect(clippy::disallowed_methods, reason = "a start blocks by contract, and only a child's end can be awaited")]
fn ended_within(pid: Pid, cluster: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while is_postmaster(pid, cluster) {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

/// Whether the process is a Postgres that works in this cluster. A process id alone proves nothing.
#[cfg(target_os = "linux")]
fn is_postmaster(pid: Pid, cluster: &Path) -> bool {
    let process = Path::new("/proc").join(pid.as_raw_pid().to_string());
    let program = fs::read_link(process.join("exe")).ok();
    // The name of a program whose file is gone has an addition.
    let is_postgres = program
        .as_deref()
        .and_then(Path::file_name)
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgres"));
    is_postgres && fs::read_link(process.join("cwd")).is_ok_and(|directory| directory == cluster)
}

/// Whether the process is a Postgres that was started for this cluster. A process id alone proves nothing.
#[cfg(not(target_os = "linux"))]
fn is_postmaster(pid: Pid, cluster: &Path) -> bool {
    let pid = pid.as_raw_pid().to_string();
    let listed = std::process::Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid]).output();
    listed.is_ok_and(|output| {
        let command = String::from_utf8_lossy(&output.stdout);
        command.contains("bin/postgres ") && command.contains(&*cluster.to_string_lossy())
    })
}
