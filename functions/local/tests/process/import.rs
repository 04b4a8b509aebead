//! `agent-local import`.

use std::{fs, io::Write as _, os::unix::fs::symlink, path::PathBuf};

use agent_service::{postgres::embedded, proto::agent_v1 as pb};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::process::Command;

use crate::{
    relay::{Relay, Then},
    server::{DeadPort, Ended, Home, Process, Server, Signal, USER, soon},
};

/// An import into a server, with paths below the working directory.
fn import(home: &Home, url: &str, arguments: &[&str]) -> Command {
    home.command(&[&["import", "--addr", url, "--user", USER], arguments].concat(), &[])
}

async fn imported(home: &Home, url: &str, arguments: &[&str]) -> Ended {
    Process::start(import(home, url, arguments)).ended().await
}

/// Writes a file below the working directory.
fn write(home: &Home, path: &str, content: impl AsRef<[u8]>) {
    let path = home.work().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Lines with a memory each.
fn json_lines(contents: impl Iterator<Item = String>) -> String {
    contents.map(|content| serde_json::json!({ "content": content }).to_string() + "\n").collect()
}

/// The only journal there is.
fn journal(home: &Home) -> PathBuf {
    let mut files = fs::read_dir(home.path().join(".local/state/agent-service/import")).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    file
}

async fn kept(server: &Server) -> Vec<pb::MemoryRecord> {
    let mut client = server.memory().await;
    let mut request = pb::ListMemoriesRequest { user_id: USER.to_owned(), page_size: 1_000, ..Default::default() };
    let mut kept = Vec::new();
    loop {
        let page = soon("a list", client.list_memories(request.clone())).await.unwrap().into_inner();
        kept.extend(page.memories);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return kept;
        }
    }
}

fn assert_says(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for part in parts {
        assert!(ended.stdout.contains(part), "{part} is not in:\n{}", ended.stdout);
    }
}

#[tokio::test]
async fn a_folder_is_imported_and_what_can_not_be_is_listed_with_its_reason() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    write(&home, "notes/algebra/eigen.md", "# Eigenvalues\n\nA matrix stretches its eigenvectors.\n");
    write(&home, "notes/微积分.md", "# 微积分复习\n\n## 极限\n\n洛必达法则用于未定式。\n");
    write(&home, "notes/plain.TXT", "Just a line of text.");
    write(&home, "notes/binary.md", b"# \xff\xfe\x00");
    write(&home, "notes/blank.md", "\u{FEFF} \n\n");
    write(&home, "notes/huge.txt", vec![b'x'; 20_000_001]);
    write(&home, "notes/photo.png", "no text");
    write(&home, "notes/.hidden/secret.md", "hidden");
    symlink(home.work(), home.work().join("notes/circle")).unwrap();
    symlink("nowhere", home.work().join("notes/broken.md")).unwrap();
    let long = "x".repeat(64_001);
    let lines = [
        r#"{"content": "I like proofs", "id": "line-1", "sourceType": "chat", "tags": ["own"], "metadata": {"speaker": "Ann"}}"#,
        r#"{"content": }"#,
        "",
        r#"{"content": "我喜欢证明", "created_at": "2026-01-31T08:00:00Z"}"#,
        &format!(r#"{{"content": "{long}"}}"#),
        r#"{"content": "a tag of nothing", "tags": [" "]}"#,
        r#"{"text": "of another form"}"#,
        r#"{"content": "the last line has no end"}"#,
    ];
    write(&home, "notes/chat.jsonl", lines.join("\n"));

    let ended = imported(&home, &server.url, &["notes/", "--tag", "math"]).await;
    assert_says(
        &ended,
        1,
        &[
            "Imported 3 documents (3 chunks) and 3 memories.",
            "Skipped 10:",
            "notes/binary.md: not UTF-8",
            "notes/blank.md: empty",
            "notes/broken.md: can not be read",
            "notes/huge.txt: larger than 20 MB",
            "notes/chat.jsonl:2: expected value",
            "notes/chat.jsonl:5: content is longer than 64000 bytes",
            "notes/chat.jsonl:6: tags[0] is blank",
            "notes/chat.jsonl:7: unknown field `text`",
            "notes/circle: a link to a folder",
            "notes/photo.png: not .md",
        ],
    );
    assert!(!ended.stdout.contains("hidden"), "{}", ended.stdout);
    let kept = kept(&server).await;
    assert_eq!(kept.len(), 6, "{kept:?}");
    let with = |content: &str| kept.iter().find(|memory| memory.content.contains(content)).unwrap();
    for (content, document, title) in [
        ("stretches", "notes/algebra/eigen.md", "Eigenvalues"),
        ("洛必达", "notes/微积分.md", "微积分复习"),
        ("Just a line", "notes/plain.TXT", "plain"),
    ] {
        let chunk = with(content);
        assert_eq!((chunk.document_id.as_str(), chunk.title.as_str()), (document, title));
        assert_eq!(chunk.tags, ["math"]);
    }
    let line = with("I like proofs");
    assert_eq!((line.id.as_str(), line.source_type.as_str(), &line.metadata["speaker"][..]), ("line-1", "chat", "Ann"));
    assert_eq!(line.tags, ["own", "math"]);
    assert_eq!(with("我喜欢证明").created_at.unwrap().seconds, 1_769_846_400);
}

#[tokio::test]
async fn what_is_done_is_not_done_again_unless_it_changed_or_is_asked_for() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    write(&home, "notes/a.md", "# A\n\nthe old text");
    write(&home, "notes/b.txt", "another text");
    write(&home, "notes/chat.jsonl", "{\"content\": \"first\"}\nbad\n");
    write(&home, "notes/photo.png", "no text");
    let first = imported(&home, &server.url, &["notes"]).await;
    assert_says(&first, 1, &["Imported 2 documents (2 chunks) and 1 memory.", "chat.jsonl:2: not a JSON object"]);
    let before = kept(&server).await;

    let calls = || server.process.stderr.so_far().matches("AddMemories ended").count();
    let second = imported(&home, &server.url, &["./notes"]).await;
    assert_says(
        &second,
        1,
        &[
            "Imported 0 documents (0 chunks) and 0 memories.",
            "3 files; --again",
            "1 line was skipped by an import before",
        ],
    );
    server.remember("a call after the imports").await;
    server.process.stderr.lines_with("AddMemories ended", 2).await;
    assert_eq!((calls(), server.process.stderr.so_far().matches("IngestDocument ended").count()), (2, 2));

    write(&home, "notes/a.md", "# A\n\nthe new text");
    write(&home, "notes/chat.jsonl", "{\"content\": \"first\"}\nbad\n{\"content\": \"second\"}\n");
    let third = imported(&home, &server.url, &["notes"]).await;
    assert_says(&third, 1, &["Imported 1 document (1 chunk) and 1 memory.", "1 file; --again"]);
    let contents = server.remembered().await;
    assert_eq!(contents, ["# A\n\nthe new text", "a call after the imports", "another text", "first", "second"]);

    let again = imported(&home, &server.url, &["notes", "--again"]).await;
    assert_says(&again, 1, &["2 documents (2 chunks) and 2 memories, 2 of which", "chat.jsonl:2: not a JSON object"]);
    assert_eq!(kept(&server).await.len(), before.len() + 2);
    let tagged = imported(&home, &server.url, &["notes/b.txt", "notes/a.md", "--tag", "x"]).await;
    assert_says(&tagged, 0, &["Imported 2 documents (2 chunks) and 0 memories."]);
    let of_the_folder = imported(&home, &server.url, &["notes/photo.png", "notes/b.txt", "--tag", "x"]).await;
    assert_says(&of_the_folder, 1, &["1 file; --again", "notes/photo.png: not .md"]);
}

#[tokio::test]
async fn an_import_that_lost_its_server_or_was_killed_goes_on_where_it_stopped() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let relay = Relay::to(&server).await;
    write(&home, "long.jsonl", json_lines((0..1_100).map(|n| format!("memory number {n}"))));

    relay.pass_on(1, Then::Refuse);
    let lost = imported(&home, &relay.url, &["long.jsonl"]).await;
    assert_says(&lost, 1, &["Imported 0 documents (0 chunks) and 500 memories."]);
    for part in ["error: the server is out of reach (going down)", "The same command goes on where it stopped."] {
        assert!(lost.stderr.contains(part), "{part} is not in:\n{}", lost.stderr);
    }
    assert_eq!(relay.calls(0).await, [500; 6], "a call and five tries of the next");

    relay.pass_on(1, Then::Hang);
    let killed = Process::start(import(&home, &relay.url, &["long.jsonl"]));
    relay.calls(2).await;
    killed.kill().await;
    let mut torn = fs::OpenOptions::new().append(true).open(journal(&home)).unwrap();
    torn.write_all(b"{\"id\": \"long.js").unwrap();

    relay.pass_on(usize::MAX, Then::Refuse);
    let ended = imported(&home, &relay.url, &["long.jsonl"]).await;
    assert_says(&ended, 0, &["Imported 0 documents (0 chunks) and 100 memories."]);
    assert_eq!(relay.calls(0).await, [100]);
    assert_eq!(kept(&server).await.len(), 1_100);
    let unchanged = imported(&home, &relay.url, &["long.jsonl"]).await;
    assert_says(&unchanged, 0, &["1 file; --again"]);
}

#[tokio::test]
async fn a_server_that_fails_stops_the_import_and_nothing_counts_as_done() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    write(&home, "chat.jsonl", json_lines((0..3).map(|n| format!("memory {n}"))));
    write(&home, "note.md", "a note");
    let options = embedded::connect_options(&home.data()).unwrap();
    let mut behind = PgConnection::connect_with(&options).await.unwrap();
    behind.execute("alter table memories rename column tags to labels").await.unwrap();
    let stopped = imported(&home, &server.url, &["chat.jsonl", "note.md"]).await;
    assert_says(&stopped, 1, &["Imported 0 documents (0 chunks) and 0 memories."]);
    assert!(stopped.stderr.contains("error: the server failed (the memory failed)"), "{stopped:?}");
    behind.execute("alter table memories rename column labels to tags").await.unwrap();
    behind.close().await.unwrap();
    let done = imported(&home, &server.url, &["chat.jsonl", "note.md"]).await;
    assert_says(&done, 0, &["Imported 1 document (1 chunk) and 3 memories."]);
}

#[tokio::test]
async fn an_import_that_is_interrupted_tells_how_far_it_came() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    let relay = Relay::to(&server).await;
    write(&home, "chat.jsonl", json_lines((0..501).map(|n| format!("memory number {n}"))));
    relay.pass_on(1, Then::Hang);
    let interrupted = Process::start(import(&home, &relay.url, &["chat.jsonl"]));
    relay.calls(2).await;
    interrupted.signal(Signal::INT);
    let ended = interrupted.ended().await;
    assert_says(&ended, 130, &["and 500 memories."]);
    assert!(ended.stderr.contains("The same command goes on where it stopped."), "{}", ended.stderr);
}

#[tokio::test]
async fn without_a_journal_the_import_is_done_with_a_warning() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    write(&home, "a.md", "text");
    write(&home, "state", "no folder");
    let state = home.work().join("state");
    let mut command = import(&home, &server.url, &["a.md"]);
    command.env("XDG_STATE_HOME", &state);
    let ended = Process::start(command).ended().await;
    assert_says(&ended, 0, &["Imported 1 document (1 chunk) and 0 memories."]);
    for part in ["warning: an interrupted import will start over", state.to_str().unwrap()] {
        assert!(ended.stderr.contains(part), "{part} is not in:\n{}", ended.stderr);
    }
}

#[tokio::test]
async fn files_of_the_same_id_do_not_replace_each_other() {
    let home = Home::new();
    let server = home.serving(&[]).await;
    for folder in ["one", "two"] {
        write(&home, &format!("{folder}/notes/a.md"), format!("text of {folder}"));
    }
    let ended = imported(&home, &server.url, &["one/notes", "two/notes", "one/notes/"]).await;
    assert_says(&ended, 1, &["Imported 1 document", "two/notes/a.md: one/notes/a.md has the same id \"notes/a.md\""]);
    assert_eq!(server.remembered().await, ["text of one"]);
    let from_within = imported(&home, &server.url, &["."]).await;
    assert_says(&from_within, 0, &["Imported 2 documents"]);
    let ids: Vec<_> = kept(&server).await.into_iter().map(|memory| memory.document_id).collect();
    assert!(ids.contains(&"work/two/notes/a.md".to_owned()), "{ids:?}");
}

#[tokio::test]
async fn wrong_arguments_are_told_before_anything_is_imported() {
    let home = Home::new();
    let port = DeadPort::new();
    let url = format!("http://127.0.0.1:{}", port.number());
    write(&home, "a.md", "text");
    for (arguments, part) in [
        (&["a.md", "absent.md", "gone"][..], "error: absent.md does not exist\nerror: gone does not exist"),
        (&["a.md", "--tag", " "], "--tag is blank"),
        (&["a.md", "--user", "a/b"], "--user must not contain"),
        (&[], "PATH"),
    ] {
        let ended = home.run(&[&["import", "--addr", &url], arguments].concat(), &[]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(part), "{part} is not in:\n{}", ended.stderr);
    }
    let ended = imported(&home, &url, &["a.md"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no server answers at"), "{}", ended.stderr);
}
