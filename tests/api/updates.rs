//! Updates, deduplication and export of memories.

use std::collections::BTreeMap;

use agent_service::proto::agent_v1 as pb;
use prost_types::FieldMask;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{TestServer, memory_input, weighted_query};

pub async fn find_ids(server: &TestServer, text: &str, alpha: f32) -> Vec<String> {
    let query = pb::MemoryQuery { min_score: 0.01, ..weighted_query(text, alpha) };
    server.retrieve(query).await.items.into_iter().map(|item| item.id).collect()
}

pub fn update_content(id: &str, content: &str) -> pb::UpdateMemoryRequest {
    pb::UpdateMemoryRequest {
        user_id: "ann".into(),
        id: id.into(),
        content: Some(content.into()),
        ..Default::default()
    }
}

pub async fn update(server: &TestServer, request: pb::UpdateMemoryRequest) -> Result<pb::MemoryRecord, Status> {
    server.memory().update_memory(request).await.map(tonic::Response::into_inner)
}

pub async fn export(server: &TestServer, user: &str) -> BTreeMap<String, pb::MemoryRecord> {
    let request = pb::ExportMemoriesRequest { user_id: user.into() };
    let mut stream = server.memory().export_memories(request).await.unwrap().into_inner();
    let mut records = BTreeMap::new();
    while let Some(record) = stream.message().await.unwrap() {
        assert!(records.insert(record.id.clone(), record).is_none(), "a memory was exported twice");
    }
    records
}

#[tokio::test]
async fn update_is_found_at_once_and_old_text_only_exported() {
    let server = TestServer::start(&[]).await;
    let memories = vec![memory_input("exam", "The exam is on zorkday"), memory_input("other", "kat")];
    server.add_memories("ann", memories).await;
    let corrected = update(&server, update_content("exam", "The exam is on blarkday")).await.unwrap();
    assert_eq!((corrected.content.as_str(), corrected.history.len()), ("The exam is on blarkday", 0));
    assert!(corrected.updated_at.unwrap().seconds >= corrected.created_at.unwrap().seconds);
    for alpha in [0.0, 0.5, 1.0] {
        assert_eq!(find_ids(&server, "blarkday", alpha).await[0], "exam");
    }
    assert!(find_ids(&server, "zorkday", 0.0).await.is_empty());

    let again = pb::UpdateMemoryRequest { tags: vec!["math".into()], content: None, ..update_content("exam", "") };
    assert_eq!(update(&server, again.clone()).await.unwrap().tags, ["math"]);
    assert_eq!(update(&server, again).await.unwrap().tags, ["math"], "an identical update changed the memory");
    let history = export(&server, "ann").await["exam"].history.clone();
    let versions: Vec<_> = history.iter().map(|version| (version.content.as_str(), version.tags.len())).collect();
    assert_eq!(versions, [("The exam is on zorkday", 0), ("The exam is on blarkday", 0)]);
}

#[tokio::test]
async fn update_mask_selects_and_clears_fields() {
    let server = TestServer::start(&[]).await;
    let tagged = pb::MemoryInput {
        tags: vec!["a".into()],
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        ..memory_input("m", "text")
    };
    server.add_memories("ann", vec![tagged]).await;
    let masked = |paths: &[&str], request: pb::UpdateMemoryRequest| pb::UpdateMemoryRequest {
        update_mask: Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
        ..request
    };
    let plain = || pb::UpdateMemoryRequest { user_id: "ann".into(), id: "m".into(), ..Default::default() };
    let cleared = update(&server, masked(&["tags"], update_content("m", "ignored"))).await.unwrap();
    assert_eq!((cleared.content.as_str(), cleared.tags.len(), cleared.metadata.len()), ("text", 0, 1));
    let repeated = masked(&["content", "metadata", "content", "metadata"], update_content("m", "twice"));
    let repeated = pb::UpdateMemoryRequest { metadata: [("k".to_owned(), "w".to_owned())].into(), ..repeated };
    let updated = update(&server, repeated).await.unwrap();
    assert_eq!((updated.content.as_str(), updated.metadata["k"].as_str()), ("twice", "w"));
    for (field, request) in [
        ("update_mask", plain()),
        ("update_mask", masked(&["id"], plain())),
        ("update_mask", masked(&[], update_content("m", "x"))),
        ("content", masked(&["content"], plain())),
        ("content", update_content("m", " ")),
        ("id", update_content("", "x")),
    ] {
        let rejected = update(&server, request).await.unwrap_err();
        assert_eq!(rejected.code(), Code::InvalidArgument, "{field}");
        assert_eq!(rejected.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    for unknown_id in ["none", "M"] {
        assert_eq!(update(&server, update_content(unknown_id, "x")).await.unwrap_err().code(), Code::NotFound);
    }
    let of_another = pb::UpdateMemoryRequest { user_id: "bob".into(), ..update_content("m", "x") };
    assert_eq!(update(&server, of_another).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn known_content_without_id_keeps_its_id() {
    let (mut provider, server) = TestServer::start_with_embedder().await;
    provider.respond(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    let first = server.add_memories("ann", vec![memory_input("", "tea"), memory_input("", "tea")]).await;
    assert_eq!((first.added, first.unchanged, &first.ids[0]), (1, 1, &first.ids[1]));
    provider.requests.recv().await.unwrap();
    let again = server.add_memories("ann", vec![memory_input("", "tea")]).await;
    assert_eq!((again.ids[0].as_str(), again.added, again.unchanged), (first.ids[0].as_str(), 0, 1));
    assert!(provider.requests.try_recv().is_err(), "known content was embedded again");
    provider.respond(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    assert_eq!(server.add_memories("ann", vec![memory_input("mine", "tea")]).await.added, 1);
    // The same content in two sessions is two memories.
    provider.respond(200, r#"{"data":[{"embedding":[1,0]},{"embedding":[1,0]}]}"#).await;
    let in_session = |session: &str| pb::MemoryInput {
        metadata: [("session_id".to_owned(), session.to_owned())].into(),
        ..memory_input("", "tea")
    };
    let added = server.add_memories("ann", vec![in_session("one"), in_session("two"), in_session("one")]).await;
    assert_eq!((added.added, added.ids[0] == added.ids[2], added.ids[0] == added.ids[1]), (2, true, false));
    // Known content supersedes under its existing id.
    provider.respond(200, r#"{"data":[{"embedding":[0,1]}]}"#).await;
    server.add_memories("ann", vec![memory_input("coffee", "coffee")]).await;
    let replacing = pb::MemoryInput { supersedes: vec!["coffee".into()], ..memory_input("", "tea") };
    server.add_memories("ann", vec![replacing]).await;
    let superseded_by = export(&server, "ann").await["coffee"].superseded_by.clone();
    assert!(superseded_by == first.ids[0] || superseded_by == "mine", "{superseded_by}");
}

#[tokio::test]
async fn concurrent_adds_of_same_content_store_it_once() {
    let server = TestServer::start(&[]).await;
    let batch = || (0..50).map(|n| memory_input("", &format!("fact number {n}"))).collect::<Vec<_>>();
    let (a, b) = tokio::join!(server.add_memories("ann", batch()), server.add_memories("ann", batch()));
    assert_eq!(a.ids, b.ids);
    assert_eq!(a.added + b.added, 50);
    assert_eq!(export(&server, "ann").await.len(), 50);
}

#[tokio::test]
async fn export_returns_every_memory_of_one_user() {
    let server = TestServer::start(&[]).await;
    server.add_memories("ann", (0..450).map(|n| memory_input(&format!("m{n}"), "kat")).collect()).await;
    let exported = export(&server, "ann").await;
    assert_eq!(exported.len(), 450);
    assert!(export(&server, "bob").await.is_empty());
    let rejected = server.memory().export_memories(pb::ExportMemoriesRequest::default()).await.unwrap_err();
    assert_eq!(rejected.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn reingested_document_keeps_updates_and_supersedes() {
    let server = TestServer::start(&[]).await;
    let ingest = |tags: Vec<String>| {
        let mut client = server.memory();
        let document = pb::IngestDocumentRequest {
            user_id: "ann".into(),
            document_id: "book".into(),
            content: "# One\n\nThe zork is in Kenya.\n\n# Two\n\nA blark.".into(),
            tags,
            ..Default::default()
        };
        async move { client.ingest_document(document).await.unwrap() }
    };
    ingest(Vec::new()).await;
    let (zork, blark) =
        (find_ids(&server, "zork", 0.0).await[0].clone(), find_ids(&server, "blark", 0.0).await[0].clone());
    update(&server, update_content(&zork, "The zork is in Mozambique.")).await.unwrap();
    let memories = vec![pb::MemoryInput { supersedes: vec![blark.clone()], ..memory_input("newer", "kat") }];
    server.add_memories("ann", memories).await;
    ingest(vec!["tagged".into()]).await;
    let exported = export(&server, "ann").await;
    let versions: Vec<_> = exported[&zork].history.iter().map(|version| version.content.as_str()).collect();
    assert!(versions.iter().any(|text| text.contains("Mozambique")) && versions.len() == 2, "{versions:?}");
    assert!(find_ids(&server, "Kenya", 0.5).await.contains(&zork));
    assert_eq!(exported[&blark].superseded_by, "newer");
    assert!(!find_ids(&server, "blark", 0.5).await.contains(&blark), "a superseded chunk became current");
}

#[tokio::test]
async fn concurrent_updates_leave_the_vector_of_stored_text() {
    let server = TestServer::start(&[]).await;
    server.add_memories("ann", vec![memory_input("m", "apples and pears")]).await;
    let [first, second] = ["quantum fields", "apples and pears"].map(|text| update(&server, update_content("m", text)));
    let (first, second) = tokio::join!(first, second);
    first.and(second).unwrap();
    let stored = export(&server, "ann").await["m"].content.clone();
    assert_eq!(find_ids(&server, &stored, 1.0).await, ["m"]);
    let mut owner = server.connect_as_owner().await;
    let is_current: bool =
        sqlx::query_scalar("select digest = content_digest from memory_vectors join memories on id = memory_id")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    assert!(is_current, "the vector belongs to another text");
}

#[tokio::test]
async fn long_history_is_exported_in_bounded_records() {
    let server = TestServer::start(&[]).await;
    let text = |n: usize| format!("{n} {}", "x".repeat(60_000));
    server.add_memories("ann", vec![memory_input("m", &text(0))]).await;
    for n in 1..80 {
        update(&server, update_content("m", &text(n))).await.unwrap();
    }
    let request = pb::ExportMemoriesRequest { user_id: "ann".into() };
    let mut stream = server.memory().export_memories(request).await.unwrap().into_inner();
    let (mut records, mut versions) = (0, Vec::new());
    while let Some(record) = stream.message().await.unwrap() {
        assert!(prost::Message::encoded_len(&record) < 4_000_000);
        assert!(record.id == "m" && record.content == text(79));
        records += 1;
        versions.extend(record.history.into_iter().map(|version| version.content));
    }
    assert!(records == 2 && versions.iter().enumerate().all(|(n, version)| *version == text(n)), "{records} records");
    assert_eq!(versions.len(), 79);
}
