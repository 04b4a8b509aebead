//! Settings from the environment and from `.env`, and their errors.

use crate::{
    process::{Process, Sandbox},
    server::{Server, question_without_memory},
};

const SECRET: &str = "sk-marker-4711";

#[tokio::test]
async fn invalid_settings_are_reported_together_without_values() {
    let wrong = [
        ("GRPC_PORT", SECRET),
        ("GRPC_HOST", SECRET),
        ("TLS_CERT_FILE", SECRET),
        ("SHUTDOWN_GRACE_SECONDS", SECRET),
        ("DEMO_MODE", SECRET),
        ("DEMO_CHUNK_DELAY_MS", SECRET),
        ("LLM_PROVIDER", SECRET),
        ("LLM_API_KEY", SECRET),
        ("LLM_API_BASE_URL", SECRET),
        ("EMBEDDING_PROVIDER", SECRET),
        ("DATABASE_URL", SECRET),
        ("LOG_FORMAT", SECRET),
    ];
    let output = Sandbox::new().run(&[], &wrong).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    // Any path is a valid TLS_CERT_FILE (TLS_KEY_FILE is missing), and any text a valid API key.
    let named = wrong.iter().map(|(name, _)| *name).filter(|name| !["TLS_CERT_FILE", "LLM_API_KEY"].contains(name));
    for name in named.chain(["TLS_KEY_FILE"]) {
        let lines: Vec<_> =
            output.stderr.lines().filter(|line| line.trim().starts_with(&format!("{name}: "))).collect();
        assert_eq!(lines.len(), 1, "{name}:\n{}", output.stderr);
        assert!(lines[0].contains(&format!("(for example {name}=")), "{}", lines[0]);
    }
    assert!(!format!("{output:?}").contains(SECRET), "{output:?}");
    assert!(!output.stdout.contains("address"), "a server was started: {}", output.stdout);
}

#[tokio::test]
async fn weak_secrets_are_refused_at_start() {
    let weak =
        [("AUTH", "jwt"), ("JWT_SECRET", "a-secret-of-31-bytes-----------"), ("INTERNAL_API_KEY", "fifteen-bytes--")];
    let output = Sandbox::new().run(&[], &weak).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    for expected in [
        "JWT_SECRET: has 31 bytes, but needs at least 32: set it to a random value (for example JWT_SECRET=$(openssl rand -hex 32))",
        "INTERNAL_API_KEY: has 15 bytes, but needs at least 16: set it to a random value",
    ] {
        assert!(output.stderr.contains(expected), "{}", output.stderr);
    }
    assert!(!weak[1..].iter().any(|(_, secret)| output.stderr.contains(secret)), "{}", output.stderr);
}

#[tokio::test]
async fn malformed_env_file_exits_with_code_2_unquoted() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.work().join(".env"), format!("GRPC_PORT=0\nLLM_API_KEY {SECRET}\n")).unwrap();
    let output = sandbox.run(&[], &[]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains(".env"), "{}", output.stderr);
    assert!(!format!("{output:?}").contains(SECRET), "{output:?}");
}

#[tokio::test]
async fn environment_takes_precedence_over_env_file() {
    let sandbox = Sandbox::new();
    let data = sandbox.path().join("from-env-file");
    let file = format!(
        "# Settings\nGRPC_PORT=0\nDEMO_MODE=true\nDEMO_THINKING_DELAY_MS=0\nDEMO_CHUNK_DELAY_MS=0\n\
         AGENT_DATA_DIR='{}'\nGRPC_HOST=nowhere\n",
        data.display()
    );
    std::fs::write(sandbox.work().join(".env"), file).unwrap();
    let rejected = Process::start(sandbox.bare(&[])).wait().await;
    assert_eq!(rejected.code, Some(2), "{rejected:?}");
    assert!(rejected.stderr.contains("GRPC_HOST: "), "{}", rejected.stderr);
    let mut command = sandbox.bare(&[]);
    command.env("GRPC_HOST", "127.0.0.1");
    let server = Server::start(command).await;
    assert!(server.url.starts_with("http://127.0.0.1:"), "{}", server.url);
    let banner = server.process.stdout.so_far();
    assert!(banner.contains("DEMO_MODE=true") && banner.contains(&*data.to_string_lossy()), "{banner}");
    // The delays of `.env` apply; with the default delays this would take seconds.
    assert!(!server.chat(question_without_memory("hello")).await.rest().await.unwrap().is_empty());
}

#[tokio::test]
async fn unreadable_file_is_reported_by_its_setting() {
    let output = Sandbox::new().run(&[], &[("DEMO_RESPONSES_FILE", "absent.json")]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("DEMO_RESPONSES_FILE: cannot be read"), "{}", output.stderr);
}

#[tokio::test]
async fn unknown_argument_exits_with_code_2() {
    for arguments in [&["--prot", "1"][..], &["sing"], &["recall"], &["recall", "x", "--limit", "0"]] {
        let output = Sandbox::new().run(arguments, &[]).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.stderr.contains("error:"), "{}", output.stderr);
    }
}
