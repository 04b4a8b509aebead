//! Documents: split, cited, replaced, forgotten.

use agent_service::proto::agent_v1::{self as pb, chat_response::Content};
use sqlx::Executor as _;
use tonic::Code;

use crate::harness::{TestServer, ask};

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
    let done = server.memory().ingest_document(document).await.unwrap().into_inner();
    assert_eq!(done.document_id, id);
    done.chunks
}

async fn find(server: &TestServer, text: &str) -> Vec<pb::MemoryItem> {
    let query = pb::MemoryQuery {
        user_id: "ann".into(),
        query_text: text.into(),
        hybrid_alpha: Some(0.0),
        ..Default::default()
    };
    server.agent().retrieve_memory(query).await.unwrap().into_inner().items
}

async fn chunks(server: &TestServer) -> Vec<pb::MemoryRecord> {
    let request = pb::ListMemoriesRequest { user_id: "ann".into(), page_size: 1000, ..Default::default() };
    let mut chunks = server.memory().list_memories(request).await.unwrap().into_inner().memories;
    chunks.sort_by_key(|chunk| chunk.chunk_index);
    chunks
}

#[tokio::test]
async fn a_document_is_split_by_its_headings_and_each_chunk_knows_its_place() {
    let server = TestServer::start(&[]).await;
    assert_eq!(ingest(&server, document("book", BOOK)).await, 3);
    let found = &find(&server, "特征方程").await[0];
    let told = |name: &str| found.metadata[name].as_str();
    assert_eq!(
        [told("document_id"), told("title"), told("section_title"), told("chunk_index"), told("source_type")],
        ["book", "线性代数教程", "线性代数 > 特征值", "1", "document"]
    );
    assert_eq!([told("shelf"), told("tags"), told("url")], ["3", "math", "https://example.com/book"]);
    assert!(found.content.contains("Av = λv"));
    let all = chunks(&server).await;
    let indexes: Vec<i32> = all.iter().map(|chunk| chunk.chunk_index).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!((all[2].section_title.as_str(), all[2].title.as_str()), ("线性代数 > Determinants", "线性代数教程"));
    // A chunk is found by its headings as well, which its text may not repeat.
    assert_eq!(find(&server, "教程").await.len(), 3);
}

#[tokio::test]
async fn a_turn_cites_document_title_section_and_place() {
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
async fn the_same_document_again_replaces_it_and_embeds_only_what_is_new() {
    let mut provider = crate::fake_provider::FakeProvider::start().await;
    let server = TestServer::start(&provider.embedding_variables()).await;
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]},{"embedding":[0,1]},{"embedding":[1,1]}]}"#).await;
    ingest(&server, document("book", BOOK)).await;
    let before = chunks(&server).await;
    assert_eq!(provider.requests.recv().await.unwrap().body["input"].as_array().unwrap().len(), 3);

    // The same again writes nothing, and another title is found at once.
    ingest(&server, document("book", BOOK)).await;
    assert_eq!(chunks(&server).await, before);
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]},{"embedding":[0,1]},{"embedding":[1,1]}]}"#).await;
    ingest(&server, pb::IngestDocumentRequest { title: "Zorkbook".into(), ..document("book", BOOK) }).await;
    provider.requests.recv().await.unwrap();
    assert_eq!((find(&server, "zorkbook").await.len(), find(&server, "教程").await.len()), (3, 0));
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]},{"embedding":[0,1]},{"embedding":[1,1]}]}"#).await;
    ingest(&server, document("book", BOOK)).await;
    provider.requests.recv().await.unwrap();

    provider.refuse(200, r#"{"data":[{"embedding":[0,1]}]}"#).await;
    let changed = BOOK.replace("is singular", "has no inverse");
    assert_eq!(ingest(&server, document("book", &changed)).await, 3);
    let asked = provider.requests.recv().await.unwrap().body["input"].clone();
    assert_eq!(asked.as_array().unwrap().len(), 1, "{asked}");
    assert!(asked[0].as_str().unwrap().starts_with("线性代数教程 > 线性代数 > Determinants\n"), "{asked}");
    let after = chunks(&server).await;
    assert_eq!((&after[0].id, &after[1].id), (&before[0].id, &before[1].id), "what did not change keeps its id");
    assert_ne!(after[2].id, before[2].id);
    assert!(find(&server, "singular").await.is_empty(), "and nothing of the old text is left");
    assert_eq!(find(&server, "inverse").await.len(), 1);

    // A paragraph before all others moves them, and they keep their vectors.
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    assert_eq!(ingest(&server, document("book", &format!("Foreword.\n\n{changed}"))).await, 4);
    assert_eq!(provider.requests.recv().await.unwrap().body["input"].as_array().unwrap().len(), 1);
    assert_eq!(chunks(&server).await[3].id, after[2].id);
}

#[tokio::test]
async fn a_failed_replacement_leaves_the_old_document_whole() {
    let provider = crate::fake_provider::FakeProvider::start().await;
    let server = TestServer::start(&provider.embedding_variables()).await;
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]},{"embedding":[0,1]},{"embedding":[1,1]}]}"#).await;
    ingest(&server, document("book", BOOK)).await;
    let before = chunks(&server).await;
    provider.refuse(503, "").await;
    let refused = server.memory().ingest_document(document("book", "Something else.")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(chunks(&server).await, before);
}

#[tokio::test]
async fn a_document_is_forgotten_with_its_last_chunk_and_by_its_name() {
    let server = TestServer::start(&[]).await;
    ingest(&server, document("book", BOOK)).await;
    ingest(&server, document("notes", "Determinants again.")).await;
    let by_name = pb::DeleteMemoriesRequest { user_id: "ann".into(), document_id: "book".into(), ..Default::default() };
    assert_eq!(server.memory().delete_memories(by_name).await.unwrap().into_inner().deleted, 3);
    let left = chunks(&server).await;
    assert_eq!(left.iter().map(|chunk| chunk.document_id.as_str()).collect::<Vec<_>>(), ["notes"]);
    let ids = vec![left[0].id.clone()];
    let by_id = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids, ..Default::default() };
    server.memory().delete_memories(by_id).await.unwrap();
    let mut behind = server.database.as_ref().unwrap().connect().await;
    assert!(behind.fetch_all("select from documents").await.unwrap().is_empty());
    // One that has no chunk is forgotten by its name all the same.
    ingest(&server, document("book", BOOK)).await;
    behind.execute("delete from memories").await.unwrap();
    let by_name = pb::DeleteMemoriesRequest { user_id: "ann".into(), document_id: "book".into(), ..Default::default() };
    assert_eq!(server.memory().delete_memories(by_name).await.unwrap().into_inner().deleted, 0);
    assert!(behind.fetch_all("select from documents").await.unwrap().is_empty());
}

#[tokio::test]
async fn each_broken_rule_of_a_document_names_its_field() {
    let server = TestServer::start(&[]).await;
    let good = || document("book", "text");
    for (field, request) in [
        ("document_id", pb::IngestDocumentRequest { document_id: String::new(), ..good() }),
        ("document_id", pb::IngestDocumentRequest { document_id: "d".repeat(257), ..good() }),
        ("title", pb::IngestDocumentRequest { title: "t".repeat(1_001), ..good() }),
        ("content", pb::IngestDocumentRequest { content: " \n".into(), ..good() }),
        ("content", pb::IngestDocumentRequest { content: "\u{FEFF}".into(), ..good() }),
        ("content", pb::IngestDocumentRequest { content: "\u{FEFF}\n \u{FEFF}".into(), ..good() }),
        ("content", pb::IngestDocumentRequest { content: "a\0b".into(), ..good() }),
        ("content", pb::IngestDocumentRequest { content: "x".repeat(20_000_001), ..good() }),
        ("url", pb::IngestDocumentRequest { url: "u".repeat(8_001), ..good() }),
        ("tags[0]", pb::IngestDocumentRequest { tags: vec![" ".into()], ..good() }),
    ] {
        let refused = server.memory().ingest_document(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert!(refused.message().contains(field), "{field}: {}", refused.message());
    }
}

#[tokio::test]
async fn a_long_document_is_kept_whole() {
    let server = TestServer::start(&[]).await;
    let text: String =
        (0..3_000).map(|n| format!("Sentence number {n} of a long story is here to be found.\n\n")).collect();
    let count = ingest(&server, document("long", &text)).await;
    assert!(count > 100, "{count}");
    let behind = TestServer::start_on(&server.database.as_ref().unwrap().url, &[]).await;
    assert!(find(&behind, "2999").await[0].content.contains("number 2999 "));
}
