//! Servers as child processes of the benchmark program.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use agent_service::proto::agent_v1::ChatResponse;
use prost::Message as _;

use crate::{
    common::{BenchResult, LOG_LEVEL},
    server::ServerRole,
};

pub const SERVE: &str = "serve";

/// Stops at the end of its input: when it is dropped, or when this process ends for any reason.
pub struct ServerProcess {
    child: Child,
    input: Option<ChildStdin>,
    address: String,
}

impl ServerProcess {
    /// Starts a server that waits `pace` before each delta; the bare server repeats `turn`.
    pub fn start(role: ServerRole, pace: Duration, turn: &[ChatResponse], log_level: &str) -> BenchResult<Self> {
        Self::start_with(role, pace, turn, log_level, &[])
    }

    pub fn start_with(
        role: ServerRole,
        pace: Duration,
        turn: &[ChatResponse],
        log_level: &str,
        arguments: &[&str],
    ) -> BenchResult<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args([SERVE, role.name(), &pace.as_millis().to_string()])
            .args(arguments)
            .env("RUST_LOG", log_level)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if log_level != LOG_LEVEL {
            command.stderr(Stdio::null());
        }
        #[cfg(unix)]
        // Ctrl-C reaches this process only; the servers then shut down gracefully.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut server = Self { child: command.spawn()?, input: None, address: String::new() };
        let mut input = server.child.stdin.take().ok_or("the server has no input")?;
        let frames: Vec<u8> = turn.iter().flat_map(ChatResponse::encode_length_delimited_to_vec).collect();
        input.write_all(&u64::try_from(frames.len())?.to_le_bytes())?;
        input.write_all(&frames)?;
        server.input = Some(input);
        let output = server.child.stdout.take().ok_or("the server has no output")?;
        BufReader::new(output).read_line(&mut server.address)?;
        server.address.truncate(server.address.trim_end().len());
        if server.address.is_empty() {
            return Err(format!("the {} server did not start", role.name()).into());
        }
        Ok(server)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Resident memory; NaN where /proc is missing.
    pub fn resident_kib(&self) -> f64 {
        self.resident().unwrap_or(f64::NAN)
    }

    fn resident(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    }

    /// CPU time; NaN where /proc is missing.
    pub fn cpu_seconds(&self) -> f64 {
        self.cpu().unwrap_or(f64::NAN)
    }

    fn cpu(&self) -> Option<f64> {
        /// USER_HZ is 100 on Linux, independent of the kernel's own tick.
        const TICKS: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // The parenthesized name may contain spaces; utime and stime are fields 14 and 15 of proc_pid_stat(5).
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let (user, system) = (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?);
        Some((user + system) / TICKS)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
