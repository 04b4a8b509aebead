//! Starts a stack for the load test: a provider in this process, and agent-local and the bridge, built from this repository.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{Options, Outcome, paced_provider};

/// The first start of agent-local unpacks Postgres.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Its processes are killed on drop.
pub struct Stack {
    /// Of the bridge.
    pub url: String,
    server: Child,
    _server_output: Lines<BufReader<ChildStdout>>,
    _bridge: Child,
    data: TempDir,
}

impl Stack {
    pub async fn start(options: &Options) -> Outcome<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let server_path = match &options.server {
            Some(path) => path.clone(),
            None => build_server(root).await?,
        };
        let bridge_path = match &options.bridge {
            Some(path) => path.clone(),
            None => build_bridge(root).await?,
        };

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let provider = format!("http://{}/v1", listener.local_addr()?);
        tokio::spawn(paced_provider::serve(listener, options.pace, options.deltas));

        let data = tempfile::tempdir()?;
        let mut server = Command::new(server_path.canonicalize()?);
        server
            // An empty environment and directory: no .env file and no variables of the caller.
            .current_dir(&data)
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", data.path())
            .env("AGENT_DATA_DIR", data.path().join("data"))
            .env("GRPC_PORT", "0")
            .env("LLM_PROVIDER", "compatible")
            .env("LLM_API_BASE_URL", provider)
            .env("LLM_MODEL_NAME", "model")
            .env("EMBEDDING_PROVIDER", "hashed")
            .env("LEARNING", "off")
            .env("RATE_LIMITS", "off")
            .env("MAX_CONCURRENT_STREAMS", options.connections.max(2_000).to_string())
            // Measures the waiting time of a burst instead of rejecting its calls.
            .env("ADMISSION_TIMEOUT_MS", "20000")
            // The paced provider cannot write titles, so learning logs warnings.
            .env("RUST_LOG", "warn,agent_service::learning=error");
        let (server, mut server_output) = spawn(&mut server)?;
        let banner = next_line(&mut server_output, |line| line.contains("http://")).await?;
        let address = banner.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_default();
        next_line(&mut server_output, |line| line == "Ready.").await?;

        let mut command = Command::new(bridge_path.canonicalize()?);
        command.args(["-listen", "127.0.0.1:0"]).env("AGENT_URL", address);
        let (bridge, mut bridge_output) = spawn(&mut command)?;
        let url = next_line(&mut bridge_output, |line| line.starts_with("ws://")).await?;
        Ok(Self { url, server, _server_output: server_output, _bridge: bridge, data })
    }

    /// Stops the server gracefully: its database must be down before its directory is deleted.
    pub async fn stop(mut self) -> Outcome<()> {
        if let Some(id) = self.server.id() {
            Command::new("kill").arg(id.to_string()).status().await?;
        }
        timeout(START_TIMEOUT, self.server.wait()).await??;
        Ok(self.data.close()?)
    }
}

fn spawn(command: &mut Command) -> Outcome<(Child, Lines<BufReader<ChildStdout>>)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let output = child.stdout.take().ok_or("the child process has no stdout")?;
    Ok((child, BufReader::new(output).lines()))
}

async fn next_line(output: &mut Lines<BufReader<ChildStdout>>, matches: impl Fn(&str) -> bool) -> Outcome<String> {
    timeout(START_TIMEOUT, async {
        while let Some(line) = output.next_line().await? {
            if matches(&line) {
                return Ok(line);
            }
        }
        Err("a process of the stack exited during its start".into())
    })
    .await?
}

/// In the profile of this program.
async fn build_server(root: &Path) -> Outcome<PathBuf> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--locked", "--package", "agent-local"]).current_dir(root);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    run_to_success(&mut command).await?;
    // This program is in the examples/ directory next to it.
    let current_exe = env::current_exe()?;
    let target_dir = current_exe.parent().and_then(Path::parent).ok_or("this program is not in a target directory")?;
    Ok(target_dir.join("agent-local").with_extension(env::consts::EXE_EXTENSION))
}

async fn build_bridge(root: &Path) -> Outcome<PathBuf> {
    let bridge = root.join("target/examples/bin/bridge").with_extension(env::consts::EXE_EXTENSION);
    run_to_success(&mut Command::new(root.join("infra/generate-stubs.sh"))).await?;
    let go = root.join("examples/go");
    run_to_success(Command::new("go").arg("build").arg("-o").arg(&bridge).arg("./bridge").current_dir(go)).await?;
    Ok(bridge)
}

async fn run_to_success(command: &mut Command) -> Outcome<()> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let status = command.status().await.map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} failed").into()) }
}
