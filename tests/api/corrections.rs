//! Correcting, replacing, exporting: what is wrong is found no more, and nothing is lost.

use std::collections::BTreeMap;

use agent_service::proto::agent_v1 as pb;
use prost_types::FieldMask;
use sqlx::{Executor as _, Row as _};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{fake_provider::FakeProvider, harness::TestServer};

fn input(id: &str, content: &str) -> pb::MemoryInput {
    pb::MemoryInput { id: id.into(), content: content.into(), ..Default::default() }
}

fn turn(id: &str, second: i64, content: &str) -> pb::MemoryInput {
    pb::MemoryInput {
        created_at: Some(prost_types::Timestamp { seconds: 1_700_000_000 + second, nanos: 0 }),
        source_type: "chat".into(),
        metadata: [("session_id".to_owned(), "s".to_owned())].into(),
        ..input(id, content)
    }
}

async fn add(server: &TestServer, memories: Vec<pb::MemoryInput>) -> pb::AddMemoriesResponse {
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
    server.memory().add_memories(request).await.unwrap().into_inner()
}

async fn find(server: &TestServer, text: &str, alpha: f32) -> Vec<String> {
    let query = pb::MemoryQuery {
        user_id: "ann".into(),
        query_text: text.into(),
        hybrid_alpha: Some(alpha),
        min_score: 0.01,
        ..Default::default()
    };
    let found = server.agent().retrieve_memory(query).await.unwrap().into_inner();
    found.items.into_iter().map(|item| item.id).collect()
}

fn correction(id: &str, content: &str) -> pb::UpdateMemoryRequest {
    pb::UpdateMemoryRequest {
        user_id: "ann".into(),
        id: id.into(),
        content: Some(content.into()),
        ..Default::default()
    }
}

async fn update(server: &TestServer, request: pb::UpdateMemoryRequest) -> Result<pb::MemoryRecord, Status> {
    server.memory().update_memory(request).await.map(tonic::Response::into_inner)
}

async fn export(server: &TestServer, user: &str) -> BTreeMap<String, pb::MemoryRecord> {
    let request = pb::ExportMemoriesRequest { user_id: user.into() };
    let mut stream = server.memory().export_memories(request).await.unwrap().into_inner();
    let mut records = BTreeMap::new();
    while let Some(record) = stream.message().await.unwrap() {
        assert!(records.insert(record.id.clone(), record).is_none(), "each exactly once");
    }
    records
}

#[tokio::test]
async fn a_correction_is_found_at_once_and_what_was_wrong_only_in_the_export() {
    let server = TestServer::start(&[]).await;
    add(&server, vec![input("exam", "The exam is on zorkday"), input("other", "kat")]).await;
    let corrected = update(&server, correction("exam", "The exam is on blarkday")).await.unwrap();
    assert_eq!((corrected.content.as_str(), corrected.history.len()), ("The exam is on blarkday", 0));
    assert!(corrected.updated_at.unwrap().seconds >= corrected.created_at.unwrap().seconds);
    for alpha in [0.0, 0.5, 1.0] {
        assert_eq!(find(&server, "blarkday", alpha).await[0], "exam");
    }
    assert!(find(&server, "zorkday", 0.0).await.is_empty());

    let again = pb::UpdateMemoryRequest { tags: vec!["math".into()], content: None, ..correction("exam", "") };
    assert_eq!(update(&server, again.clone()).await.unwrap().tags, ["math"]);
    assert_eq!(update(&server, again).await.unwrap().tags, ["math"], "the same again changes nothing");
    let history = export(&server, "ann").await["exam"].history.clone();
    let told: Vec<_> = history.iter().map(|version| (version.content.as_str(), version.tags.len())).collect();
    assert_eq!(told, [("The exam is on zorkday", 0), ("The exam is on blarkday", 0)]);
}

#[tokio::test]
async fn a_mask_says_what_to_change_and_can_empty_it() {
    let server = TestServer::start(&[]).await;
    let tagged = pb::MemoryInput {
        tags: vec!["a".into()],
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        ..input("m", "text")
    };
    add(&server, vec![tagged]).await;
    let masked = |paths: &[&str], request: pb::UpdateMemoryRequest| pb::UpdateMemoryRequest {
        update_mask: Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
        ..request
    };
    let plain = || pb::UpdateMemoryRequest { user_id: "ann".into(), id: "m".into(), ..Default::default() };
    let emptied = update(&server, masked(&["tags"], correction("m", "ignored"))).await.unwrap();
    assert_eq!((emptied.content.as_str(), emptied.tags.len(), emptied.metadata.len()), ("text", 0, 1));
    let twice = masked(&["content", "metadata", "content", "metadata"], correction("m", "twice"));
    let twice = pb::UpdateMemoryRequest { metadata: [("k".to_owned(), "w".to_owned())].into(), ..twice };
    let named_twice = update(&server, twice).await.unwrap();
    assert_eq!((named_twice.content.as_str(), named_twice.metadata["k"].as_str()), ("twice", "w"));
    for (field, request) in [
        ("update_mask", plain()),
        ("update_mask", masked(&["id"], plain())),
        ("update_mask", masked(&[], correction("m", "x"))),
        ("content", masked(&["content"], plain())),
        ("content", correction("m", " ")),
        ("id", correction("", "x")),
    ] {
        let refused = update(&server, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    for nobodys in ["none", "M"] {
        assert_eq!(update(&server, correction(nobodys, "x")).await.unwrap_err().code(), Code::NotFound);
    }
    let of_another = pb::UpdateMemoryRequest { user_id: "bob".into(), ..correction("m", "x") };
    assert_eq!(update(&server, of_another).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_replaced_memory_is_kept_and_never_found() {
    let server = TestServer::start(&[]).await;
    add(&server, vec![input("old", "Ann lives in zork"), input("other", "Ann likes zork tea")]).await;
    let newer = pb::MemoryInput {
        supersedes: vec!["old".into(), "none".into(), "new".into()],
        ..input("new", "Ann lives in blark")
    };
    add(&server, vec![newer.clone()]).await;
    for alpha in [0.0, 0.5, 1.0] {
        let found = find(&server, "where does Ann live, zork or blark?", alpha).await;
        assert!(found.contains(&"new".to_owned()) && !found.contains(&"old".to_owned()), "{alpha}: {found:?}");
    }
    let exported = export(&server, "ann").await;
    assert_eq!((exported["old"].superseded_by.as_str(), exported["new"].superseded_by.as_str()), ("new", ""));
    // The same again is no change, also where only the replacing is told anew.
    assert_eq!(add(&server, vec![newer]).await.unchanged, 1);
    // What is corrected after it was replaced stays replaced, and what is stored anew is found again.
    update(&server, correction("old", "Ann lived in zork")).await.unwrap();
    assert!(!find(&server, "lived in zork", 0.5).await.contains(&"old".to_owned()));
    add(&server, vec![input("old", "Ann lives in zork again")]).await;
    assert!(find(&server, "lives in zork again", 0.5).await.contains(&"old".to_owned()));
}

#[tokio::test]
async fn a_memory_that_replaces_what_replaced_it_is_found_again() {
    let server = TestServer::start(&[]).await;
    let replacing =
        |id: &str, old: &str, content: &str| pb::MemoryInput { supersedes: vec![old.into()], ..input(id, content) };
    let found = async |text: &str| {
        let (words, meaning) = (find(&server, text, 0.0).await, find(&server, text, 1.0).await);
        assert_eq!(words.contains(&"tea".to_owned()), meaning.contains(&"tea".to_owned()), "by words and by meaning");
        words
    };
    add(&server, vec![input("tea", "Ann drinks zork tea")]).await;
    add(&server, vec![replacing("coffee", "tea", "Ann drinks blark coffee")]).await;
    assert_eq!(found("drinks zork tea").await, ["coffee"]);
    let whole = postings(&server).await;
    // There and back, word by word as it was.
    add(&server, vec![replacing("tea", "coffee", "Ann drinks zork tea")]).await;
    assert_eq!(found("drinks zork tea").await, ["tea"]);
    add(&server, vec![replacing("coffee", "tea", "Ann drinks blark coffee")]).await;
    assert_eq!((found("drinks zork tea").await, postings(&server).await), (vec!["coffee".to_owned()], whole));
    // And by a longer way.
    add(&server, vec![replacing("mate", "coffee", "Ann drinks frint mate")]).await;
    add(&server, vec![replacing("tea", "mate", "Ann drinks zork tea")]).await;
    assert_eq!(found("Ann drinks").await, ["tea"]);
    // Whoever replaces something else is not found again by that.
    add(&server, vec![input("milk", "milk"), replacing("mate", "milk", "Ann drinks frint mate")]).await;
    assert_eq!(found("Ann drinks").await, ["tea"]);
}

#[tokio::test]
async fn of_a_circle_that_a_request_closes_with_what_is_known_the_last_one_is_found() {
    let server = TestServer::start(&[]).await;
    let replacing =
        |id: &str, old: &str, content: &str| pb::MemoryInput { supersedes: vec![old.into()], ..input(id, content) };
    // That the first one is "tea" is known by its content alone.
    add(&server, vec![input("tea", "Ann drinks zork tea")]).await;
    let circle =
        vec![replacing("", "coffee", "Ann drinks zork tea"), replacing("coffee", "tea", "Ann drinks blark coffee")];
    add(&server, circle).await;
    for alpha in [0.0, 1.0] {
        assert_eq!(find(&server, "Ann drinks", alpha).await, ["coffee"]);
    }
    assert_eq!(export(&server, "ann").await["tea"].superseded_by, "coffee");

    // Coffee has replaced tea; now milk replaces coffee, and tea replaces milk, which is not there yet.
    let circle =
        vec![replacing("milk", "coffee", "Ann drinks frint milk"), replacing("tea", "milk", "Ann drinks zork tea")];
    add(&server, circle).await;
    for alpha in [0.0, 1.0] {
        assert_eq!(find(&server, "Ann drinks", alpha).await, ["tea"]);
    }

    // The other way round, with one between that is new as well.
    let circle = vec![
        replacing("water", "tea", "Ann drinks mok water"),
        replacing("juice", "water", "Ann drinks mok juice"),
        replacing("coffee", "juice", "Ann drinks blark coffee"),
    ];
    add(&server, circle).await;
    for alpha in [0.0, 1.0] {
        assert_eq!(find(&server, "Ann drinks", alpha).await, ["coffee"]);
    }
}

#[tokio::test]
async fn content_without_an_id_that_is_known_keeps_its_id_and_content_with_one_is_always_kept() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.embedding_variables()).await;
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    let first = add(&server, vec![input("", "tea"), input("", "tea")]).await;
    assert_eq!((first.added, first.unchanged, &first.ids[0]), (1, 1, &first.ids[1]));
    provider.requests.recv().await.unwrap();
    let again = add(&server, vec![input("", "tea")]).await;
    assert_eq!((again.ids[0].as_str(), again.added, again.unchanged), (first.ids[0].as_str(), 0, 1));
    assert!(provider.requests.try_recv().is_err(), "what is known is not embedded");
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    assert_eq!(add(&server, vec![input("mine", "tea")]).await.added, 1);
    // "Yes" in two conversations is two memories.
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]},{"embedding":[1,0]}]}"#).await;
    let said = |session: &str| pb::MemoryInput {
        metadata: [("session_id".to_owned(), session.to_owned())].into(),
        ..input("", "tea")
    };
    let said = add(&server, vec![said("one"), said("two"), said("one")]).await;
    assert_eq!((said.added, said.ids[0] == said.ids[2], said.ids[0] == said.ids[1]), (2, true, false));
    // What replaces something does so by the id that its content has.
    provider.refuse(200, r#"{"data":[{"embedding":[0,1]}]}"#).await;
    add(&server, vec![input("coffee", "coffee")]).await;
    let replacing = pb::MemoryInput { supersedes: vec!["coffee".into()], ..input("", "tea") };
    add(&server, vec![replacing]).await;
    let superseded_by = export(&server, "ann").await["coffee"].superseded_by.clone();
    assert!(superseded_by == first.ids[0] || superseded_by == "mine", "{superseded_by}");
}

#[tokio::test]
async fn two_writers_of_the_same_content_without_ids_keep_it_once() {
    let server = TestServer::start(&[]).await;
    let batch = || (0..50).map(|n| input("", &format!("fact number {n}"))).collect::<Vec<_>>();
    let (a, b) = tokio::join!(add(&server, batch()), add(&server, batch()));
    assert_eq!(a.ids, b.ids);
    assert_eq!(a.added + b.added, 50);
    assert_eq!(export(&server, "ann").await.len(), 50);
}

#[tokio::test]
async fn an_export_gives_everything_of_one_user_in_pages_that_nobody_sees() {
    let server = TestServer::start(&[]).await;
    add(&server, (0..450).map(|n| input(&format!("m{n}"), "kat")).collect()).await;
    let mine = export(&server, "ann").await;
    assert_eq!(mine.len(), 450);
    assert!(export(&server, "bob").await.is_empty());
    let refused = server.memory().export_memories(pb::ExportMemoriesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

/// What the index holds of each memory, from the tables.
async fn postings(server: &TestServer) -> Vec<(String, String, f32, f32)> {
    let mut behind = server.database.as_ref().unwrap().connect().await;
    let rows = behind
        .fetch_all("select memory_id, term, frequency, length from memory_postings order by memory_id, term")
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

#[tokio::test]
async fn a_turn_is_found_by_what_was_said_before_it_until_that_is_forgotten() {
    let server = TestServer::start(&[]).await;
    let turns = vec![
        turn("1", 10, "Have you ever seen a zork?"),
        turn("2", 20, "Yes, last summer!"),
        turn("3", 30, "How nice."),
        turn("4", 40, "And a blark?"),
    ];
    add(&server, turns).await;
    assert_eq!(find(&server, "zork", 0.0).await, ["1", "2", "3"], "the nearer the better, two turns far");
    let before = postings(&server).await;

    // A turn that comes late is put into its place.
    add(&server, vec![turn("1b", 15, "mok mok")]).await;
    assert_eq!(find(&server, "zork", 0.0).await, ["1", "1b", "2"]);
    let late = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids: vec!["1b".into()], ..Default::default() };
    server.memory().delete_memories(late).await.unwrap();
    assert_eq!(postings(&server).await, before, "and leaves nothing behind");

    // Correcting, replacing and forgetting reach the turns that told of it.
    update(&server, correction("1", "Have you ever seen a frint?")).await.unwrap();
    assert!(find(&server, "zork", 0.0).await.is_empty());
    assert_eq!(find(&server, "frint", 0.0).await, ["1", "2", "3"]);
    add(&server, vec![pb::MemoryInput { supersedes: vec!["1".into()], ..input("new", "kat") }]).await;
    assert!(find(&server, "frint", 0.0).await.is_empty());
    let blark = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids: vec!["4".into()], ..Default::default() };
    server.memory().delete_memories(blark).await.unwrap();

    // The index is what a new one would be.
    let kept = postings(&server).await;
    let mut behind = server.database.as_ref().unwrap().connect().await;
    behind.execute("truncate memory_users, memory_postings, memory_terms").await.unwrap();
    assert!(find(&server, "summer", 0.0).await.contains(&"2".to_owned()));
    assert_eq!(postings(&server).await, kept);
}

#[tokio::test]
async fn a_memory_is_found_by_its_day_and_its_speaker() {
    let server = TestServer::start(&[]).await;
    let told = |id: &str, second: i64, speaker: &str, content: &str| pb::MemoryInput {
        metadata: [("speaker".to_owned(), speaker.to_owned())].into(),
        ..turn(id, second, content)
    };
    let day = 86_400;
    add(&server, vec![told("a", 0, "Caroline", "I painted a lake"), told("b", 40 * day, "Melanie", "I ran a race")])
        .await;
    assert_eq!(find(&server, "Caroline", 0.0).await, ["a"]);
    assert_eq!(find(&server, "November", 0.0).await, ["a"]);
    assert_eq!(find(&server, "December", 0.0).await, ["b"]);
    let filter = Some(pb::MemoryFilter { source_types: vec!["chat".into()], ..Default::default() });
    let query = pb::MemoryQuery {
        user_id: "ann".into(),
        query_text: "what happened in December 2023?".into(),
        filter,
        ..Default::default()
    };
    let found = server.agent().retrieve_memory(query).await.unwrap().into_inner();
    assert_eq!(found.items[0].id, "b");
}

#[tokio::test]
async fn memories_that_replace_each_other_in_a_circle_are_refused() {
    let server = TestServer::start(&[]).await;
    let replacing = |id: &str, old: &str| pb::MemoryInput { supersedes: vec![old.into()], ..input(id, id) };
    let add = |memories| {
        let mut client = server.memory();
        async move { client.add_memories(pb::AddMemoriesRequest { user_id: "ann".into(), memories }).await }
    };
    let circle = vec![replacing("a", "b"), replacing("b", "c"), replacing("c", "a")];
    let refused = add(circle).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("memories[0].supersedes"), "{}", refused.message());
    let beside_a_circle = vec![input("x", "x"), replacing("a", "x"), replacing("b", "a"), replacing("a", "b")];
    let refused = add(beside_a_circle).await.unwrap_err();
    assert!(refused.message().contains("memories[1].supersedes"), "{}", refused.message());
    // The most that a call can name, which takes a moment and no more.
    let long = (0..1_000_u32).map(|n| {
        let old = (0..100).map(|k| format!("m{}", (n + k) % 1_001)).collect();
        pb::MemoryInput { supersedes: old, ..input(&format!("m{}", n + 1), "x") }
    });
    assert_eq!(add(long.collect()).await.unwrap_err().code(), Code::InvalidArgument);
    add(vec![replacing("b", "a"), input("a", "a"), replacing("c", "b"), replacing("d", "d")]).await.unwrap();
    let kept = export(&server, "ann").await;
    let superseded_by: Vec<_> = kept.values().map(|memory| memory.superseded_by.as_str()).collect();
    assert_eq!(superseded_by, ["b", "c", "", ""], "a chain is none, and nothing replaces itself");
}

#[tokio::test]
async fn a_document_that_comes_again_loses_no_correction_and_brings_nothing_back() {
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
    let (zork, blark) = (find(&server, "zork", 0.0).await[0].clone(), find(&server, "blark", 0.0).await[0].clone());
    update(&server, correction(&zork, "The zork is in Mozambique.")).await.unwrap();
    add(&server, vec![pb::MemoryInput { supersedes: vec![blark.clone()], ..input("newer", "kat") }]).await;
    ingest(vec!["tagged".into()]).await;
    let kept = export(&server, "ann").await;
    let told: Vec<_> = kept[&zork].history.iter().map(|version| version.content.as_str()).collect();
    assert!(told.iter().any(|text| text.contains("Mozambique")) && told.len() == 2, "{told:?}");
    assert!(find(&server, "Kenya", 0.5).await.contains(&zork));
    assert_eq!(kept[&blark].superseded_by, "newer");
    assert!(!find(&server, "blark", 0.5).await.contains(&blark), "what was replaced stays so");
}

#[tokio::test]
async fn a_name_of_a_conversation_that_is_too_long_is_kept_and_names_none() {
    let server = TestServer::start(&[]).await;
    let long: String = (0..9_000_u32).map(|n| char::from(b'a' + u8::try_from(n * 7919 % 26).unwrap())).collect();
    let odd = pb::MemoryInput { metadata: [("session".to_owned(), long.clone())].into(), ..input("m", "zork") };
    add(&server, vec![odd]).await;
    assert_eq!(find(&server, "zork", 0.5).await, ["m"]);
    assert_eq!(export(&server, "ann").await["m"].metadata["session"], long);
}

#[tokio::test]
async fn an_index_of_many_memories_is_made_part_by_part() {
    let server = TestServer::start(&[]).await;
    for part in 0..2 {
        add(
            &server,
            (0..600).map(|n| turn(&format!("m{part}-{n}"), part * 600 + n, &format!("zork number{n}"))).collect(),
        )
        .await;
    }
    let whole = postings(&server).await;
    let mut behind = server.database.as_ref().unwrap().connect().await;
    behind.execute("truncate memory_users, memory_postings, memory_terms").await.unwrap();
    // Somebody writes while there is no index yet, on either side of where it will have come to.
    add(&server, vec![turn("a", 5_000, "kat"), turn("z", 5_010, "kat")]).await;
    let forget =
        pb::DeleteMemoriesRequest { user_id: "ann".into(), ids: vec!["a".into(), "z".into()], ..Default::default() };
    server.memory().delete_memories(forget).await.unwrap();
    assert_eq!(find(&server, "number599", 0.0).await.len(), 4, "two, and the two turns after one of them");
    assert_eq!(postings(&server).await, whole);
}

#[tokio::test]
async fn a_correction_back_and_forth_leaves_the_vector_of_what_is_kept() {
    let server = TestServer::start(&[]).await;
    add(&server, vec![input("m", "apples and pears")]).await;
    let [there, back] = ["quantum fields", "apples and pears"].map(|text| update(&server, correction("m", text)));
    let (there, back) = tokio::join!(there, back);
    let (_, _) = (there.unwrap(), back.unwrap());
    let kept = export(&server, "ann").await["m"].content.clone();
    assert_eq!(find(&server, &kept, 1.0).await, ["m"]);
    let mut behind = server.database.as_ref().unwrap().connect().await;
    let right: bool =
        sqlx::query_scalar("select digest = content_digest from memory_vectors join memories on id = memory_id")
            .fetch_one(&mut behind)
            .await
            .unwrap();
    assert!(right, "the vector is of another text");
}

#[tokio::test]
async fn a_long_history_is_exported_in_records_that_a_client_can_read() {
    let server = TestServer::start(&[]).await;
    let text = |n: usize| format!("{n} {}", "x".repeat(60_000));
    add(&server, vec![input("m", &text(0))]).await;
    for n in 1..80 {
        update(&server, correction("m", &text(n))).await.unwrap();
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
