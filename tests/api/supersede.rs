//! Memories that supersede others.

use agent_service::proto::agent_v1 as pb;
use tonic::Code;

use crate::{
    harness::{TestServer, memory_input},
    turn_index::postings,
    updates::{export, find_ids, update, update_content},
};

fn superseding(id: &str, old: &str, content: &str) -> pb::MemoryInput {
    pb::MemoryInput { supersedes: vec![old.into()], ..memory_input(id, content) }
}

#[tokio::test]
async fn superseded_memory_is_kept_and_never_found() {
    let server = TestServer::start(&[]).await;
    let memories = vec![memory_input("old", "Ann lives in zork"), memory_input("other", "Ann likes zork tea")];
    server.add_memories("ann", memories).await;
    let newer = pb::MemoryInput {
        supersedes: vec!["old".into(), "none".into(), "new".into()],
        ..memory_input("new", "Ann lives in blark")
    };
    server.add_memories("ann", vec![newer.clone()]).await;
    for alpha in [0.0, 0.5, 1.0] {
        let found = find_ids(&server, "where does Ann live, zork or blark?", alpha).await;
        assert!(found.contains(&"new".to_owned()) && !found.contains(&"old".to_owned()), "{alpha}: {found:?}");
    }
    let exported = export(&server, "ann").await;
    assert_eq!((exported["old"].superseded_by.as_str(), exported["new"].superseded_by.as_str()), ("new", ""));
    // An identical call is unchanged, although it supersedes again.
    assert_eq!(server.add_memories("ann", vec![newer]).await.unchanged, 1);
    // An update of a superseded memory leaves it superseded; new content makes it current.
    update(&server, update_content("old", "Ann lived in zork")).await.unwrap();
    assert!(!find_ids(&server, "lived in zork", 0.5).await.contains(&"old".to_owned()));
    server.add_memories("ann", vec![memory_input("old", "Ann lives in zork again")]).await;
    assert!(find_ids(&server, "lives in zork again", 0.5).await.contains(&"old".to_owned()));
}

#[tokio::test]
async fn memory_superseding_its_successor_is_found_again() {
    let server = TestServer::start(&[]).await;
    let found = async |text: &str| {
        let (lexical, vector) = (find_ids(&server, text, 0.0).await, find_ids(&server, text, 1.0).await);
        assert_eq!(lexical.contains(&"tea".to_owned()), vector.contains(&"tea".to_owned()), "both retrievers agree");
        lexical
    };
    server.add_memories("ann", vec![memory_input("tea", "Ann drinks zork tea")]).await;
    server.add_memories("ann", vec![superseding("coffee", "tea", "Ann drinks blark coffee")]).await;
    assert_eq!(found("drinks zork tea").await, ["coffee"]);
    let before = postings(&server).await;
    // Back and forth: the postings are the same afterwards.
    server.add_memories("ann", vec![superseding("tea", "coffee", "Ann drinks zork tea")]).await;
    assert_eq!(found("drinks zork tea").await, ["tea"]);
    server.add_memories("ann", vec![superseding("coffee", "tea", "Ann drinks blark coffee")]).await;
    assert_eq!((found("drinks zork tea").await, postings(&server).await), (vec!["coffee".to_owned()], before));
    // Over an intermediate memory.
    server.add_memories("ann", vec![superseding("mate", "coffee", "Ann drinks frint mate")]).await;
    server.add_memories("ann", vec![superseding("tea", "mate", "Ann drinks zork tea")]).await;
    assert_eq!(found("Ann drinks").await, ["tea"]);
    // Superseding an unrelated memory does not make a superseded one current.
    let memories = vec![memory_input("milk", "milk"), superseding("mate", "milk", "Ann drinks frint mate")];
    server.add_memories("ann", memories).await;
    assert_eq!(found("Ann drinks").await, ["tea"]);
}

#[tokio::test]
async fn last_memory_of_a_closed_supersede_cycle_is_found() {
    let server = TestServer::start(&[]).await;
    // The first one has no id: its content identifies it as "tea".
    server.add_memories("ann", vec![memory_input("tea", "Ann drinks zork tea")]).await;
    let cycle =
        vec![superseding("", "coffee", "Ann drinks zork tea"), superseding("coffee", "tea", "Ann drinks blark coffee")];
    server.add_memories("ann", cycle).await;
    for alpha in [0.0, 1.0] {
        assert_eq!(find_ids(&server, "Ann drinks", alpha).await, ["coffee"]);
    }
    assert_eq!(export(&server, "ann").await["tea"].superseded_by, "coffee");

    // Coffee superseded tea; now milk supersedes coffee, and tea supersedes milk, which is new.
    let cycle =
        vec![superseding("milk", "coffee", "Ann drinks frint milk"), superseding("tea", "milk", "Ann drinks zork tea")];
    server.add_memories("ann", cycle).await;
    for alpha in [0.0, 1.0] {
        assert_eq!(find_ids(&server, "Ann drinks", alpha).await, ["tea"]);
    }

    // In the other direction, over two new memories.
    let cycle = vec![
        superseding("water", "tea", "Ann drinks mok water"),
        superseding("juice", "water", "Ann drinks mok juice"),
        superseding("coffee", "juice", "Ann drinks blark coffee"),
    ];
    server.add_memories("ann", cycle).await;
    for alpha in [0.0, 1.0] {
        assert_eq!(find_ids(&server, "Ann drinks", alpha).await, ["coffee"]);
    }
}

#[tokio::test]
async fn supersede_cycle_within_a_request_is_rejected() {
    let server = TestServer::start(&[]).await;
    let replacing = |id: &str, old: &str| superseding(id, old, id);
    let add = |memories| {
        let mut client = server.memory();
        async move { client.add_memories(pb::AddMemoriesRequest { user_id: "ann".into(), memories }).await }
    };
    let cycle = vec![replacing("a", "b"), replacing("b", "c"), replacing("c", "a")];
    let rejected = add(cycle).await.unwrap_err();
    assert_eq!(rejected.code(), Code::InvalidArgument);
    assert!(rejected.message().contains("memories[0].supersedes"), "{}", rejected.message());
    let cycle_beside_others =
        vec![memory_input("x", "x"), replacing("a", "x"), replacing("b", "a"), replacing("a", "b")];
    let rejected = add(cycle_beside_others).await.unwrap_err();
    assert!(rejected.message().contains("memories[1].supersedes"), "{}", rejected.message());
    // The largest possible request: cycle detection must stay fast.
    let largest = (0..1_000_u32).map(|n| {
        let old = (0..100).map(|k| format!("m{}", (n + k) % 1_001)).collect();
        pb::MemoryInput { supersedes: old, ..memory_input(&format!("m{}", n + 1), "x") }
    });
    assert_eq!(add(largest.collect()).await.unwrap_err().code(), Code::InvalidArgument);
    add(vec![replacing("b", "a"), memory_input("a", "a"), replacing("c", "b"), replacing("d", "d")]).await.unwrap();
    let exported = export(&server, "ann").await;
    let superseded_by: Vec<_> = exported.values().map(|memory| memory.superseded_by.as_str()).collect();
    assert_eq!(superseded_by, ["b", "c", "", ""], "a chain is no cycle, and no memory supersedes itself");
}
