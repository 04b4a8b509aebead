//! Long values are divided into parts, which are written first and expire unless an item names them for good.

use std::ops::Range;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::{
    item::{Item, ItemExt as _, bytes, number, text},
    keys::{EXPIRES_AT, Key, part_prefix},
    table::Table,
    write::{Attribute, MAX_ITEM_BYTES, Write, WriteOutcome},
};
use crate::{
    conversation::error::{Result, StoreError},
    identity::UserId,
};

/// A few such values fit into a transaction.
const MAX_INLINE_BYTES: usize = 256 * 1_024;
const PART_BYTES: usize = MAX_ITEM_BYTES - 16 * 1_024;
/// All parts are in one partition, which takes about a megabyte a second.
const CONCURRENT_WRITES: usize = 2;

pub(super) const PROFILE: &str = "profile";

const VALUE: &str = "value_inline";
const PARTS_ID: &str = "value_id";
const PARTS: &str = "value_parts";
const CONTENT: &str = "content";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValueOwner {
    user: UserId,
    owner: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValueParts {
    owner: ValueOwner,
    id: String,
    count: usize,
}

#[derive(Debug)]
pub(super) struct StagedValue {
    pub(super) attributes: Vec<Attribute>,
    pub(super) parts: Option<ValueParts>,
}

impl ValueOwner {
    pub(super) fn new(user: &UserId, owner: impl Into<String>) -> Self {
        Self { user: user.clone(), owner: owner.into() }
    }

    pub(super) fn parts_of(&self, item: &Item) -> Option<ValueParts> {
        let (id, count) = (item.text(PARTS_ID).ok()?.to_owned(), item.number(PARTS).ok()?);
        Some(ValueParts { owner: self.clone(), id, count })
    }
}

impl ValueParts {
    fn keys(&self) -> impl Iterator<Item = Key> {
        let ValueOwner { user, owner } = &self.owner;
        (0..self.count).map(|part| Key::part(user, owner, &self.id, part))
    }
}

impl Table {
    pub(super) async fn stage_value(
        &self,
        owner: &ValueOwner,
        id: Uuid,
        value: &[u8],
        expires: &AttributeValue,
    ) -> Result<StagedValue> {
        if value.len() <= MAX_INLINE_BYTES {
            return Ok(StagedValue { attributes: vec![(VALUE, bytes(value))], parts: None });
        }
        self.stage_in_parts(owner, id, value, expires).await
    }

    /// Outside of its item even if it is short, because the item is read for other things.
    pub(super) async fn stage_in_parts(
        &self,
        owner: &ValueOwner,
        id: Uuid,
        value: &[u8],
        expires: &AttributeValue,
    ) -> Result<StagedValue> {
        let contents: Vec<&[u8]> = value.chunks(PART_BYTES).collect();
        let parts = ValueParts { owner: owner.clone(), id: id.to_string(), count: contents.len() };
        let writes: Vec<_> = parts
            .keys()
            .zip(&contents)
            .map(|(key, content)| {
                self.write(Write::put(key, [(CONTENT, bytes(content)), (EXPIRES_AT, expires.clone())]))
            })
            .collect();
        stream::iter(writes).buffer_unordered(CONCURRENT_WRITES).try_for_each(|_| async { Ok(()) }).await?;
        let attributes = vec![(PARTS_ID, text(&parts.id)), (PARTS, number(parts.count))];
        Ok(StagedValue { attributes, parts: Some(parts) })
    }

    pub(super) async fn clear_expiry(&self, parts: &ValueParts) -> Result<()> {
        let clear = |key| Write::update(key, "REMOVE expires_at").condition("attribute_exists(content)");
        let writes: Vec<_> = parts.keys().map(|key| self.write(clear(key))).collect();
        let is_there = |outcome| async move {
            match outcome {
                WriteOutcome::Done(_) => Ok(()),
                WriteOutcome::ConditionFailed => Err(StoreError::Malformed("a part of a value")),
            }
        };
        stream::iter(writes).buffer_unordered(CONCURRENT_WRITES).try_for_each(is_there).await
    }

    /// A failure is ignored: the parts expire.
    pub(super) async fn delete_parts(&self, parts: &ValueParts) {
        let writes: Vec<_> = parts.keys().map(|key| self.write(Write::delete(key))).collect();
        stream::iter(writes).buffer_unordered(CONCURRENT_WRITES).for_each(|_| async {}).await;
    }

    /// Those bytes of a value that exist. Of a divided value only the parts that they are in are read.
    pub(super) async fn read_value_range(
        &self,
        owner: &ValueOwner,
        item: &Item,
        range: Range<usize>,
    ) -> Result<Vec<u8>> {
        if let Ok(value) = item.bytes(VALUE) {
            let end = range.end.min(value.len());
            return Ok(value.get(range.start..end).unwrap_or_default().to_vec());
        }
        let parts = owner.parts_of(item).ok_or(StoreError::Malformed(PARTS_ID))?;
        let mut value = Vec::new();
        let first = range.start / PART_BYTES;
        for (number, key) in parts.keys().enumerate().skip(first) {
            let begin = number * PART_BYTES;
            if begin >= range.end {
                break;
            }
            let part = self.get(key).await?.ok_or(StoreError::Malformed("parts of a value"))?;
            let content = part.bytes(CONTENT)?;
            let (from, to) = (range.start.saturating_sub(begin), (range.end - begin).min(content.len()));
            value.extend_from_slice(content.get(from..to).unwrap_or_default());
        }
        Ok(value)
    }

    pub(super) async fn read_value(&self, owner: &ValueOwner, item: &Item) -> Result<Vec<u8>> {
        if let Ok(value) = item.bytes(VALUE) {
            return Ok(value.to_vec());
        }
        let parts = self.query_prefix(&owner.user, &part_prefix(&owner.owner, item.text(PARTS_ID)?)).await?;
        if parts.len() != item.number::<usize>(PARTS)? {
            return Err(StoreError::Malformed("parts of a value"));
        }
        let mut value = Vec::with_capacity(parts.len() * PART_BYTES);
        for part in &parts {
            value.extend_from_slice(part.bytes(CONTENT)?);
        }
        Ok(value)
    }
}
