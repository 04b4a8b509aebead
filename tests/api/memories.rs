//! Storing, finding, listing and forgetting.

use agent_service::proto::agent_v1::{self as pb, memory_service_client::MemoryServiceClient};
use prost_types::Timestamp;
use sqlx::Executor as _;
use tonic::Code;

use crate::{
    fake_provider::FakeProvider,
    harness::{TestServer, config},
};

fn input(id: &str, content: &str) -> pb::MemoryInput {
    pb::MemoryInput { id: id.into(), content: content.into(), ..Default::default() }
}

async fn add(server: &TestServer, user: &str, memories: Vec<pb::MemoryInput>) -> pb::AddMemoriesResponse {
    let request = pb::AddMemoriesRequest { user_id: user.into(), memories };
    server.memory().add_memories(request).await.unwrap().into_inner()
}

fn query(user: &str, text: &str) -> pb::MemoryQuery {
    pb::MemoryQuery { user_id: user.into(), query_text: text.into(), ..Default::default() }
}

async fn retrieve(server: &TestServer, query: pb::MemoryQuery) -> pb::MemoryResult {
    server.agent().retrieve_memory(query).await.unwrap().into_inner()
}

async fn list_all(server: &TestServer, user: &str) -> Vec<pb::MemoryRecord> {
    let request = pb::ListMemoriesRequest { user_id: user.into(), page_size: 1000, ..Default::default() };
    server.memory().list_memories(request).await.unwrap().into_inner().memories
}

fn ids(result: &pb::MemoryResult) -> Vec<&str> {
    result.items.iter().map(|item| item.id.as_str()).collect()
}

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

#[tokio::test]
async fn what_is_stored_is_found_by_the_next_query_with_all_that_was_told() {
    let server = TestServer::start(&[]).await;
    let memory = pb::MemoryInput {
        tags: vec!["math".into(), "exam".into()],
        source_type: "fact".into(),
        created_at: Some(Timestamp { seconds: -5, nanos: 250_000_000 }),
        metadata: [("url".to_owned(), "https://example.com".to_owned())].into(),
        ..input("m1", "I mix up eigenvalues and eigenvectors")
    };
    assert_eq!(add(&server, "ann", vec![memory]).await.ids, ["m1"]);
    let found = retrieve(&server, query("ann", "eigenvalues")).await;
    assert_eq!((ids(&found), found.total_found), (vec!["m1"], 1));
    let item = &found.items[0];
    assert_eq!(item.content, "I mix up eigenvalues and eigenvectors");
    assert!(item.score > 0.3 && item.score <= 1.0);
    assert_eq!(item.created_at, Some(Timestamp { seconds: -5, nanos: 250_000_000 }));
    assert_eq!((item.metadata["source_type"].as_str(), item.metadata["tags"].as_str()), ("fact", "math,exam"));
    assert_eq!(item.metadata["url"], "https://example.com");
}

#[tokio::test]
async fn the_same_id_with_the_same_content_is_unchanged_and_with_other_content_replaced() {
    let server = TestServer::start(&[]).await;
    let first = add(&server, "ann", vec![input("a", "one"), input("b", "two"), input("", "three")]).await;
    assert_eq!((first.added, first.unchanged), (3, 0));
    assert_eq!((first.ids[0].as_str(), first.ids[1].as_str(), first.ids[2].len()), ("a", "b", 36));
    let second = add(&server, "ann", vec![input("b", "two"), input("a", "ONE")]).await;
    assert_eq!((second.added, second.unchanged, second.ids), (1, 1, vec!["b".to_owned(), "a".to_owned()]));
    let found = retrieve(&server, query("ann", "ONE")).await;
    assert_eq!((found.items[0].content.as_str(), found.total_found), ("ONE", 3));
}

#[tokio::test]
async fn the_last_of_two_entries_with_one_id_counts() {
    let server = TestServer::start(&[]).await;
    let added = add(&server, "ann", vec![input("a", "old"), input("a", "new")]).await;
    assert_eq!(added.ids, ["a", "a"]);
    assert_eq!(list_all(&server, "ann").await[0].content, "new");
}

#[tokio::test]
async fn a_thousand_memories_are_stored_at_once_and_none_of_them_if_one_is_wrong() {
    let server = TestServer::start(&[]).await;
    let mut memories: Vec<_> = (0..1000).map(|n| input(&format!("m{n}"), &format!("memory number {n}"))).collect();
    memories[999].content = String::new();
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: memories.clone() };
    let status = server.memory().add_memories(request).await.unwrap_err();
    assert!(status.message().contains("memories[999].content"), "{status:?}");
    assert!(list_all(&server, "ann").await.is_empty());
    memories[999].content = "the last".into();
    assert_eq!(add(&server, "ann", memories).await.added, 1000);
    assert_eq!(list_all(&server, "ann").await.len(), 1000);
}

#[tokio::test]
async fn two_writers_of_the_same_ids_neither_block_each_other_nor_double_anything() {
    let server = TestServer::start(&[]).await;
    let forward: Vec<_> = (0..200).map(|n| input(&format!("m{n}"), &format!("forward {n}"))).collect();
    let backward: Vec<_> = (0..200).rev().map(|n| input(&format!("m{n}"), &format!("backward {n}"))).collect();
    for _ in 0..5 {
        tokio::join!(add(&server, "ann", forward.clone()), add(&server, "ann", backward.clone()));
    }
    assert_eq!(list_all(&server, "ann").await.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_and_forgetters_of_the_same_ids_never_wait_for_each_other() {
    let server = TestServer::start(&[]).await;
    let ids: Vec<_> = (0..100).map(|n| format!("m{n}")).collect();
    let server = &server;
    let write = async |round: usize, mut ids: Vec<String>| {
        ids.rotate_left(round % 100);
        let memories = ids.iter().map(|id| input(id, &format!("{id} of round {round}"))).collect();
        let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
        server.memory().add_memories(request).await.map(drop)
    };
    let forget = async |ids: Vec<String>, everything: bool| {
        let ids = if everything { Vec::new() } else { ids };
        let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids, everything, ..Default::default() };
        server.memory().delete_memories(request).await.map(drop)
    };
    let backwards: Vec<_> = ids.iter().rev().cloned().collect();
    for round in 0..15 {
        let (one, two, three, four) = tokio::join!(
            write(round, ids.clone()),
            write(round + 50, backwards.clone()),
            forget(backwards.clone(), false),
            forget(Vec::new(), true),
        );
        for done in [one, two, three, four] {
            done.unwrap();
        }
    }
}

#[tokio::test]
async fn a_page_is_never_too_large_for_a_client() {
    let server = TestServer::start(&[]).await;
    let long = "x".repeat(60_000);
    let memories = (0..150).map(|n| input(&format!("m{n}"), &long)).collect();
    add(&server, "ann", memories).await;
    let mut request = pb::ListMemoriesRequest { user_id: "ann".into(), page_size: 1000, ..Default::default() };
    // A client with the default limit of 4 MB.
    let mut client = MemoryServiceClient::new(server.channel.clone());
    let mut seen = 0;
    loop {
        let page = client.list_memories(request.clone()).await.unwrap().into_inner();
        assert!(!page.memories.is_empty());
        seen += page.memories.len();
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, 150);
}

#[tokio::test]
async fn limit_floor_and_total_count_what_the_contract_says() {
    let server = TestServer::start(&[]).await;
    let memories = (0..30).map(|n| input(&format!("m{n:02}"), &format!("eigenvalue {n}"))).collect();
    add(&server, "ann", memories).await;
    add(&server, "ann", vec![input("other", "gardening tips")]).await;

    let default = retrieve(&server, query("ann", "eigenvalue")).await;
    assert_eq!((default.items.len(), default.total_found), (10, 31));
    let all = retrieve(&server, pb::MemoryQuery { limit: 1000, ..query("ann", "eigenvalue") }).await;
    assert_eq!(all.items.len(), 31, "more than 100 is cut to 100, and there are only 31");
    assert!(all.items.windows(2).all(|pair| pair[0].score >= pair[1].score), "best first");
    assert!(all.items.iter().all(|item| (0.0..=1.0).contains(&item.score)));
    let floored = retrieve(&server, pb::MemoryQuery { min_score: 0.3, limit: 5, ..query("ann", "eigenvalue") }).await;
    assert_eq!((floored.items.len(), floored.total_found), (5, 30));
    let again = retrieve(&server, pb::MemoryQuery { limit: 1000, ..query("ann", "eigenvalue") }).await;
    assert_eq!(ids(&all), ids(&again), "ties break the same way every time");
}

#[tokio::test]
async fn matches_are_counted_up_to_a_thousand() {
    let server = TestServer::start(&[]).await;
    for part in 0..2 {
        let memories = (0..600).map(|n| input(&format!("{part}-{n}"), "eigenvalue")).collect();
        add(&server, "ann", memories).await;
    }
    let found = retrieve(&server, pb::MemoryQuery { limit: 100, ..query("ann", "eigenvalue") }).await;
    assert_eq!((found.items.len(), found.total_found), (100, 1000));
}

#[tokio::test]
async fn a_filter_narrows_by_tags_time_and_source() {
    let server = TestServer::start(&[]).await;
    let memory = |id: &str, tags: &[&str], seconds, source: &str| pb::MemoryInput {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        created_at: at(seconds),
        source_type: source.into(),
        ..input(id, "eigenvalue")
    };
    let memories =
        vec![memory("a", &["x", "y"], 100, "note"), memory("b", &["x"], 200, "chat"), memory("c", &[], 300, "fact")];
    add(&server, "ann", memories).await;
    let tags =
        |tags: &[&str]| pb::MemoryFilter { tags: tags.iter().map(|t| (*t).to_owned()).collect(), ..Default::default() };
    for (filter, expected) in [
        (pb::MemoryFilter::default(), vec!["a", "b", "c"]),
        (tags(&["x"]), vec!["a", "b"]),
        (tags(&["x", "y"]), vec!["a"]),
        (pb::MemoryFilter { start_time: at(200), ..Default::default() }, vec!["b", "c"]),
        (pb::MemoryFilter { end_time: at(200), ..Default::default() }, vec!["a"]),
        (pb::MemoryFilter { start_time: at(200), end_time: at(300), ..Default::default() }, vec!["b"]),
        (pb::MemoryFilter { source_types: vec!["chat".into(), "fact".into()], ..Default::default() }, vec!["b", "c"]),
        (pb::MemoryFilter { source_types: vec!["chat".into()], ..tags(&["y"]) }, vec![]),
    ] {
        let found =
            retrieve(&server, pb::MemoryQuery { filter: Some(filter.clone()), ..query("ann", "eigenvalue") }).await;
        let mut found_ids = ids(&found);
        found_ids.sort_unstable();
        assert_eq!(found_ids, expected, "{filter:?}");
        assert_eq!(usize::try_from(found.total_found).unwrap(), expected.len());
        let request =
            pb::ListMemoriesRequest { user_id: "ann".into(), filter: Some(filter.clone()), ..Default::default() };
        let listed = server.memory().list_memories(request).await.unwrap().into_inner().memories;
        assert_eq!(listed.len(), expected.len(), "a listing takes the same filter: {filter:?}");
    }
}

#[tokio::test]
async fn pages_list_everything_once_newest_first() {
    let server = TestServer::start(&[]).await;
    // Several of the same time, so that the time alone can not order them.
    let memories =
        (0..25).map(|n| pb::MemoryInput { created_at: at(n / 4), ..input(&format!("m{n:02}"), "x") }).collect();
    add(&server, "ann", memories).await;
    let mut seen = Vec::new();
    let mut request = pb::ListMemoriesRequest { user_id: "ann".into(), page_size: 7, ..Default::default() };
    loop {
        let page = server.memory().list_memories(request.clone()).await.unwrap().into_inner();
        seen.extend(page.memories);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let mut expected: Vec<_> = seen.iter().map(|memory| memory.id.clone()).collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(expected.len(), 25, "each exactly once");
    let times: Vec<_> = seen.iter().map(|memory| memory.created_at.as_ref().unwrap().seconds).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
}

#[tokio::test]
async fn forgetting_by_ids_document_filter_or_everything_removes_exactly_that() {
    let server = TestServer::start(&[]).await;
    let tagged = |id: &str, tag: &str| pb::MemoryInput { tags: vec![tag.into()], ..input(id, "eigenvalue") };
    let memories = vec![tagged("a", "x"), tagged("b", "x"), tagged("c", "y"), tagged("d", "y"), tagged("e", "z")];
    add(&server, "ann", memories).await;
    add(&server, "bob", vec![tagged("a", "x")]).await;
    let mut behind = server.database.as_ref().unwrap().connect().await;
    sqlx::query("update memories set document_id = 'book' where id = 'd'").execute(&mut behind).await.unwrap();

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
    let left = retrieve(&server, query("ann", "eigenvalue")).await;
    assert_eq!(ids(&left), ["c", "e"], "gone at once, and nothing else");

    for refused in [
        pb::DeleteMemoriesRequest::default(),
        pb::DeleteMemoriesRequest { filter: Some(pb::MemoryFilter::default()), ..Default::default() },
        pb::DeleteMemoriesRequest { ids: vec!["c".into()], everything: true, ..Default::default() },
    ] {
        assert_eq!(delete(refused).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(list_all(&server, "ann").await.len(), 2, "a refusal forgets nothing");
    assert_eq!(delete(pb::DeleteMemoriesRequest { everything: true, ..Default::default() }).await.unwrap(), 2);
    assert!(list_all(&server, "ann").await.is_empty());
    assert_eq!(list_all(&server, "bob").await.len(), 1, "and of nobody else");
    for table in ["memories", "memory_users", "memory_postings", "memory_terms"] {
        let statement = sqlx::AssertSqlSafe(format!("select count(*) from {table} where user_id = 'ann'"));
        let left: i64 = sqlx::query_scalar(statement).fetch_one(&mut behind).await.unwrap();
        assert_eq!(left, 0, "{table} still knows the user");
    }
}

#[tokio::test]
async fn nothing_of_one_user_is_visible_to_another() {
    let server = TestServer::start(&[]).await;
    add(&server, "ann", vec![input("a", "eigenvalue")]).await;
    for stranger in ["bob", "ann ", "Ann", "' or 1=1 --", "%", "ann%"] {
        assert_eq!(retrieve(&server, query(stranger, "eigenvalue")).await.total_found, 0, "{stranger:?}");
        assert!(list_all(&server, stranger).await.is_empty(), "{stranger:?}");
    }
}

#[tokio::test]
async fn vectors_of_another_model_or_dimension_are_never_compared() {
    let server = TestServer::start(&[]).await;
    add(&server, "ann", vec![input("a", "eigenvalue"), input("b", "eigenvalue"), input("c", "eigenvalue")]).await;
    let mut behind = server.database.as_ref().unwrap().connect().await;
    for change in [
        "update memory_vectors set model = 'other/256' where memory_id = 'a'",
        "update memory_vectors set model = 'other/2', embedding = '[1,0]' where memory_id = 'b'",
    ] {
        behind.execute(change).await.unwrap();
    }
    let by_meaning = || pb::MemoryQuery { min_score: 0.01, hybrid_alpha: Some(1.0), ..query("ann", "eigenvalue") };
    let found = retrieve(&server, by_meaning()).await;
    assert_eq!((ids(&found), found.total_found), (vec!["c"], 1));
    let again = add(&server, "ann", vec![input("a", "eigenvalue"), input("b", "eigenvalue")]).await;
    assert_eq!(again.added, 2, "storing it again makes it comparable again");
    assert_eq!(retrieve(&server, by_meaning()).await.total_found, 3);
}

#[tokio::test]
async fn embeddings_of_a_provider_are_asked_in_batches_and_put_into_order() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.embedding_variables()).await;
    // Backwards, as the index allows.
    provider.refuse(200, r#"{"data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":[3,0]}]}"#).await;
    add(&server, "ann", vec![input("x", "east"), input("y", "north")]).await;
    let received = provider.requests.recv().await.unwrap();
    assert!(received.head.starts_with("POST /v1/embeddings "));
    assert!(received.head.to_ascii_lowercase().contains("authorization: bearer embedding-key"));
    assert_eq!(
        (received.body["model"].as_str(), &received.body["input"]),
        (Some("tiny"), &serde_json::json!(["east", "north"]))
    );
    provider.refuse(200, r#"{"data":[{"embedding":[0,1]}]}"#).await;
    let by_meaning = pb::MemoryQuery { hybrid_alpha: Some(1.0), ..query("ann", "which way is up?") };
    let found = retrieve(&server, by_meaning).await;
    assert_eq!((ids(&found), found.items[0].score, found.items[1].score), (vec!["y", "x"], 1.0, 0.0));
}

#[tokio::test]
async fn an_embedder_that_fails_stores_nothing_and_says_whether_trying_again_helps() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.embedding_variables()).await;
    for (status, body, code) in [
        (503, "", Code::Unavailable),
        (429, "", Code::Unavailable),
        (401, "", Code::Internal),
        (200, r#"{"data":[{"embedding":[1,2,3]}]}"#, Code::Internal),
        (200, r#"{"data":[]}"#, Code::Internal),
        (200, r#"{"data":[{"embedding":[0,0]}]}"#, Code::Internal),
        (200, "<html>", Code::Internal),
    ] {
        provider.refuse(status, body).await;
        let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: vec![input("a", "x")] };
        let refused = server.memory().add_memories(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{status} {body}: {refused:?}");
        assert!(list_all(&server, "ann").await.is_empty());
    }
}

#[test]
fn an_embedding_configuration_names_its_model_and_dimension() {
    let config = config(&[("LLM_API_KEY", "k"), ("EMBEDDING_MODEL", "own"), ("EMBEDDING_DIM", "5")]);
    let text = format!("{:?}", config.embedding);
    assert!(text.contains("own") && text.contains('5'), "{text}");
}

#[tokio::test]
async fn an_answer_is_no_larger_than_clients_read() {
    let server = TestServer::start(&[]).await;
    let text = |n: usize| format!("zork {n} {}", "lorem ipsum ".repeat(5_000));
    for n in 0..80 {
        add(&server, "ann", vec![input(&format!("m{n}"), &text(n))]).await;
    }
    let found = retrieve(&server, pb::MemoryQuery { limit: 100, ..query("ann", "zork") }).await;
    let bytes = prost::Message::encoded_len(&found);
    assert!(bytes < 4_000_000 && found.items.len() > 20, "{bytes} bytes, {} items", found.items.len());
    assert_eq!(found.total_found, 80);
}
