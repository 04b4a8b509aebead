//! Budgets of a request: what is beyond them is refused before any work begins, and what is within them succeeds.

use agent_service::{
    memory::{MAX_MEMORY_TERMS, MAX_REQUEST_TERMS},
    proto::agent_v1 as pb,
};
use sqlx::Executor as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    harness::{TestServer, assert_index_consistent, memory_input, timestamp},
    updates::{update, update_content},
};

/// Words that occur nowhere else, of seven bytes with their space.
fn words(from: usize, count: usize) -> String {
    let letter =
        |number: usize, place: u32| char::from(b'a' + u8::try_from(number / 26_usize.pow(place) % 26).unwrap());
    let word = |number: usize| (0..5).map(|place| letter(number, place)).chain(['q']).collect::<String>();
    (from..from + count).map(word).collect::<Vec<_>>().join(" ")
}

/// Each with as many terms as words: no stemmer changes these.
fn random_memories(count: usize, terms: usize) -> Vec<pb::MemoryInput> {
    (0..count).map(|number| memory_input(&format!("m{number}"), &words(number * terms, terms))).collect()
}

fn assert_refused(status: &Status, field: &str, parts: &[&str]) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field, "{status:?}");
    assert!(status.get_details_retry_info().is_none(), "what always fails must not be tried again: {status:?}");
    for part in parts {
        assert!(status.message().contains(part), "{part} is not in: {}", status.message());
    }
}

async fn add(server: &TestServer, memories: Vec<pb::MemoryInput>) -> Result<pb::AddMemoriesResponse, Status> {
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
    server.memory().add_memories(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn add_beyond_the_budget_of_terms_is_refused_before_work() {
    let (mut embedder, server) = TestServer::start_with_embedder().await;
    let status = add(&server, random_memories(250, 9_000)).await.unwrap_err();
    assert_refused(&status, "memories", &["memories has about 225", "500000", "split it into several requests"]);
    assert!(embedder.take_requests().is_empty(), "the embedder was asked");
    assert!(server.list_memories("ann").await.is_empty());
}

#[tokio::test]
async fn memory_beyond_the_budget_of_terms_is_refused() {
    let (mut embedder, server) = TestServer::start_with_embedder().await;
    // Pairs of Chinese characters, none of which repeats.
    let many = ('\u{4E00}'..).take(MAX_MEMORY_TERMS + 1_000).collect::<String>();
    let status = add(&server, vec![memory_input("fine", "fine"), memory_input("m", &many)]).await.unwrap_err();
    assert_refused(&status, "memories[1].content", &["16000", "split it into several memories"]);
    let status = update(&server, update_content("fine", &many)).await.unwrap_err();
    assert_refused(&status, "content", &["16000"]);
    assert!(embedder.take_requests().is_empty(), "the embedder was asked");
}

#[tokio::test]
async fn document_beyond_a_budget_is_refused_before_work() {
    let (mut embedder, server) = TestServer::start_with_embedder().await;
    let document = |content: String| pb::IngestDocumentRequest {
        user_id: "ann".into(),
        document_id: "d".into(),
        content,
        ..Default::default()
    };
    let labels = [("long".to_owned(), "x".repeat(60_000))];
    let with_labels = pb::IngestDocumentRequest {
        metadata: labels.into(),
        ..document("# Heading\n\nA sentence that has some words.\n\n".repeat(2_000))
    };
    for (request, field, parts) in [
        (document(words(0, 1_000_000)), "content", &["distinct terms", "500000", "split"][..]),
        (document("# a\n\nb\n\n".repeat(30_000)), "content", &["30000 chunks", "20000", "split"]),
        (with_labels, "metadata", &["2000 chunks", "split the document"]),
    ] {
        let status = server.memory().ingest_document(request).await.unwrap_err();
        assert_refused(&status, field, parts);
    }
    assert!(embedder.take_requests().is_empty(), "the embedder was asked");
    assert!(server.list_memories("ann").await.is_empty());
}

/// Of a fifth of the budget: debug builds are slow.
#[tokio::test]
async fn large_request_within_the_budget_is_written_in_parts() {
    let server = TestServer::start(&[]).await;
    let count = MAX_REQUEST_TERMS / 5 / 5_000;
    let added = add(&server, random_memories(count, 4_990)).await.unwrap();
    assert_eq!(added.added, i32::try_from(count).unwrap());
    assert_index_consistent(&mut server.connect_as_owner().await).await;
    assert_eq!(add(&server, random_memories(count, 10)).await.unwrap().added, i32::try_from(count).unwrap());
    assert_index_consistent(&mut server.connect_as_owner().await).await;
}

fn turn(session: usize, id: &str, second: i64, content: &str) -> pb::MemoryInput {
    pb::MemoryInput {
        created_at: Some(timestamp(1_700_000_000 + second)),
        source_type: "chat".into(),
        metadata: [("session_id".to_owned(), format!("s{session}"))].into(),
        ..memory_input(id, content)
    }
}

#[tokio::test]
async fn write_before_many_stored_turns_is_refused_before_work() {
    let server = TestServer::start(&[]).await;
    let long = "long ".repeat(790);
    let stored = (0..150).map(|session| turn(session, &format!("late{session}"), 10, &long)).collect();
    add(&server, stored).await.unwrap();
    let early = |sessions: std::ops::Range<usize>| {
        sessions.map(|session| turn(session, &format!("early{session}"), 0, "hello"))
    };
    let status = add(&server, early(0..150).collect()).await.unwrap_err();
    assert_refused(&status, "memories", &["500000", "split it into several requests"]);
    add(&server, early(0..75).collect()).await.unwrap();
    add(&server, early(75..150).collect()).await.unwrap();
    assert_index_consistent(&mut server.connect_as_owner().await).await;
}

#[tokio::test]
async fn neighbours_of_a_turn_add_a_bounded_number_of_postings() {
    let server = TestServer::start(&[]).await;
    let turns = vec![
        turn(0, "a", 0, &words(0, 3_000)),
        turn(0, "b", 1, &words(3_000, 3_000)),
        turn(0, "c", 2, "short"),
        turn(0, "d", 3, &words(6_000, 3_000)),
    ];
    add(&server, turns).await.unwrap();
    let postings = crate::turn_index::postings(&server).await;
    let count = |id: &str| postings.iter().filter(|(memory, ..)| memory == id).count();
    assert!((200..=410).contains(&count("c")), "{} of the short turn", count("c"));
    assert!((3_000..=3_010).contains(&count("d")), "{} of a long turn, which has none of others", count("d"));
}

#[tokio::test]
async fn many_superseded_memories_of_a_request_are_refused() {
    let server = TestServer::start(&[]).await;
    let supersedes: Vec<String> = (0..100).map(|number| format!("old{number}")).collect();
    let memories = |count: usize| {
        let memory = |number: usize| pb::MemoryInput {
            supersedes: supersedes.clone(),
            ..memory_input(&format!("m{number}"), &format!("text {number}"))
        };
        (0..count).map(memory).collect::<Vec<_>>()
    };
    assert_refused(&add(&server, memories(11)).await.unwrap_err(), "memories.supersedes", &["1000"]);
    assert_eq!(add(&server, memories(10)).await.unwrap().added, 10);
}

#[tokio::test]
async fn deletion_that_stops_after_a_part_says_so() {
    let server = TestServer::start(&[]).await;
    let note = |id: String| pb::MemoryInput { source_type: "note".into(), ..memory_input(&id, "zork") };
    add(&server, (0..600).map(|number| note(format!("m{number}"))).collect()).await.unwrap();
    let kept = pb::MemoryInput { source_type: "diary".into(), ..memory_input("kept", "zork") };
    add(&server, vec![kept]).await.unwrap();
    // The error of Postgres after lock_timeout.
    let refuse = "create function refuse() returns trigger language plpgsql as $$ begin
                      if (select count(*) from memories) <= 101 then
                          raise 'refused' using errcode = 'lock_not_available';
                      end if;
                      return null;
                  end $$;
                  create trigger refuse before delete on memories for each statement execute function refuse()";
    let mut owner = server.connect_as_owner().await;
    owner.execute(refuse).await.unwrap();
    let filter = Some(pb::MemoryFilter { source_types: vec!["note".into()], ..Default::default() });
    let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), filter, ..Default::default() };
    let status = server.memory().delete_memories(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("not all of the memories were deleted"), "{status}");
    let status = server.memory().delete_memories(request.clone()).await.unwrap_err();
    assert!(status.message().contains("nothing was changed"), "{status}");
    owner.execute("drop trigger refuse on memories").await.unwrap();
    assert_eq!(server.memory().delete_memories(request).await.unwrap().into_inner().deleted, 100);
    assert_index_consistent(&mut owner).await;
}

#[tokio::test]
async fn large_deletion_is_made_in_parts() {
    let server = TestServer::start(&[]).await;
    for part in 0..2 {
        let turns = (0..600).map(|number| turn(0, &format!("m{part}-{number}"), part * 600 + number, "zork"));
        add(&server, turns.collect()).await.unwrap();
    }
    add(&server, vec![memory_input("note", "zork")]).await.unwrap();
    let filter = Some(pb::MemoryFilter { source_types: vec!["chat".into()], ..Default::default() });
    let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), filter, ..Default::default() };
    assert_eq!(server.memory().delete_memories(request).await.unwrap().into_inner().deleted, 1_200);
    assert_eq!(server.list_memories("ann").await.len(), 1);
    assert_index_consistent(&mut server.connect_as_owner().await).await;
}
