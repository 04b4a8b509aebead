use std::{collections::HashMap, str::FromStr, time::Duration};

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use jiff::Timestamp;

use super::keys::EXPIRES_AT;
use crate::conversation::error::{Result, StoreError};

pub(super) type Item = HashMap<String, AttributeValue>;

pub(super) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

pub(super) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(super) fn bytes(value: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(value))
}

pub(super) fn flag(value: bool) -> AttributeValue {
    AttributeValue::Bool(value)
}

/// DynamoDB has no empty sets.
pub(super) fn set(values: impl IntoIterator<Item = String>) -> AttributeValue {
    AttributeValue::Ss(values.into_iter().collect())
}

pub(super) fn millis(time: Timestamp) -> AttributeValue {
    number(time.as_millisecond())
}

pub(super) fn expiry(now: Timestamp, after: Duration) -> AttributeValue {
    number(add(now, after).as_second())
}

pub(super) fn iso_time(time: Timestamp) -> String {
    format!("{time:.6}")
}

pub(super) fn add(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

pub(super) fn duration_until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// A missing or invalid attribute is an error that names it.
pub(super) trait ItemExt {
    fn text(&self, name: &'static str) -> Result<&str>;
    fn number<N: FromStr>(&self, name: &'static str) -> Result<N>;
    fn bytes(&self, name: &'static str) -> Result<&[u8]>;
    fn millis(&self, name: &'static str) -> Result<Timestamp>;
    fn time(&self, name: &'static str) -> Result<Timestamp>;
    fn flag(&self, name: &'static str) -> bool;
    fn set(&self, name: &'static str) -> &[String];
    fn is_expired(&self, now: Timestamp) -> bool;
}

impl ItemExt for Item {
    fn text(&self, name: &'static str) -> Result<&str> {
        let text = self.get(name).and_then(|value| value.as_s().ok());
        text.map(String::as_str).ok_or(StoreError::Malformed(name))
    }

    fn number<N: FromStr>(&self, name: &'static str) -> Result<N> {
        let number = self.get(name).and_then(|value| value.as_n().ok()?.parse().ok());
        number.ok_or(StoreError::Malformed(name))
    }

    fn bytes(&self, name: &'static str) -> Result<&[u8]> {
        let bytes = self.get(name).and_then(|value| value.as_b().ok());
        bytes.map(AsRef::as_ref).ok_or(StoreError::Malformed(name))
    }

    fn millis(&self, name: &'static str) -> Result<Timestamp> {
        Timestamp::from_millisecond(self.number(name)?).map_err(|_| StoreError::Malformed(name))
    }

    fn time(&self, name: &'static str) -> Result<Timestamp> {
        self.text(name)?.parse().map_err(|_| StoreError::Malformed(name))
    }

    fn flag(&self, name: &'static str) -> bool {
        self.get(name).and_then(|value| value.as_bool().ok()).copied().unwrap_or_default()
    }

    fn set(&self, name: &'static str) -> &[String] {
        self.get(name).and_then(|value| value.as_ss().ok()).map(Vec::as_slice).unwrap_or_default()
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        self.number::<i64>(EXPIRES_AT).is_ok_and(|expires| expires <= now.as_second())
    }
}

/// As DynamoDB counts bytes, rounded up where its documentation is not exact.
pub(super) fn size(item: &Item) -> usize {
    item.iter().map(|(name, value)| name.len() + size_of_value(value)).sum()
}

fn size_of_value(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::B(bytes) => bytes.as_ref().len(),
        // Two digits a byte, and one or two bytes for sign and scale.
        AttributeValue::N(digits) => digits.len() / 2 + 3,
        AttributeValue::Ss(texts) => 3 + texts.iter().map(|text| text.len() + 1).sum::<usize>(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_times_sort_as_text_with_microseconds() {
        let times = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000001Z", "2026-01-01T00:00:00.1Z"];
        let written = times.map(|text| iso_time(text.parse().unwrap()));
        assert!(written.is_sorted());
        assert_eq!(written[2], "2026-01-01T00:00:00.100000Z");
    }

    #[test]
    fn item_expires_at_its_second() {
        let now = Timestamp::from_second(1_000).unwrap();
        let item = |expires: i64| Item::from([(EXPIRES_AT.to_owned(), number(expires))]);
        assert!(item(1_000).is_expired(now));
        assert!(!item(1_001).is_expired(now));
        assert!(!Item::new().is_expired(now));
    }

    #[test]
    fn item_size_counts_names_and_values() {
        let item = Item::from([
            ("name".to_owned(), text("四")),
            ("bytes".to_owned(), bytes(&[0; 100])),
            ("set".to_owned(), set(["ab".to_owned()])),
            ("flag".to_owned(), flag(true)),
        ]);
        assert_eq!(size(&item), (4 + 3) + (5 + 100) + (3 + 3 + 3) + (4 + 1));
        assert!(size(&Item::from([("n".to_owned(), number(u64::MAX))])) > 11);
    }

    #[test]
    fn unreadable_attribute_is_named() {
        let item = Item::from([("a".to_owned(), text("x"))]);
        assert!(matches!(item.number::<u32>("a"), Err(StoreError::Malformed("a"))));
        assert!(matches!(item.text("b"), Err(StoreError::Malformed("b"))));
        assert_eq!((item.flag("b"), item.set("b").len()), (false, 0));
    }
}
