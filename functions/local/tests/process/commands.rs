//! The command line client against a running server.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::{
    database::{Elsewhere, Gate},
    server::{DeadPort, Home, Process, full_text, question_without_memory},
};

#[tokio::test]
async fn chat_prints_the_whole_answer_on_standard_output_and_statuses_beside_it() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let question = "帮我制定高数复习计划";
    let asked = home.run(&["chat", "--addr", &server.url, question], &[]).await;
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let frames = server.chat(question_without_memory(question)).await.rest().await.unwrap();
    assert_eq!(asked.stdout, full_text(&frames));
    for status in ["正在思考", "正在检索", "正在生成", " tokens]"] {
        assert!(asked.stderr.contains(status), "{status} is not in:\n{}", asked.stderr);
    }
}

#[tokio::test]
async fn what_is_remembered_is_recalled_and_grounds_an_answer() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let at = ["--addr", &server.url, "--user", "alice"];
    let remembered = home.run(&[&["remember", "I mix up eigenvalues and eigenvectors"], &at[..]].concat(), &[]).await;
    assert_eq!(remembered.code, Some(0), "{remembered:?}");
    let id = remembered.stdout.strip_prefix("Remembered as ").unwrap();

    let recalled = home.run(&[&["recall", "eigenvalues and eigenvectors"], &at[..]].concat(), &[]).await;
    assert_eq!(recalled.code, Some(0), "{recalled:?}");
    assert!(recalled.stdout.contains("I mix up eigenvalues and eigenvectors"), "{recalled:?}");
    assert!(recalled.stdout.contains(id), "{recalled:?}");

    let asked = home.run(&[&["chat", "What about my eigenvalues and eigenvectors?"], &at[..]].concat(), &[]).await;
    assert!(asked.stderr.contains("I mix up eigenvalues and eigenvectors"), "a citation: {asked:?}");

    let of_another = home.run(&["recall", "eigenvalues", "--addr", &server.url, "--user", "bob"], &[]).await;
    assert_eq!((of_another.code, of_another.stdout.as_str()), (Some(0), "Nothing found."));
}

#[tokio::test]
async fn an_interactive_chat_keeps_its_session() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let mut command = home.command(&["chat", "--addr", &server.url], &[]);
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
    let ended = chat.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let logged = server.process.stderr.lines_with("StreamChat ended", 2).await;
    let session_of = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["span"]["session"].as_str().unwrap().to_owned()
    };
    let session = session_of(&logged[0]);
    assert_eq!(session_of(&logged[1]), session);
    let went_on = home.run(&["chat", "--addr", &server.url, "--session", &session, "once more"], &[]).await;
    assert_eq!(went_on.code, Some(0), "{went_on:?}");
    assert!(server.process.stderr.lines_with("StreamChat ended", 3).await[2].contains(&session));
}

#[tokio::test]
async fn without_a_server_every_command_says_so_and_what_to_do() {
    let home = Home::new();
    let port = DeadPort::new();
    let url = format!("http://127.0.0.1:{}", port.number());
    for command in ["chat", "remember", "recall"] {
        let ended = home.run(&[command, "something", "--addr", &url], &[]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for part in ["no server answers at", &url, "cargo run", "--addr"] {
            assert!(ended.stderr.contains(part), "{part} is not in:\n{}", ended.stderr);
        }
        assert_eq!(ended.stdout, "");
    }
}

#[tokio::test]
async fn an_address_that_can_not_be_used_is_explained() {
    let home = Home::new();
    for (address, part) in [
        ("127.0.0.1:50051", "http://127.0.0.1:50051"),
        ("localhost", "http://127.0.0.1:50051"),
        ("ftp://localhost", "http://127.0.0.1:50051"),
        ("http://", "http://127.0.0.1:50051"),
        ("not an address", "http://127.0.0.1:50051"),
        ("https://localhost:1", "--ca-file"),
    ] {
        let ended = home.run(&["recall", "something", "--addr", address], &[]).await;
        assert_eq!(ended.code, Some(1), "{address}: {ended:?}");
        assert!(ended.stderr.contains(part), "{address}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_refusal_of_the_server_is_told_in_its_words() {
    let home = Home::new();
    let gate = Gate::new();
    let server = home.listening(&[("DATABASE_URL", &gate.dead_url())]).await;
    for (arguments, field) in
        [(["recall", " "], "query_text"), (["remember", ""], "content"), (["chat", " "], "message")]
    {
        let ended = home.run(&[&arguments[..], &["--addr", &server.url]].concat(), &[]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(field), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn help_of_every_command_names_its_arguments() {
    let home = Home::new();
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
        let ended = home.run(&[command, &["--help"]].concat(), &[]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let talks = matches!(command, ["chat" | "remember" | "recall" | "import"]);
        for argument in arguments.iter().chain(talks.then_some(&connection).into_iter().flatten()) {
            assert!(ended.stdout.contains(argument), "{command:?}: {argument} is not in:\n{}", ended.stdout);
        }
    }
}

#[tokio::test]
async fn migrate_makes_the_tables_of_a_database_elsewhere_and_has_nothing_to_do_without_one() {
    let elsewhere = Elsewhere::new().await;
    let home = Home::new();
    let mut gate = Gate::new();
    elsewhere.behind(&mut gate);
    let url = elsewhere.url(&gate);
    for _again in 0..2 {
        let ended = home.run(&["migrate"], &[("DATABASE_URL", &url)]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "The tables are up to date."), "{ended:?}");
    }
    gate.close();
    let cut = home.run(&["migrate"], &[("DATABASE_URL", &url)]).await;
    assert_eq!(cut.code, Some(1), "{cut:?}");
    assert!(cut.stderr.contains("the database can not be reached"), "{}", cut.stderr);
    let ended = home.run(&["migrate"], &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("DATABASE_URL"), "{}", ended.stderr);
    elsewhere.end().await;
}
