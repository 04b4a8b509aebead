//! The chain of one's own: a provider in this process, agent-local and the bridge as they are built from this repository.

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

/// How long a program may take to be ready. The first start of agent-local unpacks a Postgres.
const START: Duration = Duration::from_secs(120);

/// It ends when it is dropped, whatever happens.
pub struct Chain {
    /// Where the bridge takes WebSockets.
    pub url: String,
    server: Child,
    _server_output: Lines<BufReader<ChildStdout>>,
    _bridge: Child,
    data: TempDir,
}

impl Chain {
    pub async fn start(options: &Options) -> Outcome<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = match &options.server {
            Some(path) => path.clone(),
            None => build_server(root).await?,
        };
        let bridge = match &options.bridge {
            Some(path) => path.clone(),
            None => build_bridge(root).await?,
        };

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let provider = format!("http://{}/v1", listener.local_addr()?);
        tokio::spawn(paced_provider::serve(listener, options.pace, options.deltas));

        let data = tempfile::tempdir()?;
        let mut server = Command::new(built.canonicalize()?);
        server
            // Nothing but this is its configuration, and no .env file either.
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
            // Many begin at once here, and whoever waits for that should be measured rather than turned away.
            .env("ADMISSION_TIMEOUT_MS", "20000")
            // A provider that tells the time is no good at titles.
            .env("RUST_LOG", "warn,agent_service::learning=error");
        let (server, mut server_output) = spawn(&mut server)?;
        let banner = until(&mut server_output, |line| line.contains("http://")).await?;
        let address = banner.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_default();
        until(&mut server_output, |line| line == "Ready.").await?;

        let mut command = Command::new(bridge.canonicalize()?);
        command.args(["-listen", "127.0.0.1:0"]).env("AGENT_URL", address);
        let (bridge, mut bridge_output) = spawn(&mut command)?;
        let url = until(&mut bridge_output, |line| line.starts_with("ws://")).await?;
        Ok(Self { url, server, _server_output: server_output, _bridge: bridge, data })
    }

    /// Ends the server in order, so that its database is gone before its folder is.
    pub async fn stop(mut self) -> Outcome<()> {
        if let Some(id) = self.server.id() {
            Command::new("kill").arg(id.to_string()).status().await?;
        }
        timeout(START, self.server.wait()).await??;
        Ok(self.data.close()?)
    }
}

fn spawn(command: &mut Command) -> Outcome<(Child, Lines<BufReader<ChildStdout>>)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let output = child.stdout.take().ok_or("a program has no output")?;
    Ok((child, BufReader::new(output).lines()))
}

/// The next line of this kind.
async fn until(output: &mut Lines<BufReader<ChildStdout>>, is_it: impl Fn(&str) -> bool) -> Outcome<String> {
    timeout(START, async {
        while let Some(line) = output.next_line().await? {
            if is_it(&line) {
                return Ok(line);
            }
        }
        Err("a program of the chain ended at its start".into())
    })
    .await?
}

/// The server as this program was built: optimised or not.
async fn build_server(root: &Path) -> Outcome<PathBuf> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--locked", "--package", "agent-local"]).current_dir(root);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    succeed(&mut command).await?;
    // This program lies in examples/ beside it.
    let own = env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).ok_or("this program lies in no target folder")?;
    Ok(folder.join("agent-local").with_extension(env::consts::EXE_EXTENSION))
}

async fn build_bridge(root: &Path) -> Outcome<PathBuf> {
    let bridge = root.join("target/examples/bin/bridge").with_extension(env::consts::EXE_EXTENSION);
    succeed(&mut Command::new(root.join("infra/generate-stubs.sh"))).await?;
    let go = root.join("examples/go");
    succeed(Command::new("go").arg("build").arg("-o").arg(&bridge).arg("./bridge").current_dir(go)).await?;
    Ok(bridge)
}

async fn succeed(command: &mut Command) -> Outcome<()> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let status = command.status().await.map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} failed").into()) }
}
