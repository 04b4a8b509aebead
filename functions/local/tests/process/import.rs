//! `agent-local import`.

use std::{fs, io::Write as _, os::unix::fs::symlink, path::PathBuf};

use agent_service::proto::agent_v1 as pb;
use sqlx::{Connection as _, Executor as _};
use tokio::process::Command;

use crate::{
    process::{ClosedPort, Process, ProcessOutput, Sandbox, Signal, within_timeout},
    relay::{AfterLimit, Relay},
    server::{Server, USER},
};

fn import(sandbox: &Sandbox, url: &str, arguments: &[&str]) -> Command {
    sandbox.command(&[&["import", "--addr", url, "--user", USER], arguments].concat(), &[])
}

async fn imported(sandbox: &Sandbox, url: &str, arguments: &[&str]) -> ProcessOutput {
    Process::start(import(sandbox, url, arguments)).wait().await
}

fn write(sandbox: &Sandbox, path: &str, content: impl AsRef<[u8]>) {
    let path = sandbox.work().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn json_lines(contents: impl Iterator<Item = String>) -> String {
    contents.map(|content| serde_json::json!({ "content": content }).to_string() + "\n").collect()
}

fn journal(sandbox: &Sandbox) -> PathBuf {
    let mut files = fs::read_dir(sandbox.path().join(".local/state/agent-service/import")).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    file
}

async fn list_memories(server: &Server) -> Vec<pb::MemoryRecord> {
    let mut client = server.memory().await;
    let mut request = pb::ListMemoriesRequest { user_id: USER.to_owned(), page_size: 1_000, ..Default::default() };
    let mut memories = Vec::new();
    loop {
        let page = within_timeout("a list", client.list_memories(request.clone())).await.unwrap().into_inner();
        memories.extend(page.memories);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return memories;
        }
    }
}

fn assert_says(output: &ProcessOutput, code: i32, parts: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    for part in parts {
        assert!(output.stdout.contains(part), "{part} is not in:\n{}", output.stdout);
    }
}

#[tokio::test]
async fn folder_import_lists_skipped_files_with_reasons() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    write(&sandbox, "notes/algebra/eigen.md", "# Eigenvalues\n\nA matrix stretches its eigenvectors.\n");
    write(&sandbox, "notes/微积分.md", "# 微积分复习\n\n## 极限\n\n洛必达法则用于未定式。\n");
    write(&sandbox, "notes/plain.TXT", "Just a line of text.");
    write(&sandbox, "notes/binary.md", b"# \xff\xfe\x00");
    write(&sandbox, "notes/blank.md", "\u{FEFF} \n\n");
    write(&sandbox, "notes/huge.txt", vec![b'x'; 20_000_001]);
    write(&sandbox, "notes/photo.png", "no text");
    write(&sandbox, "notes/.hidden/secret.md", "hidden");
    symlink(sandbox.work(), sandbox.work().join("notes/circle")).unwrap();
    symlink("nowhere", sandbox.work().join("notes/broken.md")).unwrap();
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
    write(&sandbox, "notes/chat.jsonl", lines.join("\n"));

    let output = imported(&sandbox, &server.url, &["notes/", "--tag", "math"]).await;
    assert_says(
        &output,
        1,
        &[
            "Imported 3 documents (3 chunks) and 3 memories.",
            "Skipped 10:",
            "notes/binary.md: not UTF-8",
            "notes/blank.md: empty",
            "notes/broken.md: cannot be read",
            "notes/huge.txt: larger than 20 MB",
            "notes/chat.jsonl:2: expected value",
            "notes/chat.jsonl:5: content is longer than 64000 bytes",
            "notes/chat.jsonl:6: tags[0] is blank",
            "notes/chat.jsonl:7: unknown field `text`",
            "notes/circle: a link to a folder",
            "notes/photo.png: not .md",
        ],
    );
    assert!(!output.stdout.contains("hidden"), "{}", output.stdout);
    let memories = list_memories(&server).await;
    assert_eq!(memories.len(), 6, "{memories:?}");
    let with = |content: &str| memories.iter().find(|memory| memory.content.contains(content)).unwrap();
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
async fn import_skips_unchanged_files_unless_again() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    write(&sandbox, "notes/a.md", "# A\n\nthe old text");
    write(&sandbox, "notes/b.txt", "another text");
    write(&sandbox, "notes/chat.jsonl", "{\"content\": \"first\"}\nbad\n");
    write(&sandbox, "notes/photo.png", "no text");
    let first = imported(&sandbox, &server.url, &["notes"]).await;
    assert_says(&first, 1, &["Imported 2 documents (2 chunks) and 1 memory.", "chat.jsonl:2: not a JSON object"]);
    let before = list_memories(&server).await;

    let calls = || server.process.stderr.so_far().matches("AddMemories ended").count();
    let second = imported(&sandbox, &server.url, &["./notes"]).await;
    assert_says(
        &second,
        1,
        &[
            "Imported 0 documents (0 chunks) and 0 memories.",
            "3 files; --again",
            "1 line was skipped by an earlier import",
        ],
    );
    server.remember("a call after the imports").await;
    server.process.stderr.lines_with("AddMemories ended", 2).await;
    assert_eq!((calls(), server.process.stderr.so_far().matches("IngestDocument ended").count()), (2, 2));

    write(&sandbox, "notes/a.md", "# A\n\nthe new text");
    write(&sandbox, "notes/chat.jsonl", "{\"content\": \"first\"}\nbad\n{\"content\": \"second\"}\n");
    let third = imported(&sandbox, &server.url, &["notes"]).await;
    assert_says(&third, 1, &["Imported 1 document (1 chunk) and 1 memory.", "1 file; --again"]);
    let contents = server.remembered().await;
    assert_eq!(contents, ["# A\n\nthe new text", "a call after the imports", "another text", "first", "second"]);

    let again = imported(&sandbox, &server.url, &["notes", "--again"]).await;
    assert_says(&again, 1, &["2 documents (2 chunks) and 2 memories, 2 of which", "chat.jsonl:2: not a JSON object"]);
    assert_eq!(list_memories(&server).await.len(), before.len() + 2);
    let tagged = imported(&sandbox, &server.url, &["notes/b.txt", "notes/a.md", "--tag", "x"]).await;
    assert_says(&tagged, 0, &["Imported 2 documents (2 chunks) and 0 memories."]);
    let of_the_folder = imported(&sandbox, &server.url, &["notes/photo.png", "notes/b.txt", "--tag", "x"]).await;
    assert_says(&of_the_folder, 1, &["1 file; --again", "notes/photo.png: not .md"]);
}

#[tokio::test]
async fn import_resumes_after_lost_server_or_kill() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let relay = Relay::to(&server).await;
    write(&sandbox, "long.jsonl", json_lines((0..1_100).map(|n| format!("memory number {n}"))));

    relay.forward_calls(1, AfterLimit::Refuse);
    let lost = imported(&sandbox, &relay.url, &["long.jsonl"]).await;
    assert_says(&lost, 1, &["Imported 0 documents (0 chunks) and 500 memories."]);
    for part in ["error: the server is unavailable (going down)", "The same command resumes where it stopped."] {
        assert!(lost.stderr.contains(part), "{part} is not in:\n{}", lost.stderr);
    }
    assert_eq!(relay.calls(0).await, [500; 6], "one call, and five attempts of the next");

    relay.forward_calls(1, AfterLimit::Hang);
    let killed = Process::start(import(&sandbox, &relay.url, &["long.jsonl"]));
    relay.calls(2).await;
    killed.kill().await;
    let mut torn = fs::OpenOptions::new().append(true).open(journal(&sandbox)).unwrap();
    torn.write_all(b"{\"id\": \"long.js").unwrap();

    relay.forward_calls(usize::MAX, AfterLimit::Refuse);
    let output = imported(&sandbox, &relay.url, &["long.jsonl"]).await;
    assert_says(&output, 0, &["Imported 0 documents (0 chunks) and 100 memories."]);
    assert_eq!(relay.calls(0).await, [100]);
    assert_eq!(list_memories(&server).await.len(), 1_100);
    let unchanged = imported(&sandbox, &relay.url, &["long.jsonl"]).await;
    assert_says(&unchanged, 0, &["1 file; --again"]);
}

#[tokio::test]
async fn failing_server_stops_import_without_progress() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    write(&sandbox, "chat.jsonl", json_lines((0..3).map(|n| format!("memory {n}"))));
    write(&sandbox, "note.md", "a note");
    let mut admin = sandbox.connect_as_owner().await;
    admin.execute("alter table memories rename column tags to labels").await.unwrap();
    let stopped = imported(&sandbox, &server.url, &["chat.jsonl", "note.md"]).await;
    assert_says(&stopped, 1, &["Imported 0 documents (0 chunks) and 0 memories."]);
    assert!(stopped.stderr.contains("error: the server failed (the memory failed)"), "{stopped:?}");
    admin.execute("alter table memories rename column labels to tags").await.unwrap();
    admin.close().await.unwrap();
    let done = imported(&sandbox, &server.url, &["chat.jsonl", "note.md"]).await;
    assert_says(&done, 0, &["Imported 1 document (1 chunk) and 3 memories."]);
}

#[tokio::test]
async fn interrupted_import_reports_its_progress() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let relay = Relay::to(&server).await;
    write(&sandbox, "chat.jsonl", json_lines((0..501).map(|n| format!("memory number {n}"))));
    relay.forward_calls(1, AfterLimit::Hang);
    let interrupted = Process::start(import(&sandbox, &relay.url, &["chat.jsonl"]));
    relay.calls(2).await;
    interrupted.signal(Signal::INT);
    let output = interrupted.wait().await;
    assert_says(&output, 130, &["and 500 memories."]);
    assert!(output.stderr.contains("The same command resumes where it stopped."), "{}", output.stderr);
}

#[tokio::test]
async fn import_without_journal_warns() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    write(&sandbox, "a.md", "text");
    write(&sandbox, "state", "no folder");
    let state = sandbox.work().join("state");
    let mut command = import(&sandbox, &server.url, &["a.md"]);
    command.env("XDG_STATE_HOME", &state);
    let output = Process::start(command).wait().await;
    assert_says(&output, 0, &["Imported 1 document (1 chunk) and 0 memories."]);
    for part in ["warning: an interrupted import will start over", state.to_str().unwrap()] {
        assert!(output.stderr.contains(part), "{part} is not in:\n{}", output.stderr);
    }
}

#[tokio::test]
async fn files_with_the_same_id_do_not_replace_each_other() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    for folder in ["one", "two"] {
        write(&sandbox, &format!("{folder}/notes/a.md"), format!("text of {folder}"));
    }
    let output = imported(&sandbox, &server.url, &["one/notes", "two/notes", "one/notes/"]).await;
    assert_says(&output, 1, &["Imported 1 document", "two/notes/a.md: one/notes/a.md has the same id \"notes/a.md\""]);
    assert_eq!(server.remembered().await, ["text of one"]);
    let from_within = imported(&sandbox, &server.url, &["."]).await;
    assert_says(&from_within, 0, &["Imported 2 documents"]);
    let ids: Vec<_> = list_memories(&server).await.into_iter().map(|memory| memory.document_id).collect();
    assert!(ids.contains(&"work/two/notes/a.md".to_owned()), "{ids:?}");
}

#[tokio::test]
async fn invalid_arguments_are_reported_before_import() {
    let sandbox = Sandbox::new();
    let port = ClosedPort::new();
    let url = format!("http://127.0.0.1:{}", port.number());
    write(&sandbox, "a.md", "text");
    for (arguments, part) in [
        (&["a.md", "absent.md", "gone"][..], "error: absent.md does not exist\nerror: gone does not exist"),
        (&["a.md", "--tag", " "], "--tag is blank"),
        (&["a.md", "--user", "a/b"], "--user must not contain"),
        (&[], "PATH"),
    ] {
        let output = sandbox.run(&[&["import", "--addr", &url], arguments].concat(), &[]).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.stderr.contains(part), "{part} is not in:\n{}", output.stderr);
    }
    let output = imported(&sandbox, &url, &["a.md"]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("no server answers at"), "{}", output.stderr);
}

#[tokio::test]
async fn import_goes_on_after_a_limit_of_the_minute() {
    let (sandbox, server) = Sandbox::with_server(&[]).await;
    let relay = Relay::to(&server).await;
    write(&sandbox, "long.jsonl", json_lines((0..1_100).map(|n| format!("memory number {n}"))));
    relay.forward_calls(1, AfterLimit::LimitOnce);
    let output = imported(&sandbox, &relay.url, &["long.jsonl"]).await;
    assert_says(&output, 0, &["Imported 0 documents (0 chunks) and 1100 memories."]);
    assert_eq!(relay.calls(0).await, [500, 500, 500, 100], "one call is refused and repeated");
}

#[tokio::test]
async fn import_stops_at_a_budget_of_the_day_and_says_so() {
    let (sandbox, server) = Sandbox::with_server(&[("RATE_LIMITS", "embedded_bytes_per_day=10")]).await;
    write(&sandbox, "a.md", "tea");
    write(&sandbox, "b.md", "more than what is left");
    let output = imported(&sandbox, &server.url, &["a.md", "b.md"]).await;
    assert_says(&output, 1, &["Imported 1 document (1 chunk) and 0 memories."]);
    for part in ["at most 10 (embedded_bytes_per_day)", "The same command resumes where it stopped."] {
        assert!(output.stderr.contains(part), "{part} is not in:\n{}", output.stderr);
    }
}
