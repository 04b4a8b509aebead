//! Records of the table's stream, as a Lambda function receives them.

use serde::Deserialize;
use serde_json::Value;

use super::{
    attributes::{IS_COMPLETE, MAY_BE_LEARNED},
    keys::parse_turn_item,
};
use crate::identity::{SessionId, UserId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedTurnItem {
    pub user: UserId,
    pub session: SessionId,
    pub seq: u32,
}

/// The message quotes nothing of the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the stream has no readable {0}")]
pub struct MalformedRecord(&'static str);

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "eventName")]
    kind: String,
    dynamodb: Item,
}

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "Keys")]
    keys: Keys,
    /// Missing if the stream's view type is `KEYS_ONLY`.
    #[serde(rename = "NewImage")]
    image: Option<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
struct Keys {
    user_id: Text,
    item_id: Text,
}

#[derive(Deserialize)]
struct Text {
    #[serde(rename = "S")]
    text: String,
}

#[must_use]
pub fn sequence_number(record: &Value) -> Option<&str> {
    record.pointer("/dynamodb/SequenceNumber")?.as_str()
}

/// `None`: the record is of something else, or the turn may not be learned from.
pub fn finished_turn(record: &Value) -> Result<Option<FinishedTurnItem>, MalformedRecord> {
    let Change { kind, dynamodb: Item { keys, image } } =
        Change::deserialize(record).map_err(|_| MalformedRecord("item"))?;
    if kind != "INSERT" {
        return Ok(None);
    }
    let Some((session, seq)) = parse_turn_item(&keys.item_id.text) else { return Ok(None) };
    let is_off = |name: &str| {
        let value = image.as_ref().map(|image| image.get(name).and_then(|value| value.get("BOOL")));
        value.is_some_and(|value| value != Some(&Value::Bool(true)))
    };
    if is_off(IS_COMPLETE) || is_off(MAY_BE_LEARNED) {
        return Ok(None);
    }
    let user = UserId::parse("user_id", &keys.user_id.text).map_err(|_| MalformedRecord("user"))?;
    Ok(Some(FinishedTurnItem { user, session, seq }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(kind: &str, item: &str, learned: bool) -> Value {
        json!({
            "eventID": "1", "eventName": kind, "eventSource": "aws:dynamodb", "awsRegion": "eu-central-1",
            "dynamodb": {
                "Keys": {"user_id": {"S": "ann"}, "item_id": {"S": item}},
                "NewImage": {"user_id": {"S": "ann"}, "item_id": {"S": item}, "is_complete": {"BOOL": true},
                             "may_be_learned": {"BOOL": learned}},
                "SequenceNumber": "111", "SizeBytes": 26, "StreamViewType": "NEW_IMAGE",
            },
        })
    }

    #[test]
    fn only_new_learnable_turns_are_finished_turns() {
        let new = record("INSERT", "turn/s 1/0000000003", true);
        let turn = finished_turn(&new).unwrap().unwrap();
        assert_eq!((turn.user.as_str(), turn.session.as_str(), turn.seq), ("ann", "s 1", 3));
        assert_eq!(sequence_number(&new), Some("111"));
        for other in [
            record("MODIFY", "turn/s/0000000003", true),
            record("REMOVE", "turn/s/0000000003", true),
            record("INSERT", "turn/s/0000000003", false),
            record("INSERT", "session/s", true),
            record("INSERT", "part/session/s/x/0001", true),
        ] {
            assert_eq!(finished_turn(&other), Ok(None), "{other}");
        }
        let mut keys_only = new;
        keys_only["dynamodb"].as_object_mut().unwrap().remove("NewImage");
        assert!(finished_turn(&keys_only).unwrap().is_some());
    }

    #[test]
    fn malformed_record_error_quotes_nothing() {
        let mut odd = record("INSERT", "turn/s/0000000003", true);
        odd["dynamodb"]["Keys"]["user_id"] = json!({"S": "a/secret"});
        for odd in
            [odd, json!({}), json!("secret"), json!({"eventName": "INSERT", "dynamodb": {"Keys": {"secret": 1}}})]
        {
            assert!(!finished_turn(&odd).unwrap_err().to_string().contains("secret"));
        }
        assert_eq!(sequence_number(&json!({"dynamodb": {"SequenceNumber": 1}})), None);
    }
}
