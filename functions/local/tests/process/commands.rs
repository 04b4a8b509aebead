//! The command line client against a running server.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::{
    external_database::{DatabaseProxy, ExternalDatabase},
    process::{ClosedPort, Process, Sandbox, within_timeout},
    server::{full_text, question_without_memory},
};

#[tokio::test]
async fn chat_prints_answer_to_stdout_and_statuses_to_stderr() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let question = "帮我制定高数复习计划";
    let output = sandbox.run(&["chat", "--addr", &server.url, question], &[]).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let frames = server.chat(question_without_memory(question)).await.rest().await.unwrap();
    assert_eq!(output.stdout, full_text(&frames));
    for status in ["正在思考", "正在检索", "正在生成", " tokens]"] {
        assert!(output.stderr.contains(status), "{status} is not in:\n{}", output.stderr);
    }
}

#[tokio::test]
async fn remembered_text_is_recalled_and_cited() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let at = ["--addr", &server.url, "--user", "alice"];
    let remembered =
        sandbox.run(&[&["remember", "I mix up eigenvalues and eigenvectors"], &at[..]].concat(), &[]).await;
    assert_eq!(remembered.code, Some(0), "{remembered:?}");
    let id = remembered.stdout.strip_prefix("Remembered as ").unwrap();

    let recalled = sandbox.run(&[&["recall", "eigenvalues and eigenvectors"], &at[..]].concat(), &[]).await;
    assert_eq!(recalled.code, Some(0), "{recalled:?}");
    assert!(recalled.stdout.contains("I mix up eigenvalues and eigenvectors"), "{recalled:?}");
    assert!(recalled.stdout.contains(id), "{recalled:?}");

    let output = sandbox.run(&[&["chat", "What about my eigenvalues and eigenvectors?"], &at[..]].concat(), &[]).await;
    assert!(output.stderr.contains("I mix up eigenvalues and eigenvectors"), "a citation: {output:?}");

    let of_another = sandbox.run(&["recall", "eigenvalues", "--addr", &server.url, "--user", "bob"], &[]).await;
    assert_eq!((of_another.code, of_another.stdout.as_str()), (Some(0), "No memories found."));
}

#[tokio::test]
async fn stored_text_does_not_drive_the_terminal() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let at = ["--addr", &server.url, "--user", "alice"];
    // Sets the clipboard and clears the screen; the last one is one character of C1.
    let text = "eigenvalues \x1b]52;c;ZXZpbA==\x07 of a matrix \x1b[2J and \u{9b}2J eigenvectors";
    assert_eq!(sandbox.run(&[&["remember", text], &at[..]].concat(), &[]).await.code, Some(0));
    let question = "eigenvalues and eigenvectors of a matrix";
    for command in ["recall", "chat"] {
        let output = sandbox.run(&[&[command, question], &at[..]].concat(), &[]).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        let printed = format!("{}{}", output.stdout, output.stderr);
        assert!(printed.contains("52;c;ZXZpbA=="), "{command}: {printed:?}");
        assert!(!printed.contains(['\x1b', '\x07', '\u{9b}']), "{command}: {printed:?}");
    }
}

#[tokio::test]
async fn output_whose_reader_left_ends_a_command_quietly() {
    let sandbox = Sandbox::new();
    let server = sandbox.start_serving(&[]).await;
    for arguments in [&["remember", "I like tea"][..], &["recall", "tea"], &["chat", "--no-memory", "hello"]] {
        let mut command = sandbox.command(&[arguments, &["--addr", &server.url]].concat(), &[]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let client = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = within_timeout("the client ends", client.wait_with_output()).await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
}

#[tokio::test]
async fn interactive_chat_keeps_its_session() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let mut command = sandbox.command(&["chat", "--addr", &server.url], &[]);
    command.stdin(Stdio::piped());
    let mut chat = Process::start(command);
    let mut keyboard = chat.child().stdin.take().unwrap();
    for (number, line) in ["hello\n", "\n", "and again\n"].iter().enumerate() {
        keyboard.write_all(line.as_bytes()).await.unwrap();
        if number != 1 {
            let answers = if number == 0 { 1 } else { 2 };
            chat.stderr.lines_with(" tokens]", answers).await;
        }
    }
    drop(keyboard);
    let output = chat.wait().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let logged = server.process.stderr.lines_with("StreamChat ended", 2).await;
    let session_of = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["span"]["session"].as_str().unwrap().to_owned()
    };
    let session = session_of(&logged[0]);
    assert_eq!(session_of(&logged[1]), session);
    let went_on = sandbox.run(&["chat", "--addr", &server.url, "--session", &session, "once more"], &[]).await;
    assert_eq!(went_on.code, Some(0), "{went_on:?}");
    assert!(server.process.stderr.lines_with("StreamChat ended", 3).await[2].contains(&session));
}

#[tokio::test]
async fn commands_explain_a_missing_server() {
    let sandbox = Sandbox::new();
    let port = ClosedPort::new();
    let url = format!("http://127.0.0.1:{}", port.number());
    for command in ["chat", "remember", "recall"] {
        let output = sandbox.run(&[command, "something", "--addr", &url], &[]).await;
        assert_eq!(output.code, Some(1), "{output:?}");
        for part in ["no server answers at", &url, "cargo run", "--addr"] {
            assert!(output.stderr.contains(part), "{part} is not in:\n{}", output.stderr);
        }
        assert_eq!(output.stdout, "");
    }
}

#[tokio::test]
async fn invalid_address_is_explained() {
    let sandbox = Sandbox::new();
    for (address, part) in [
        ("127.0.0.1:50051", "http://127.0.0.1:50051"),
        ("localhost", "http://127.0.0.1:50051"),
        ("ftp://localhost", "http://127.0.0.1:50051"),
        ("http://", "http://127.0.0.1:50051"),
        ("not an address", "http://127.0.0.1:50051"),
        ("https://localhost:1", "--ca-file"),
    ] {
        let output = sandbox.run(&["recall", "something", "--addr", address], &[]).await;
        assert_eq!(output.code, Some(1), "{address}: {output:?}");
        assert!(output.stderr.contains(part), "{address}: {}", output.stderr);
    }
}

#[tokio::test]
async fn client_prints_rejection_message_of_server() {
    let sandbox = Sandbox::new();
    let proxy = DatabaseProxy::new();
    let server = sandbox.start_listening(&[("DATABASE_URL", &proxy.unreachable_url())]).await;
    for (arguments, field) in
        [(["recall", " "], "query_text"), (["remember", ""], "content"), (["chat", " "], "message")]
    {
        let output = sandbox.run(&[&arguments[..], &["--addr", &server.url]].concat(), &[]).await;
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains(field), "{}", output.stderr);
    }
}

#[tokio::test]
async fn help_of_every_command_names_its_arguments() {
    let sandbox = Sandbox::new();
    let connection = ["--addr", "--ca-file", "--user"];
    let commands = [
        (&[][..], &["serve", "migrate", "chat", "remember", "recall", "import", "Examples:", ".env"][..]),
        (&["serve"], &["Usage:"]),
        (&["migrate"], &["DATABASE_ADMIN_URL", "DATABASE_URL"]),
        (&["chat"], &["MESSAGE", "--session", "--language", "--timezone", "--model", "--no-memory"]),
        (&["remember"], &["TEXT", "--tag"]),
        (&["recall"], &["QUERY", "--limit", "--min-score"]),
        (&["import"], &["PATH", "--tag", "--again", ".md", ".jsonl", "created_at"]),
    ];
    for (command, arguments) in commands {
        let output = sandbox.run(&[command, &["--help"]].concat(), &[]).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        let talks = matches!(command, ["chat" | "remember" | "recall" | "import"]);
        for argument in arguments.iter().chain(talks.then_some(&connection).into_iter().flatten()) {
            assert!(output.stdout.contains(argument), "{command:?}: {argument} is not in:\n{}", output.stdout);
        }
    }
}

#[tokio::test]
async fn migrate_requires_an_external_database() {
    let external = ExternalDatabase::new().await;
    let sandbox = Sandbox::new();
    let mut proxy = DatabaseProxy::new();
    external.connect_through(&mut proxy);
    let url = external.url(&proxy);
    for _again in 0..2 {
        let output = sandbox.run(&["migrate"], &[("DATABASE_URL", &url)]).await;
        assert_eq!((output.code, output.stdout.as_str()), (Some(0), "The tables are up to date."), "{output:?}");
    }
    proxy.close();
    let cut = sandbox.run(&["migrate"], &[("DATABASE_URL", &url)]).await;
    assert_eq!(cut.code, Some(1), "{cut:?}");
    assert!(cut.stderr.contains("the database cannot be reached"), "{}", cut.stderr);
    let output = sandbox.run(&["migrate"], &[]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("DATABASE_URL"), "{}", output.stderr);
    external.end().await;
}
