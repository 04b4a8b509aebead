use std::collections::HashMap;

use agent_service::conversation::{
    AdmitOutcome, ConversationStore as _, FrameChunk, FramePage, NewRun, RunEnding, SessionSelection, StoreError,
    WithDeadlines,
    dynamodb::{DynamoConversations, parse_turn_item},
};
use agent_service::identity::UserId;
use serde_json::{Value, json};

use crate::{
    dynamodb::{Attributes, TestTable, store_of, text},
    fixture::{ADMIT_TIMEOUT, chunk, ending, new_run, request, session, started, turn},
};

/// DynamoDB's limit; the double accepts larger items.
const ITEM_BYTES: usize = 400 * 1_024;

fn ann() -> UserId {
    UserId::parse("user_id", "ann").unwrap()
}

fn run(session: &str, request: &str) -> NewRun {
    new_run(ann(), session, request)
}

async fn table() -> Option<(TestTable, WithDeadlines<DynamoConversations>)> {
    let table = TestTable::create().await?;
    let store = table.store(ADMIT_TIMEOUT);
    Some((table, store))
}

/// Binaries are base64 on the wire, four thirds of their length.
fn size(item: &Attributes) -> usize {
    let values = item.iter().map(|(name, value)| name.len() + value.to_string().len());
    values.sum::<usize>() * 3 / 4
}

fn kinds(items: &[Attributes]) -> HashMap<&str, usize> {
    let mut kinds = HashMap::new();
    for item in items {
        *kinds.entry(text(item, "item_id").split('/').next().unwrap()).or_default() += 1;
    }
    kinds
}

/// DynamoDB deletes them by itself; the template turns it on.
#[tokio::test]
async fn every_item_that_is_kept_for_a_time_expires() {
    let Some((table, store)) = table().await else { return };
    let lease = started(store.admit(&run("s", "r1")).await.unwrap());
    store.store_pending_turn(&lease, b"state", &["c", "d"]).await.unwrap();
    store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    store.finish(&lease, &ending(2)).await.unwrap();
    let lease = started(store.admit(&NewRun { takes_session: false, ..run("s", "r2") }).await.unwrap());
    store.record_tool_result(&lease, "c", b"result").await.unwrap();
    store.finish(&lease, &ending(1)).await.unwrap();
    let lease = started(store.admit(&run("t", "r3")).await.unwrap());
    let end = RunEnding { turn: Some(turn(b"turn")), profile: Some(b"profile".to_vec()), tokens: 7, ..ending(1) };
    store.finish(&lease, &end).await.unwrap();
    drop(started(store.admit(&run("u", "live")).await.unwrap()));
    let items = table.items("").await;
    for item in &items {
        let id = text(item, "item_id");
        let is_permanent = ["session/", "turn/", "profile"].iter().any(|kind| id.starts_with(kind));
        assert_eq!(item.contains_key("expires_at"), !is_permanent, "{id}");
    }
    let found = kinds(&items);
    for kind in ["run", "chunk", "lease", "pending", "result", "session", "turn", "profile", "usage"] {
        assert!(found.contains_key(kind), "{kind} is not in {found:?}");
    }
}

#[tokio::test]
async fn long_values_are_divided_within_item_limit() {
    let Some((table, store)) = table().await else { return };
    let lease = started(store.admit(&run("s", "r1")).await.unwrap());
    store.store_pending_turn(&lease, &vec![1; 2_000_000], &["c"]).await.unwrap();
    store.finish(&lease, &ending(1)).await.unwrap();
    let lease = started(store.admit(&NewRun { takes_session: false, ..run("s", "r2") }).await.unwrap());
    store.record_tool_result(&lease, "c", &vec![2; 1_000_000]).await.unwrap();
    let long = FrameChunk { first: 1, count: 9, frames: vec![3; 3_000_000] };
    store.checkpoint(&lease, Some(&long)).await.unwrap();
    let last = FrameChunk { first: 10, count: 1, frames: vec![4; 2_000_000] };
    let profile = Some(vec![5; 500_000]);
    let end = RunEnding { chunk: last, turn: Some(turn(&vec![6; 2_000_000])), profile, ..ending(10) };
    store.finish(&lease, &end).await.unwrap();
    let items = table.items("").await;
    for item in &items {
        assert!(size(item) <= ITEM_BYTES, "{}: {}", text(item, "item_id"), size(item));
    }
    let found = kinds(&items);
    assert_eq!((found["turn"], found["chunk"]), (1, 3));
    assert!(found["part"] >= 6 + 3 + 8 + 6 + 2 + 6, "{found:?}");
    assert_eq!(store.list_turns(&ann(), &session("s"), None, 1).await.unwrap()[0].record, vec![6; 2_000_000]);
}

#[tokio::test]
async fn only_transient_items_expire() {
    let Some((table, store)) = table().await else { return };
    let lease = started(store.admit(&run("s", "r1")).await.unwrap());
    store.store_pending_turn(&lease, b"state", &["c"]).await.unwrap();
    store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    let profile = Some(vec![5; 500_000]);
    let end = RunEnding { turn: Some(turn(&vec![6; 800_000])), profile, tokens: 9, ..ending(2) };
    store.finish(&lease, &end).await.unwrap();
    started(store.admit(&run("s", "r2")).await.unwrap());
    for item in table.items("").await {
        let name = text(&item, "item_id");
        let belongs_to_a_turn = name.starts_with(&format!("part/session/s/{}", lease.lease_token));
        let is_lasting = belongs_to_a_turn
            || ["turn/", "session/", "profile", "part/profile/"].iter().any(|kind| name.starts_with(kind));
        assert_eq!(item.contains_key("expires_at"), !is_lasting, "{name}");
    }
}

#[tokio::test]
async fn expired_items_are_ignored_before_deletion() {
    let Some((table, store)) = table().await else { return };
    let lease = started(store.admit(&run("s", "r1")).await.unwrap());
    store.store_pending_turn(&lease, b"state", &["c"]).await.unwrap();
    store.checkpoint(&lease, Some(&chunk(1, 1))).await.unwrap();
    let before = table.items("").await.len();
    for mut item in table.items("").await {
        if item.contains_key("expires_at") {
            item.insert("expires_at".to_owned(), json!({"N": "1"}));
            table.put(item).await;
        }
    }
    assert_eq!(table.items("").await.len(), before);
    assert!(store.follow(&ann(), &request("r1"), &FramePage::after(0)).await.unwrap().is_none());
    let lease = started(store.admit(&NewRun { takes_session: false, ..run("s", "r2") }).await.unwrap());
    let outcome = store.record_tool_result(&lease, "c", b"1").await.unwrap();
    assert!(matches!(outcome, agent_service::conversation::ToolResultOutcome::UnknownCall), "{outcome:?}");
    started(store.admit(&run("s", "r1")).await.unwrap());
}

#[tokio::test]
async fn delete_leaves_no_item() {
    let Some((table, store)) = table().await else { return };
    for id in ["s", "t"] {
        let lease = started(store.admit(&run(id, &format!("{id}1"))).await.unwrap());
        store.store_pending_turn(&lease, &vec![1; 500_000], &["c"]).await.unwrap();
        store.checkpoint(&lease, Some(&FrameChunk { first: 1, count: 1, frames: vec![3; 500_000] })).await.unwrap();
        let end = RunEnding { turn: Some(turn(&vec![6; 500_000])), tokens: 9, ..ending(2) };
        store.finish(&lease, &end).await.unwrap();
        let with_result = NewRun { takes_session: false, ..run(id, &format!("{id}2")) };
        let lease = started(store.admit(&with_result).await.unwrap());
        store.record_tool_result(&lease, "c", &vec![2; 500_000]).await.unwrap();
    }
    assert_eq!(store.delete_sessions(&ann(), &SessionSelection::Listed(vec![session("s")])).await.unwrap(), 1);
    for item in table.items("").await {
        let name = text(&item, "item_id");
        assert!(!name.split('/').any(|part| ["s", "s1", "s2"].contains(&part)), "{name}");
        assert!(!Value::Object(item.clone()).to_string().contains("/s2\""), "{name}");
    }
    assert_eq!(store.delete_sessions(&ann(), &SessionSelection::All).await.unwrap(), 1);
    let left = table.items("").await;
    assert!(left.iter().all(|item| text(item, "item_id").starts_with("usage/")), "{left:?}");
}

#[tokio::test]
async fn checkpoint_without_lease_leaves_no_frames() {
    let Some((table, store)) = table().await else { return };
    let lease = started(store.admit(&run("s", "r1")).await.unwrap());
    for run in table.items("run/").await {
        table.delete(&run).await;
    }
    let long = FrameChunk { first: 1, count: 1, frames: vec![3; 500_000] };
    let lost = store.checkpoint(&lease, Some(&long)).await;
    assert!(matches!(lost, Err(StoreError::LeaseLost)), "{lost:?}");
    let lost = store.finish(&lease, &RunEnding { chunk: long, turn: Some(turn(b"x")), ..ending(1) }).await;
    assert!(matches!(lost, Err(StoreError::LeaseLost)), "{lost:?}");
    let items = table.items("").await;
    let left = kinds(&items);
    assert!(["chunk", "part", "turn", "session"].iter().all(|kind| !left.contains_key(kind)), "{left:?}");
}

#[tokio::test]
async fn turn_item_names_session_and_position() {
    let Some((table, store)) = table().await else { return };
    let lease = started(store.admit(&run("a#b c", "r1")).await.unwrap());
    store.finish(&lease, &RunEnding { turn: Some(turn(b"x")), ..ending(1) }).await.unwrap();
    let items = table.items("turn/").await;
    assert_eq!(items.len(), 1);
    assert_eq!(parse_turn_item(text(&items[0], "item_id")), Some((session("a#b c"), 1)));
    assert_eq!(items[0]["may_be_learned"], json!({"BOOL": true}));
    assert_eq!(items[0]["is_complete"], json!({"BOOL": true}));
}

#[tokio::test]
async fn error_names_the_missing_table() {
    let Some((table, _)) = table().await else { return };
    let store = store_of("no-such-table", ADMIT_TIMEOUT);
    let failed = store.admit(&run("s", "r")).await.map(|admitted| matches!(admitted, AdmitOutcome::Started { .. }));
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("ResourceNotFound"), "{failed}");
    drop(table);
}
