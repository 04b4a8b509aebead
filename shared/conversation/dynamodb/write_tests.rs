use super::*;
use crate::{
    conversation::dynamodb::item::{bytes, text},
    identity::UserId,
};

fn key(item: &str) -> Key {
    Key::new(&UserId::parse("user_id", "u").unwrap(), item)
}

fn put(item: &str, size: usize) -> Write {
    Write::put(key(item), [("content", bytes(&vec![0; size]))])
}

fn reason(code: &str) -> CancellationReason {
    CancellationReason::builder().code(code).build()
}

#[test]
fn an_item_is_at_most_as_large_as_dynamodb_takes() {
    let around = "user_id".len() + 1 + "item_id".len() + 1 + "content".len();
    assert!(check(&[put("a", MAX_ITEM_BYTES - around)]).is_ok());
    assert!(matches!(check(&[put("a", MAX_ITEM_BYTES - around + 1)]), Err(StoreError::Malformed(_))));
}

#[test]
fn a_transaction_has_as_many_items_and_bytes_as_dynamodb_takes() {
    let many = |count: usize, size| (0..count).map(|n| put(&n.to_string(), size)).collect::<Vec<_>>();
    assert!(check(&many(100, 1)).is_ok());
    assert!(check(&many(101, 1)).is_err());
    assert!(check(&many(10, 400_000)).is_ok());
    assert!(check(&many(11, 400_000)).is_err());
}

#[test]
fn a_transaction_has_no_item_twice() {
    assert!(check(&[put("a", 1), Write::delete(key("b"))]).is_ok());
    assert!(check(&[put("a", 1), Write::delete(key("a"))]).is_err());
}

#[test]
fn conditions_that_do_not_hold_are_told_with_their_items() {
    let item = Item::from([("holder".to_owned(), text("h"))]);
    let with_item = CancellationReason::builder().code("ConditionalCheckFailed").set_item(Some(item)).build();
    let Judged::Refused(refusals) = judged(&[reason("None"), with_item, reason("ConditionalCheckFailed")]) else {
        panic!("not refused");
    };
    assert!(refusals.get(0).is_none());
    assert!(refusals.get(1).unwrap().contains_key("holder"));
    assert!(refusals.get(2).unwrap().is_empty());
    assert!(refusals.get(3).is_none());
}

#[test]
fn a_conflict_leaves_open_which_conditions_hold() {
    let reasons = [reason("ConditionalCheckFailed"), reason("TransactionConflict")];
    assert!(matches!(judged(&reasons), Judged::Conflict));
    assert!(matches!(judged(&[reason("ThrottlingError")]), Judged::Conflict));
}

#[test]
fn a_mistake_is_not_taken_for_a_condition() {
    let reasons = [reason("ConditionalCheckFailed"), reason("ValidationError"), reason("TransactionConflict")];
    assert!(matches!(judged(&reasons), Judged::Failed(code) if code == "ValidationError"));
}
