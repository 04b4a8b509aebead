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
fn item_size_is_limited() {
    let around = "user_id".len() + 1 + "item_id".len() + 1 + "content".len();
    assert!(check_limits(&[put("a", MAX_ITEM_BYTES - around)]).is_ok());
    assert!(matches!(check_limits(&[put("a", MAX_ITEM_BYTES - around + 1)]), Err(StoreError::Malformed(_))));
}

#[test]
fn transaction_items_and_bytes_are_limited() {
    let many = |count: usize, size| (0..count).map(|n| put(&n.to_string(), size)).collect::<Vec<_>>();
    assert!(check_limits(&many(100, 1)).is_ok());
    assert!(check_limits(&many(101, 1)).is_err());
    assert!(check_limits(&many(10, 400_000)).is_ok());
    assert!(check_limits(&many(11, 400_000)).is_err());
}

#[test]
fn transaction_rejects_the_same_item_twice() {
    assert!(check_limits(&[put("a", 1), Write::delete(key("b"))]).is_ok());
    assert!(check_limits(&[put("a", 1), Write::delete(key("a"))]).is_err());
}

#[test]
fn failed_conditions_carry_their_items() {
    let item = Item::from([("holder".to_owned(), text("h"))]);
    let with_item = CancellationReason::builder().code("ConditionalCheckFailed").set_item(Some(item)).build();
    let Cancellation::ConditionsFailed(failed) =
        classify(&[reason("None"), with_item, reason("ConditionalCheckFailed")])
    else {
        panic!("no failed conditions");
    };
    assert!(failed.get(0).is_none());
    assert!(failed.get(1).unwrap().contains_key("holder"));
    assert!(failed.get(2).unwrap().is_empty());
    assert!(failed.get(3).is_none());
}

#[test]
fn conflict_hides_failed_conditions() {
    let reasons = [reason("ConditionalCheckFailed"), reason("TransactionConflict")];
    assert!(matches!(classify(&reasons), Cancellation::Conflict));
    assert!(matches!(classify(&[reason("ThrottlingError")]), Cancellation::Conflict));
}

#[test]
fn invalid_request_is_no_failed_condition() {
    let reasons = [reason("ConditionalCheckFailed"), reason("ValidationError"), reason("TransactionConflict")];
    assert!(matches!(classify(&reasons), Cancellation::Failed(code) if code == "ValidationError"));
}
