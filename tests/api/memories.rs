//! Memories: add, retrieve, list, delete.

use agent_service::proto::agent_v1::{self as pb, memory_service_client::MemoryServiceClient};
use prost_types::Timestamp;
use sqlx::Executor as _;
use tonic::Code;

use crate::harness::{TestServer, config, ids, memory_input, memory_query, timestamp, weighted_query};

#[tokio::test]
async fn stored_memory_is_found_with_all_its_fields() {
    let server = TestServer::start(&[]).await;
    let memory = pb::MemoryInput {
        tags: vec!["math".into(), "exam".into()],
        source_type: "fact".into(),
        created_at: Some(Timestamp { seconds: -5, nanos: 250_000_000 }),
        metadata: [("url".to_owned(), "https://example.com".to_owned())].into(),
        ..memory_input("m1", "I mix up eigenvalues and eigenvectors")
    };
    assert_eq!(server.add_memories("ann", vec![memory]).await.ids, ["m1"]);
    let found = server.retrieve(memory_query("ann", "eigenvalues")).await;
    assert_eq!((ids(&found), found.total_found), (vec!["m1"], 1));
    let item = &found.items[0];
    assert_eq!(item.content, "I mix up eigenvalues and eigenvectors");
    assert!(item.score > 0.3 && item.score <= 1.0);
    assert_eq!(item.created_at, Some(Timestamp { seconds: -5, nanos: 250_000_000 }));
    assert_eq!((item.metadata["source_type"].as_str(), item.metadata["tags"].as_str()), ("fact", "math,exam"));
    assert_eq!(item.metadata["url"], "https://example.com");
}

#[tokio::test]
async fn same_id_is_unchanged_or_replaced_by_content() {
    let server = TestServer::start(&[]).await;
    let first = server
        .add_memories("ann", vec![memory_input("a", "one"), memory_input("b", "two"), memory_input("", "three")])
        .await;
    assert_eq!((first.added, first.unchanged), (3, 0));
    assert_eq!((first.ids[0].as_str(), first.ids[1].as_str(), first.ids[2].len()), ("a", "b", 36));
    let second = server.add_memories("ann", vec![memory_input("b", "two"), memory_input("a", "ONE")]).await;
    assert_eq!((second.added, second.unchanged, second.ids), (1, 1, vec!["b".to_owned(), "a".to_owned()]));
    let found = server.retrieve(memory_query("ann", "ONE")).await;
    assert_eq!((found.items[0].content.as_str(), found.total_found), ("ONE", 3));
}

#[tokio::test]
async fn last_entry_with_the_same_id_wins() {
    let server = TestServer::start(&[]).await;
    let added = server.add_memories("ann", vec![memory_input("a", "old"), memory_input("a", "new")]).await;
    assert_eq!(added.ids, ["a", "a"]);
    assert_eq!(server.list_memories("ann").await[0].content, "new");
}

#[tokio::test]
async fn batch_of_a_thousand_is_stored_all_or_nothing() {
    let server = TestServer::start(&[]).await;
    let mut memories: Vec<_> =
        (0..1000).map(|n| memory_input(&format!("m{n}"), &format!("memory number {n}"))).collect();
    memories[999].content = String::new();
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: memories.clone() };
    let status = server.memory().add_memories(request).await.unwrap_err();
    assert!(status.message().contains("memories[999].content"), "{status:?}");
    assert!(server.list_memories("ann").await.is_empty());
    memories[999].content = "the last".into();
    assert_eq!(server.add_memories("ann", memories).await.added, 1000);
    assert_eq!(server.list_memories("ann").await.len(), 1000);
}

#[tokio::test]
async fn concurrent_writers_of_same_ids_do_not_deadlock() {
    let server = TestServer::start(&[]).await;
    let forward: Vec<_> = (0..200).map(|n| memory_input(&format!("m{n}"), &format!("forward {n}"))).collect();
    let backward: Vec<_> = (0..200).rev().map(|n| memory_input(&format!("m{n}"), &format!("backward {n}"))).collect();
    for _ in 0..5 {
        tokio::join!(server.add_memories("ann", forward.clone()), server.add_memories("ann", backward.clone()));
    }
    assert_eq!(server.list_memories("ann").await.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_and_deletes_do_not_deadlock() {
    let server = TestServer::start(&[]).await;
    let ids: Vec<_> = (0..100).map(|n| format!("m{n}")).collect();
    let server = &server;
    let write = async |round: usize, mut ids: Vec<String>| {
        ids.rotate_left(round % 100);
        let memories = ids.iter().map(|id| memory_input(id, &format!("{id} of round {round}"))).collect();
        let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
        server.memory().add_memories(request).await.map(drop)
    };
    let delete = async |ids: Vec<String>, everything: bool| {
        let ids = if everything { Vec::new() } else { ids };
        let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids, everything, ..Default::default() };
        server.memory().delete_memories(request).await.map(drop)
    };
    let reversed: Vec<_> = ids.iter().rev().cloned().collect();
    for round in 0..15 {
        let (one, two, three, four) = tokio::join!(
            write(round, ids.clone()),
            write(round + 50, reversed.clone()),
            delete(reversed.clone(), false),
            delete(Vec::new(), true),
        );
        for result in [one, two, three, four] {
            result.unwrap();
        }
    }
}

async fn read_pages(server: &TestServer, page_size: i32) -> Vec<pb::MemoryRecord> {
    let mut request = pb::ListMemoriesRequest { user_id: "ann".into(), page_size, ..Default::default() };
    // A client with the default limit of 4 MB.
    let mut client = MemoryServiceClient::new(server.channel.clone());
    let mut seen = Vec::new();
    loop {
        let page = client.list_memories(request.clone()).await.unwrap().into_inner();
        assert!(!page.memories.is_empty());
        seen.extend(page.memories);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return seen;
        }
    }
}

#[tokio::test]
async fn page_fits_the_message_limit_of_clients() {
    let server = TestServer::start(&[]).await;
    let long = "x".repeat(60_000);
    let memories = (0..150).map(|n| memory_input(&format!("m{n}"), &long)).collect();
    server.add_memories("ann", memories).await;
    assert_eq!(read_pages(&server, 1000).await.len(), 150);
}

#[tokio::test]
async fn limit_min_score_and_total_follow_the_contract() {
    let server = TestServer::start(&[]).await;
    let memories = (0..30).map(|n| memory_input(&format!("m{n:02}"), &format!("eigenvalue {n}"))).collect();
    server.add_memories("ann", memories).await;
    server.add_memories("ann", vec![memory_input("other", "gardening tips")]).await;

    let default = server.retrieve(memory_query("ann", "eigenvalue")).await;
    assert_eq!((default.items.len(), default.total_found), (10, 31));
    let all = server.retrieve(pb::MemoryQuery { limit: 1000, ..memory_query("ann", "eigenvalue") }).await;
    assert_eq!(all.items.len(), 31, "limits above 100 mean 100");
    assert!(all.items.windows(2).all(|pair| pair[0].score >= pair[1].score), "results are sorted by score");
    assert!(all.items.iter().all(|item| (0.0..=1.0).contains(&item.score)));
    let floored =
        server.retrieve(pb::MemoryQuery { min_score: 0.3, limit: 5, ..memory_query("ann", "eigenvalue") }).await;
    assert_eq!((floored.items.len(), floored.total_found), (5, 30));
    let again = server.retrieve(pb::MemoryQuery { limit: 1000, ..memory_query("ann", "eigenvalue") }).await;
    assert_eq!(ids(&all), ids(&again), "the order of equal scores is stable");
}

#[tokio::test]
async fn matches_are_counted_up_to_a_thousand() {
    let server = TestServer::start(&[]).await;
    for part in 0..2 {
        let memories = (0..600).map(|n| memory_input(&format!("{part}-{n}"), "eigenvalue")).collect();
        server.add_memories("ann", memories).await;
    }
    let found = server.retrieve(pb::MemoryQuery { limit: 100, ..memory_query("ann", "eigenvalue") }).await;
    assert_eq!((found.items.len(), found.total_found), (100, 1000));
}

#[tokio::test]
async fn filter_selects_by_tags_time_and_source() {
    let server = TestServer::start(&[]).await;
    let memory = |id: &str, tags: &[&str], seconds, source: &str| pb::MemoryInput {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        created_at: Some(timestamp(seconds)),
        source_type: source.into(),
        ..memory_input(id, "eigenvalue")
    };
    let memories =
        vec![memory("a", &["x", "y"], 100, "note"), memory("b", &["x"], 200, "chat"), memory("c", &[], 300, "fact")];
    server.add_memories("ann", memories).await;
    let tags =
        |tags: &[&str]| pb::MemoryFilter { tags: tags.iter().map(|t| (*t).to_owned()).collect(), ..Default::default() };
    for (filter, expected) in [
        (pb::MemoryFilter::default(), vec!["a", "b", "c"]),
        (tags(&["x"]), vec!["a", "b"]),
        (tags(&["x", "y"]), vec!["a"]),
        (pb::MemoryFilter { start_time: Some(timestamp(200)), ..Default::default() }, vec!["b", "c"]),
        (pb::MemoryFilter { end_time: Some(timestamp(200)), ..Default::default() }, vec!["a"]),
        (
            pb::MemoryFilter { start_time: Some(timestamp(200)), end_time: Some(timestamp(300)), ..Default::default() },
            vec!["b"],
        ),
        (pb::MemoryFilter { source_types: vec!["chat".into(), "fact".into()], ..Default::default() }, vec!["b", "c"]),
        (pb::MemoryFilter { source_types: vec!["chat".into()], ..tags(&["y"]) }, vec![]),
    ] {
        let found = server
            .retrieve(pb::MemoryQuery { filter: Some(filter.clone()), ..memory_query("ann", "eigenvalue") })
            .await;
        let mut found_ids = ids(&found);
        found_ids.sort_unstable();
        assert_eq!(found_ids, expected, "{filter:?}");
        assert_eq!(usize::try_from(found.total_found).unwrap(), expected.len());
        let request =
            pb::ListMemoriesRequest { user_id: "ann".into(), filter: Some(filter.clone()), ..Default::default() };
        let listed = server.memory().list_memories(request).await.unwrap().into_inner().memories;
        assert_eq!(listed.len(), expected.len(), "list_memories accepts the same filter: {filter:?}");
    }
}

#[tokio::test]
async fn pages_list_each_memory_once_newest_first() {
    let server = TestServer::start(&[]).await;
    // Equal timestamps, so that the time alone cannot order the pages.
    let memories = (0..25)
        .map(|n| pb::MemoryInput { created_at: Some(timestamp(n / 4)), ..memory_input(&format!("m{n:02}"), "x") })
        .collect();
    server.add_memories("ann", memories).await;
    let seen = read_pages(&server, 7).await;
    let mut expected: Vec<_> = seen.iter().map(|memory| memory.id.clone()).collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(expected.len(), 25, "a memory was returned twice or not at all");
    let times: Vec<_> = seen.iter().map(|memory| memory.created_at.as_ref().unwrap().seconds).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
}

#[tokio::test]
async fn delete_removes_exactly_the_selection() {
    let server = TestServer::start(&[]).await;
    let tagged = |id: &str, tag: &str| pb::MemoryInput { tags: vec![tag.into()], ..memory_input(id, "eigenvalue") };
    let memories = vec![tagged("a", "x"), tagged("b", "x"), tagged("c", "y"), tagged("d", "y"), tagged("e", "z")];
    server.add_memories("ann", memories).await;
    server.add_memories("bob", vec![tagged("a", "x")]).await;
    let mut owner = server.connect_as_owner().await;
    sqlx::query("update memories set document_id = 'book' where id = 'd'").execute(&mut owner).await.unwrap();

    let delete = |request: pb::DeleteMemoriesRequest| {
        let mut client = server.memory();
        async move {
            let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), ..request };
            client.delete_memories(request).await.map(|response| response.into_inner().deleted)
        }
    };
    let by_ids = pb::DeleteMemoriesRequest { ids: vec!["a".into(), "none".into()], ..Default::default() };
    assert_eq!(delete(by_ids).await.unwrap(), 1);
    let by_document = pb::DeleteMemoriesRequest { document_id: "book".into(), ..Default::default() };
    assert_eq!(delete(by_document).await.unwrap(), 1);
    let filter = pb::MemoryFilter { tags: vec!["x".into()], ..Default::default() };
    assert_eq!(delete(pb::DeleteMemoriesRequest { filter: Some(filter), ..Default::default() }).await.unwrap(), 1);
    let left = server.retrieve(memory_query("ann", "eigenvalue")).await;
    assert_eq!(ids(&left), ["c", "e"], "deleted memories are still found");

    for request in [
        pb::DeleteMemoriesRequest::default(),
        pb::DeleteMemoriesRequest { filter: Some(pb::MemoryFilter::default()), ..Default::default() },
        pb::DeleteMemoriesRequest { ids: vec!["c".into()], everything: true, ..Default::default() },
    ] {
        assert_eq!(delete(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(server.list_memories("ann").await.len(), 2, "a rejected call deleted memories");
    assert_eq!(delete(pb::DeleteMemoriesRequest { everything: true, ..Default::default() }).await.unwrap(), 2);
    assert!(server.list_memories("ann").await.is_empty());
    assert_eq!(server.list_memories("bob").await.len(), 1, "memories of another user were deleted");
    for table in
        ["memories", "memory_vectors", "memory_half_vectors", "memory_users", "memory_postings", "memory_terms"]
    {
        let statement = sqlx::AssertSqlSafe(format!("select count(*) from {table} where user_id = 'ann'"));
        let left: i64 = sqlx::query_scalar(statement).fetch_one(&mut owner).await.unwrap();
        assert_eq!(left, 0, "{table} still has rows of the user");
    }
}

#[tokio::test]
async fn memories_are_invisible_to_similarly_named_users() {
    let server = TestServer::start(&[]).await;
    server.add_memories("ann", vec![memory_input("a", "eigenvalue")]).await;
    for user_id in ["bob", "ann ", "Ann", "' or 1=1 --", "%", "ann%"] {
        assert_eq!(server.retrieve(memory_query(user_id, "eigenvalue")).await.total_found, 0, "{user_id:?}");
        assert!(server.list_memories(user_id).await.is_empty(), "{user_id:?}");
    }
}

#[tokio::test]
async fn vectors_of_another_model_are_never_compared() {
    let server = TestServer::start(&[]).await;
    let memories =
        vec![memory_input("a", "eigenvalue"), memory_input("b", "eigenvalue"), memory_input("c", "eigenvalue")];
    server.add_memories("ann", memories).await;
    let mut owner = server.connect_as_owner().await;
    for change in [
        "update memory_vectors set model = 'other/256' where memory_id = 'a'",
        "update memory_vectors set model = 'other/2', embedding = '[1,0]' where memory_id = 'b'",
    ] {
        owner.execute(change).await.unwrap();
    }
    let query = || pb::MemoryQuery { min_score: 0.01, ..weighted_query("eigenvalue", 1.0) };
    let found = server.retrieve(query()).await;
    assert_eq!((ids(&found), found.total_found), (vec!["c"], 1));
    let again =
        server.add_memories("ann", vec![memory_input("a", "eigenvalue"), memory_input("b", "eigenvalue")]).await;
    assert_eq!(again.added, 2, "an add re-embeds with the current model");
    assert_eq!(server.retrieve(query()).await.total_found, 3);
}

#[tokio::test]
async fn provider_embeddings_are_batched_and_ordered_by_index() {
    let (mut provider, server) = TestServer::start_with_embedder().await;
    // In reverse order: `index` tells which is which.
    provider.respond(200, r#"{"data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":[3,0]}]}"#).await;
    server.add_memories("ann", vec![memory_input("x", "east"), memory_input("y", "north")]).await;
    let received = provider.requests.recv().await.unwrap();
    assert!(received.head.starts_with("POST /v1/embeddings "));
    assert!(received.head.to_ascii_lowercase().contains("authorization: bearer embedding-key"));
    assert_eq!(
        (received.body["model"].as_str(), &received.body["input"]),
        (Some("tiny"), &serde_json::json!(["east", "north"]))
    );
    provider.respond(200, r#"{"data":[{"embedding":[0,1]}]}"#).await;
    let query = weighted_query("which way is up?", 1.0);
    let found = server.retrieve(query).await;
    assert_eq!((ids(&found), found.items[0].score, found.items[1].score), (vec!["y", "x"], 1.0, 0.0));
}

#[tokio::test]
async fn failed_embedding_stores_nothing_and_has_its_code() {
    let (provider, server) = TestServer::start_with_embedder().await;
    for (status, body, code) in [
        (503, "", Code::Unavailable),
        (429, "", Code::Unavailable),
        (401, "", Code::Internal),
        (200, r#"{"data":[{"embedding":[1,2,3]}]}"#, Code::Internal),
        (200, r#"{"data":[]}"#, Code::Internal),
        (200, r#"{"data":[{"embedding":[0,0]}]}"#, Code::Internal),
        (200, "<html>", Code::Internal),
    ] {
        provider.respond(status, body).await;
        let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![memory_input("a", "x")] };
        let rejected = server.memory().add_memories(request).await.unwrap_err();
        assert_eq!(rejected.code(), code, "{status} {body}: {rejected:?}");
        assert!(server.list_memories("ann").await.is_empty());
    }
}

#[test]
fn embedding_config_shows_model_and_dimension() {
    let config = config(&[("LLM_API_KEY", "k"), ("EMBEDDING_MODEL", "own"), ("EMBEDDING_DIM", "5")]);
    let text = format!("{:?}", config.embedding);
    assert!(text.contains("own") && text.contains('5'), "{text}");
}

#[tokio::test]
async fn retrieval_result_fits_the_message_limit_of_clients() {
    let server = TestServer::start(&[]).await;
    let text = |n: usize| format!("zork {n} {}", "lorem ipsum ".repeat(5_000));
    for n in 0..80 {
        server.add_memories("ann", vec![memory_input(&format!("m{n}"), &text(n))]).await;
    }
    let found = server.retrieve(pb::MemoryQuery { limit: 100, ..memory_query("ann", "zork") }).await;
    let bytes = prost::Message::encoded_len(&found);
    assert!(bytes < 4_000_000 && found.items.len() > 20, "{bytes} bytes, {} items", found.items.len());
    assert_eq!(found.total_found, 80);
}
