//! The lexical index of chat turns: preceding turns, dates and speakers are indexed with a turn.

use agent_service::proto::agent_v1 as pb;
use sqlx::{Executor as _, Row as _};

use crate::{
    harness::{TestServer, memory_input, memory_query, timestamp},
    updates::{export, find_ids, update, update_content},
};

fn turn(id: &str, second: i64, content: &str) -> pb::MemoryInput {
    pb::MemoryInput {
        created_at: Some(timestamp(1_700_000_000 + second)),
        source_type: "chat".into(),
        metadata: [("session_id".to_owned(), "s".to_owned())].into(),
        ..memory_input(id, content)
    }
}

/// All postings: memory, term, frequency, length.
pub async fn postings(server: &TestServer) -> Vec<(String, String, f32, f32)> {
    let mut owner = server.connect_as_owner().await;
    let rows = owner
        .fetch_all("select memory_id, term, frequency, length from memory_postings order by memory_id, term")
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

#[tokio::test]
async fn chat_turn_is_found_by_its_preceding_turns() {
    let server = TestServer::start(&[]).await;
    let turns = vec![
        turn("1", 10, "Have you ever seen a zork?"),
        turn("2", 20, "Yes, last summer!"),
        turn("3", 30, "How nice."),
        turn("4", 40, "And a blark?"),
    ];
    server.add_memories("ann", turns).await;
    assert_eq!(find_ids(&server, "zork", 0.0).await, ["1", "2", "3"], "a turn is indexed with the two turns before it");
    let before = postings(&server).await;

    // A late turn is inserted by its time.
    server.add_memories("ann", vec![turn("1b", 15, "mok mok")]).await;
    assert_eq!(find_ids(&server, "zork", 0.0).await, ["1", "1b", "2"]);
    server.delete_memories(&["1b"]).await;
    assert_eq!(postings(&server).await, before, "the deleted turn left postings");

    // Update, supersede and delete re-index the following turns.
    update(&server, update_content("1", "Have you ever seen a frint?")).await.unwrap();
    assert!(find_ids(&server, "zork", 0.0).await.is_empty());
    assert_eq!(find_ids(&server, "frint", 0.0).await, ["1", "2", "3"]);
    let memories = vec![pb::MemoryInput { supersedes: vec!["1".into()], ..memory_input("new", "kat") }];
    server.add_memories("ann", memories).await;
    assert!(find_ids(&server, "frint", 0.0).await.is_empty());
    server.delete_memories(&["4"]).await;

    // The index equals a rebuilt one.
    let maintained = postings(&server).await;
    let mut owner = server.connect_as_owner().await;
    owner.execute("truncate memory_users, memory_postings, memory_terms").await.unwrap();
    assert!(find_ids(&server, "summer", 0.0).await.contains(&"2".to_owned()));
    assert_eq!(postings(&server).await, maintained);
}

#[tokio::test]
async fn memory_is_found_by_its_date_and_speaker() {
    let server = TestServer::start(&[]).await;
    let memory = |id: &str, second: i64, speaker: &str, content: &str| pb::MemoryInput {
        metadata: [("speaker".to_owned(), speaker.to_owned())].into(),
        ..turn(id, second, content)
    };
    let day = 86_400;
    let memories =
        vec![memory("a", 0, "Caroline", "I painted a lake"), memory("b", 40 * day, "Melanie", "I ran a race")];
    server.add_memories("ann", memories).await;
    assert_eq!(find_ids(&server, "Caroline", 0.0).await, ["a"]);
    assert_eq!(find_ids(&server, "November", 0.0).await, ["a"]);
    assert_eq!(find_ids(&server, "December", 0.0).await, ["b"]);
    let filter = Some(pb::MemoryFilter { source_types: vec!["chat".into()], ..Default::default() });
    let query = pb::MemoryQuery { filter, ..memory_query("ann", "what happened in December 2023?") };
    assert_eq!(server.retrieve(query).await.items[0].id, "b");
}

#[tokio::test]
async fn overlong_session_metadata_is_stored_and_ignored() {
    let server = TestServer::start(&[]).await;
    let long: String = (0..9_000_u32).map(|n| char::from(b'a' + u8::try_from(n * 7919 % 26).unwrap())).collect();
    let odd = pb::MemoryInput { metadata: [("session".to_owned(), long.clone())].into(), ..memory_input("m", "zork") };
    server.add_memories("ann", vec![odd]).await;
    assert_eq!(find_ids(&server, "zork", 0.5).await, ["m"]);
    assert_eq!(export(&server, "ann").await["m"].metadata["session"], long);
}

#[tokio::test]
async fn large_index_is_built_in_parts() {
    let server = TestServer::start(&[]).await;
    for part in 0..2 {
        let memories =
            (0..600).map(|n| turn(&format!("m{part}-{n}"), part * 600 + n, &format!("zork number{n}"))).collect();
        server.add_memories("ann", memories).await;
    }
    let before = postings(&server).await;
    let mut owner = server.connect_as_owner().await;
    owner.execute("truncate memory_users, memory_postings, memory_terms").await.unwrap();
    // Writes before and after the position of the build.
    server.add_memories("ann", vec![turn("a", 5_000, "kat"), turn("z", 5_010, "kat")]).await;
    server.delete_memories(&["a", "z"]).await;
    assert_eq!(find_ids(&server, "number599", 0.0).await.len(), 4, "both turns, and the two that follow");
    assert_eq!(postings(&server).await, before);
}

/// Earlier versions indexed long turns with the turns before them as well.
#[tokio::test]
async fn words_of_a_turn_leave_the_index_of_an_earlier_version() {
    let server = TestServer::start(&[]).await;
    let long = "kat ".repeat(1_500);
    server.add_memories("ann", vec![turn("1", 10, "a zork"), turn("2", 20, &long)]).await;
    assert_eq!(find_ids(&server, "zork", 0.0).await, ["1"]);
    let mut owner = server.connect_as_owner().await;
    let index_with_preceding = async |owner: &mut sqlx::PgConnection, frequency: f32| {
        let insert = "insert into memory_postings (user_id, term, memory_id, frequency, length)
                      select 'ann', 'zork', '2', $1, length from memory_postings where memory_id = '2' limit 1";
        sqlx::query(insert).persistent(false).bind(frequency).execute(&mut *owner).await.unwrap();
        let count = "insert into memory_terms (user_id, term, memories) values ('ann', 'zork', 1)
                     on conflict (user_id, term) do update set memories = memory_terms.memories + 1";
        owner.execute(count).await.unwrap();
    };
    index_with_preceding(&mut owner, 0.5).await;
    assert_eq!(find_ids(&server, "zork", 0.0).await, ["1", "2"]);
    server.add_memories("ann", vec![turn("1", 10, "a blark")]).await;
    assert!(find_ids(&server, "zork", 0.0).await.is_empty(), "a word of the overwritten turn");
    index_with_preceding(&mut owner, 1.0).await;
    update(&server, update_content("1", "a frint")).await.unwrap();
    assert!(find_ids(&server, "zork", 0.0).await.is_empty(), "a word of the updated turn");
    index_with_preceding(&mut owner, 1.0).await;
    server.delete_memories(&["1"]).await;
    assert!(find_ids(&server, "zork", 0.0).await.is_empty(), "a word of the deleted turn");
}
