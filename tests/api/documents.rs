//! Documents: ingestion, chunks, citations, replacement, deletion.

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};
use sqlx::Executor as _;
use tonic::Code;

use crate::harness::{TestServer, ask, weighted_query};

const THREE_VECTORS: &str = r#"{"data":[{"embedding":[1,0]},{"embedding":[0,1]},{"embedding":[1,1]}]}"#;

const BOOK: &str = "\
# 线性代数

前言：本书介绍矩阵。

## 特征值

特征值满足 Av = λv。求特征值要解特征方程。

## Determinants

A determinant is zero exactly where the matrix is singular.
";

fn document(id: &str, content: &str) -> pb::IngestDocumentRequest {
    pb::IngestDocumentRequest {
        user_id: "ann".into(),
        document_id: id.into(),
        title: "线性代数教程".into(),
        content: content.into(),
        url: "https://example.com/book".into(),
        tags: vec!["math".into()],
        metadata: [("shelf".to_owned(), "3".to_owned())].into(),
    }
}

async fn ingest(server: &TestServer, document: pb::IngestDocumentRequest) -> i32 {
    let id = document.document_id.clone();
    let ingested = server.memory().ingest_document(document).await.unwrap().into_inner();
    assert_eq!(ingested.document_id, id);
    ingested.chunks
}

async fn find(server: &TestServer, text: &str) -> Vec<pb::MemoryItem> {
    server.retrieve(weighted_query(text, 0.0)).await.items
}

async fn delete_document(server: &TestServer, id: &str) -> i32 {
    let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), document_id: id.into(), ..Default::default() };
    server.memory().delete_memories(request).await.unwrap().into_inner().deleted
}

async fn chunks(server: &TestServer) -> Vec<pb::MemoryRecord> {
    let mut chunks = server.list_memories("ann").await;
    chunks.sort_by_key(|chunk| chunk.chunk_index);
    chunks
}

#[tokio::test]
async fn document_is_split_by_headings_into_located_chunks() {
    let server = TestServer::start(&[]).await;
    assert_eq!(ingest(&server, document("book", BOOK)).await, 3);
    let found = &find(&server, "特征方程").await[0];
    let metadata = |name: &str| found.metadata[name].as_str();
    assert_eq!(
        [
            metadata("document_id"),
            metadata("title"),
            metadata("section_title"),
            metadata("chunk_index"),
            metadata("source_type")
        ],
        ["book", "线性代数教程", "线性代数 > 特征值", "1", "document"]
    );
    assert_eq!([metadata("shelf"), metadata("tags"), metadata("url")], ["3", "math", "https://example.com/book"]);
    assert!(found.content.contains("Av = λv"));
    let all = chunks(&server).await;
    let indexes: Vec<i32> = all.iter().map(|chunk| chunk.chunk_index).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!((all[2].section_title.as_str(), all[2].title.as_str()), ("线性代数 > Determinants", "线性代数教程"));
    assert_eq!(find(&server, "教程").await.len(), 3);
}

#[tokio::test]
async fn turn_cites_document_title_section_and_chunk() {
    let server = TestServer::start(&[]).await;
    ingest(&server, document("book", BOOK)).await;
    let frames = server.chat(ask("what is a determinant?")).await.unwrap();
    let cited = frames.iter().find_map(|frame| match &frame.content {
        Some(Content::Citations(block)) => Some(block.citations[0].clone()),
        _ => None,
    });
    let cited = cited.unwrap();
    assert_eq!(
        [cited.file_id, cited.title, cited.section_title, cited.url, cited.source_type],
        ["book", "线性代数教程", "线性代数 > Determinants", "https://example.com/book", "document"]
    );
    assert_eq!(cited.chunk_index, 2);
}

#[tokio::test]
async fn reingested_document_embeds_only_changed_chunks() {
    let (mut provider, server) = TestServer::start_with_embedder().await;
    provider.respond(200, THREE_VECTORS).await;
    ingest(&server, document("book", BOOK)).await;
    let before = chunks(&server).await;
    assert_eq!(provider.requests.recv().await.unwrap().body["input"].as_array().unwrap().len(), 3);

    // An identical document writes nothing; a new title is indexed.
    ingest(&server, document("book", BOOK)).await;
    assert_eq!(chunks(&server).await, before);
    provider.respond(200, THREE_VECTORS).await;
    ingest(&server, pb::IngestDocumentRequest { title: "Zorkbook".into(), ..document("book", BOOK) }).await;
    provider.requests.recv().await.unwrap();
    assert_eq!((find(&server, "zorkbook").await.len(), find(&server, "教程").await.len()), (3, 0));
    provider.respond(200, THREE_VECTORS).await;
    ingest(&server, document("book", BOOK)).await;
    provider.requests.recv().await.unwrap();

    provider.respond(200, r#"{"data":[{"embedding":[0,1]}]}"#).await;
    let changed = BOOK.replace("is singular", "has no inverse");
    assert_eq!(ingest(&server, document("book", &changed)).await, 3);
    let input = provider.requests.recv().await.unwrap().body["input"].clone();
    assert_eq!(input.as_array().unwrap().len(), 1, "{input}");
    assert!(input[0].as_str().unwrap().starts_with("线性代数教程 > 线性代数 > Determinants\n"), "{input}");
    let after = chunks(&server).await;
    assert_eq!((&after[0].id, &after[1].id), (&before[0].id, &before[1].id), "unchanged chunks keep their ids");
    assert_ne!(after[2].id, before[2].id);
    assert!(find(&server, "singular").await.is_empty(), "the old text is still indexed");
    assert_eq!(find(&server, "inverse").await.len(), 1);

    // Chunks that only move keep their ids and vectors.
    provider.respond(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    assert_eq!(ingest(&server, document("book", &format!("Foreword.\n\n{changed}"))).await, 4);
    assert_eq!(provider.requests.recv().await.unwrap().body["input"].as_array().unwrap().len(), 1);
    assert_eq!(chunks(&server).await[3].id, after[2].id);
}

#[tokio::test]
async fn failed_reingestion_leaves_old_document_intact() {
    let (provider, server) = TestServer::start_with_embedder().await;
    provider.respond(200, THREE_VECTORS).await;
    ingest(&server, document("book", BOOK)).await;
    let before = chunks(&server).await;
    provider.respond(503, "").await;
    let rejected = server.memory().ingest_document(document("book", "Something else.")).await.unwrap_err();
    assert_eq!(rejected.code(), Code::Unavailable);
    assert_eq!(chunks(&server).await, before);
}

#[tokio::test]
async fn document_is_deleted_by_id_and_with_its_last_chunk() {
    let server = TestServer::start(&[]).await;
    ingest(&server, document("book", BOOK)).await;
    ingest(&server, document("notes", "Determinants again.")).await;
    assert_eq!(delete_document(&server, "book").await, 3);
    let left = chunks(&server).await;
    assert_eq!(left.iter().map(|chunk| chunk.document_id.as_str()).collect::<Vec<_>>(), ["notes"]);
    server.delete_memories(&[&left[0].id]).await;
    let mut owner = server.connect_as_owner().await;
    assert!(owner.fetch_all("select from documents").await.unwrap().is_empty());
    // A document without chunks can be deleted too.
    ingest(&server, document("book", BOOK)).await;
    owner.execute("delete from memories").await.unwrap();
    assert_eq!(delete_document(&server, "book").await, 0);
    assert!(owner.fetch_all("select from documents").await.unwrap().is_empty());
}

#[tokio::test]
async fn invalid_document_field_is_named() {
    let server = TestServer::start(&[]).await;
    let valid = || document("book", "text");
    for (field, request) in [
        ("document_id", pb::IngestDocumentRequest { document_id: String::new(), ..valid() }),
        ("document_id", pb::IngestDocumentRequest { document_id: "d".repeat(257), ..valid() }),
        ("title", pb::IngestDocumentRequest { title: "t".repeat(1_001), ..valid() }),
        ("content", pb::IngestDocumentRequest { content: " \n".into(), ..valid() }),
        ("content", pb::IngestDocumentRequest { content: "\u{FEFF}".into(), ..valid() }),
        ("content", pb::IngestDocumentRequest { content: "\u{FEFF}\n \u{FEFF}".into(), ..valid() }),
        ("content", pb::IngestDocumentRequest { content: "a\0b".into(), ..valid() }),
        ("content", pb::IngestDocumentRequest { content: "x".repeat(20_000_001), ..valid() }),
        ("url", pb::IngestDocumentRequest { url: "u".repeat(8_001), ..valid() }),
        ("tags[0]", pb::IngestDocumentRequest { tags: vec![" ".into()], ..valid() }),
    ] {
        let rejected = server.memory().ingest_document(request).await.unwrap_err();
        assert_eq!(rejected.code(), Code::InvalidArgument, "{field}");
        assert!(rejected.message().contains(field), "{field}: {}", rejected.message());
    }
}

#[tokio::test]
async fn long_document_is_stored_completely() {
    let server = TestServer::start(&[]).await;
    let text: String =
        (0..3_000).map(|n| format!("Sentence number {n} of a long story is here to be found.\n\n")).collect();
    let count = ingest(&server, document("long", &text)).await;
    assert!(count > 100, "{count}");
    let second = TestServer::start_on(&server.database().url, &[]).await;
    assert!(find(&second, "2999").await[0].content.contains("number 2999 "));
}
