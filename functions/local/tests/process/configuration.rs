//! Settings: from the environment and from `.env`, right and wrong.

use crate::server::{Home, Process, Server, question_without_memory};

const SECRET: &str = "sk-marker-4711";

#[tokio::test]
async fn all_mistakes_are_reported_together_with_name_and_example_but_without_the_values() {
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
    let ended = Home::new().run(&[], &wrong).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    // A certificate is right but for the key that is missing, and a key can not be wrong.
    let named = wrong.iter().map(|(name, _)| *name).filter(|name| !["TLS_CERT_FILE", "LLM_API_KEY"].contains(name));
    for name in named.chain(["TLS_KEY_FILE"]) {
        let lines: Vec<_> = ended.stderr.lines().filter(|line| line.trim().starts_with(&format!("{name}: "))).collect();
        assert_eq!(lines.len(), 1, "{name}:\n{}", ended.stderr);
        assert!(lines[0].contains(&format!("(for example {name}=")), "{}", lines[0]);
    }
    assert!(!format!("{ended:?}").contains(SECRET), "{ended:?}");
    assert!(!ended.stdout.contains("address"), "nothing is started: {}", ended.stdout);
}

#[tokio::test]
async fn a_malformed_env_file_ends_the_program_with_code_2_and_is_not_quoted() {
    let home = Home::new();
    std::fs::write(home.work().join(".env"), format!("GRPC_PORT=0\nLLM_API_KEY {SECRET}\n")).unwrap();
    let ended = home.run(&[], &[]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains(".env"), "{}", ended.stderr);
    assert!(!format!("{ended:?}").contains(SECRET), "{ended:?}");
}

#[tokio::test]
async fn an_env_file_in_the_current_directory_is_read_and_the_environment_wins_over_it() {
    let home = Home::new();
    let data = home.path().join("from-env-file");
    let file = format!(
        "# Settings\nGRPC_PORT=0\nDEMO_MODE=true\nDEMO_THINKING_DELAY_MS=0\nDEMO_CHUNK_DELAY_MS=0\n\
         AGENT_DATA_DIR='{}'\nGRPC_HOST=nowhere\n",
        data.display()
    );
    std::fs::write(home.work().join(".env"), file).unwrap();
    let refused = Process::start(home.bare(&[])).ended().await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("GRPC_HOST: "), "{}", refused.stderr);
    let mut command = home.bare(&[]);
    command.env("GRPC_HOST", "127.0.0.1");
    let server = Server::start(command).await;
    assert!(server.url.starts_with("http://127.0.0.1:"), "{}", server.url);
    let banner = server.process.stdout.so_far();
    assert!(banner.contains("(DEMO_MODE)") && banner.contains(&*data.to_string_lossy()), "{banner}");
    // With the delays of demo mode this would take seconds, without them the frames come at once.
    assert!(!server.chat(question_without_memory("hello")).await.rest().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_a_setting_names_and_that_can_not_be_read_is_reported_by_the_name_of_the_setting() {
    let ended = Home::new().run(&[], &[("DEMO_RESPONSES_FILE", "absent.json")]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("DEMO_RESPONSES_FILE: can not be read"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_argument_that_does_not_exist_ends_the_program_with_code_2() {
    for arguments in [&["--prot", "1"][..], &["sing"], &["recall"], &["recall", "x", "--limit", "0"]] {
        let ended = Home::new().run(arguments, &[]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("error:"), "{}", ended.stderr);
    }
}
