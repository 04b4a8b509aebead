//! Messages on standard output: the server's address and settings, and commands to try.

use std::{
    io::{IsTerminal as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use agent_service::config::{AuthMode, Config, DatabaseConfig, DemoReason, EmbeddingConfig, ModelConfig};

use crate::options;

pub fn print_banner(config: &Config, address: SocketAddr) {
    let is_tls = config.server.tls.is_some();
    let scheme = if is_tls { "https" } else { "http" };
    // A server on all addresses is reachable by the loopback one.
    let reachable = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    };
    let page = if config.server.web_page { format!("\n  page       {scheme}://{reachable}/") } else { String::new() };
    let program = if std::io::stdout().is_terminal() { "cargo run --" } else { "agent-local" };
    let mut flags = match format!("{scheme}://{reachable}") {
        default if default == options::DEFAULT_ADDR => String::new(),
        url => format!(" --addr {url}"),
    };
    if is_tls {
        flags.push_str(" --ca-file FILE");
    }
    print_line(&format!(
        "agent-local {version}
  address    {scheme}://{address} (gRPC and gRPC-Web){page}
  answers    {model}
  memory     {memory}
  embedding  {embedding}
  callers    {callers}

Try it in a second terminal:
  {program} chat{flags} \"帮我制定高数复习计划\"
  {program} remember{flags} \"I mix up eigenvalues and eigenvectors\"
  {program} recall{flags} \"how do eigenvalues differ from eigenvectors?\"
",
        version = env!("CARGO_PKG_VERSION"),
        model = describe_model(&config.model),
        memory = describe_database(&config.stores.database),
        embedding = describe_embedder(&config.embedding),
        callers = describe_auth(config.auth.mode),
    ));
}

fn describe_model(config: &ModelConfig) -> String {
    match config {
        ModelConfig::Demo(demo) => match demo.reason {
            DemoReason::Chosen => "demo mode (DEMO_MODE=true): canned answers without a model".to_owned(),
            DemoReason::NoKey => {
                "DEMO mode: canned answers, because no API key is set; set LLM_API_KEY for a real model".to_owned()
            }
        },
        ModelConfig::Provider(config) => {
            let primary = &config.primary;
            let fallbacks: Vec<_> = config.fallbacks.iter().map(|fallback| fallback.model.as_str()).collect();
            let chain =
                if fallbacks.is_empty() { String::new() } else { format!(", fallbacks: {}", fallbacks.join(", ")) };
            format!("{} by {} at {}{chain}", primary.model, primary.provider.name(), primary.base_url)
        }
    }
}

fn describe_database(config: &DatabaseConfig) -> String {
    match config {
        DatabaseConfig::Embedded { data_dir } => format!("embedded Postgres in {}", data_dir.display()),
        DatabaseConfig::Postgres { .. } => "Postgres at DATABASE_URL".to_owned(),
        DatabaseConfig::Absent => "none".to_owned(),
    }
}

fn describe_embedder(config: &EmbeddingConfig) -> String {
    match config {
        EmbeddingConfig::Hashed => "built-in: hashed n-grams (match spelling, not meaning)".to_owned(),
        EmbeddingConfig::Local { model_dir } => format!("local model in {}", model_dir.display()),
        EmbeddingConfig::OpenAi { model, dimension, .. } => format!("{model}, {dimension} dimensions"),
    }
}

fn describe_auth(mode: AuthMode) -> &'static str {
    match mode {
        AuthMode::None => "not authenticated (AUTH=none): only this machine can reach the port",
        AuthMode::Jwt => "authenticated by bearer tokens (AUTH=jwt)",
        AuthMode::Gateway => "authenticated by the gateway (AUTH=gateway), which alone may reach the port",
    }
}

/// Ignores a closed standard output, as after `| head`: the server keeps running.
pub fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
