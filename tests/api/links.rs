//! URLs that clients show as links: what may be stored, and what is handed out.

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};
use sqlx::Executor as _;
use tonic::{Code, Status};

use crate::{
    harness::{TestServer, chat_request, memory_input, run_chat, weighted_query},
    updates::export,
};

const UNSAFE: [&str; 8] = [
    "javascript:alert(1)",
    " JavaScript:alert(1)",
    "java\tscript:alert(1)",
    "\u{1}javascript:alert(1)",
    "\u{a0}javascript:alert(1)",
    "data:text/html,hello",
    "file:///etc/passwd",
    "https://example.com/\r\nx",
];

const SAFE: [&str; 5] =
    ["", "HTTPS://example.com/book", "http://127.0.0.1/", "mailto:ann@example.com", "notes/chapter-1.md"];

fn document(url: &str, metadata_url: &str) -> pb::IngestDocumentRequest {
    pb::IngestDocumentRequest {
        user_id: "ann".into(),
        document_id: "book".into(),
        title: "Algebra".into(),
        content: "Eigenvalues satisfy Av = λv.".into(),
        url: url.into(),
        metadata: [("url".to_owned(), metadata_url.to_owned())].into(),
        ..Default::default()
    }
}

fn memory(url: &str) -> pb::MemoryInput {
    pb::MemoryInput {
        metadata: [("url".to_owned(), url.to_owned())].into(),
        ..memory_input("note", "Eigenvalues and eigenvectors belong together")
    }
}

/// The results of every call that stores a URL, each with the field that holds it.
async fn store(server: &TestServer, url: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let client = || server.memory();
    let ingested = |document| async move { client().ingest_document(document).await.map(drop) };
    let add =
        pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![memory("https://example.com"), memory(url)] };
    let update = pb::UpdateMemoryRequest {
        user_id: "ann".into(),
        id: "note".into(),
        metadata: memory(url).metadata,
        ..Default::default()
    };
    vec![
        ("url", ingested(document(url, "")).await),
        ("metadata.url", ingested(document("", url)).await),
        ("memories[1].metadata.url", client().add_memories(add).await.map(drop)),
        ("metadata.url", client().update_memory(update).await.map(drop)),
    ]
}

#[tokio::test]
async fn only_web_and_mail_urls_are_stored() {
    let server = TestServer::start(&[]).await;
    server.add_memories("ann", vec![memory("https://example.com/before")]).await;
    for url in UNSAFE {
        for (field, result) in store(&server, url).await {
            let refused = result.expect_err(url);
            assert_eq!(refused.code(), Code::InvalidArgument, "{field} {url:?}");
            assert!(refused.message().starts_with(&format!("{field} must be a URL")), "{}", refused.message());
            assert!(!refused.message().contains("alert"), "{}", refused.message());
        }
    }
    let stored = server.list_memories("ann").await;
    assert_eq!(
        stored.iter().map(|memory| memory.metadata["url"].as_str()).collect::<Vec<_>>(),
        ["https://example.com/before"]
    );
    for url in SAFE {
        for (field, result) in store(&server, url).await {
            assert!(result.is_ok(), "{field} {url:?}: {result:?}");
        }
    }
    // Only `url` becomes a link.
    let other = pb::MemoryInput {
        metadata: [("code".to_owned(), "javascript:void(0)".to_owned())].into(),
        ..memory_input("other", "A bookmarklet")
    };
    server.add_memories("ann", vec![other]).await;
}

#[tokio::test]
async fn unsafe_urls_of_earlier_versions_are_not_handed_out() {
    let server = TestServer::start(&[("LEARNING", "off")]).await;
    server.memory().ingest_document(document("https://example.com/book", "https://example.com")).await.unwrap();
    server.add_memories("ann", vec![memory("https://example.com/note")]).await;
    let asked = chat_request("r", "s", "What are eigenvalues?");
    let urls = |citations: &[pb::Citation]| citations.iter().map(|citation| citation.url.clone()).collect::<Vec<_>>();
    let cited = |frames: &[pb::ChatResponse]| {
        let block = frames.iter().find_map(|frame| match &frame.content {
            Some(Content::Citations(block)) => Some(urls(&block.citations)),
            _ => None,
        });
        block.unwrap()
    };
    let mut before = cited(&run_chat(&server, asked.clone()).await);
    before.sort();
    assert_eq!(before, ["https://example.com/book", "https://example.com/note"]);

    let mut owner = server.connect_as_owner().await;
    for statement in [
        "update documents set url = 'java' || chr(9) || 'script:alert(1)'",
        r#"update memories set metadata = jsonb_set(metadata::jsonb, '{url}', '"javascript:alert(1)"')"#,
    ] {
        owner.execute(statement).await.unwrap();
    }
    let again = cited(&run_chat(&server, chat_request("r2", "s2", "What are eigenvalues?")).await);
    assert!(again.len() >= 2 && again.iter().all(String::is_empty), "{again:?}");
    for item in server.retrieve(weighted_query("eigenvalues", 0.5)).await.items {
        assert!(!item.metadata.contains_key("url"), "{item:?}");
    }
    for record in server.list_memories("ann").await.into_iter().chain(export(&server, "ann").await.into_values()) {
        assert!(record.url.is_empty() && !record.metadata.contains_key("url"), "{record:?}");
    }
    // Of a turn that an earlier version stored, as one that was stored before the change stands for it.
    let turns = "update turns set record = convert_to(replace(convert_from(record, 'UTF8'), 'https://', 'javascript:'), 'UTF8')";
    owner.execute(turns).await.unwrap();
    let turn = server.get_session("s").await.unwrap().turns.remove(0);
    assert_eq!(urls(&turn.citations), ["", ""]);
}
