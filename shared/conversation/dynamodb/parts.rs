//! Values that do not fit into an item: they are divided over items of their own, which are written first, so that an item
//! that names them is what makes them count.

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::{
    item::{Item, ItemExt as _, bytes, number, text},
    keys::{EXPIRES_AT, Key, part_prefix},
    table::Table,
    write::{Attribute, MAX_ITEM_BYTES, Write, WriteOutcome},
};
use crate::{conversation::StoreError, identity::UserId};

/// Longest value that is kept within its item. A few of them fit into a transaction.
pub(super) const MAX_INLINE_BYTES: usize = 256 * 1_024;
/// Bytes of a part, beside which its names fit.
const PART_BYTES: usize = MAX_ITEM_BYTES - 16 * 1_024;
/// Parts that are written at a time. All are of one user, for whom DynamoDB takes about a megabyte a second for long.
const AT_ONCE: usize = 2;

/// Whose parts those of a profile are.
pub(super) const PROFILE: &str = "profile";

/// The value, where it is short.
pub(super) const VALUE: &str = "value_inline";
/// Which parts the value is divided over, and how many they are.
const PARTS_ID: &str = "value_id";
const PARTS: &str = "value_parts";
/// What is in a part.
const CONTENT: &str = "content";

/// Where the parts of a value are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValueParts {
    user: UserId,
    owner: String,
    id: String,
    parts: usize,
}

/// A value that is as good as kept: what has to be written into the item that it is of.
#[derive(Debug)]
pub(super) struct StagedValue {
    pub(super) attributes: Vec<Attribute>,
    pub(super) parts: Option<ValueParts>,
}

impl ValueParts {
    /// The parts that an item names, if its value is divided.
    pub(super) fn of(user: &UserId, owner: &str, item: &Item) -> Option<Self> {
        let (id, parts) = (item.text(PARTS_ID).ok()?.to_owned(), item.number(PARTS).ok()?);
        Some(Self { user: user.clone(), owner: owner.to_owned(), id, parts })
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        (0..self.parts).map(|part| Key::part(&self.user, &self.owner, &self.id, part))
    }
}

impl Table {
    /// Prepares a value of an item. If it is long, parts of `owner` are written under `id`, which are gone after `expires`.
    pub(super) async fn stage_value(
        &self,
        user: &UserId,
        owner: &str,
        id: Uuid,
        value: &[u8],
        expires: &AttributeValue,
    ) -> Result<StagedValue, StoreError> {
        if value.len() <= MAX_INLINE_BYTES {
            return Ok(StagedValue { attributes: vec![(VALUE, bytes(value))], parts: None });
        }
        self.stage_in_parts(user, owner, id, value, expires).await
    }

    /// The same, for a value that is not to be in its item even if it is short, because the item is read for other things.
    pub(super) async fn stage_in_parts(
        &self,
        user: &UserId,
        owner: &str,
        id: Uuid,
        value: &[u8],
        expires: &AttributeValue,
    ) -> Result<StagedValue, StoreError> {
        let parts: Vec<&[u8]> = value.chunks(PART_BYTES).collect();
        let divided =
            ValueParts { user: user.clone(), owner: owner.to_owned(), id: id.to_string(), parts: parts.len() };
        let writes: Vec<_> = divided
            .keys()
            .zip(&parts)
            .map(|(key, part)| self.write(Write::put(key, [(CONTENT, bytes(part)), (EXPIRES_AT, expires.clone())])))
            .collect();
        stream::iter(writes).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        let attributes = vec![(PARTS_ID, text(&divided.id)), (PARTS, number(divided.parts))];
        Ok(StagedValue { attributes, parts: Some(divided) })
    }

    /// Lets parts live as long as the item that names them.
    pub(super) async fn clear_expiry(&self, divided: &ValueParts) -> Result<(), StoreError> {
        let lasting = |key| Write::update(key, "REMOVE expires_at").condition("attribute_exists(content)");
        let writes: Vec<_> = divided.keys().map(|key| self.write(lasting(key))).collect();
        let is_there = |applied| async move {
            match applied {
                WriteOutcome::Done(_) => Ok(()),
                WriteOutcome::Refused => Err(StoreError::Malformed("a part is gone")),
            }
        };
        stream::iter(writes).buffer_unordered(AT_ONCE).try_for_each(is_there).await
    }

    /// Deletes parts that no item names. Those that are left have an expiry.
    pub(super) async fn delete_parts(&self, divided: &ValueParts) {
        let writes: Vec<_> = divided.keys().map(|key| self.write(Write::delete(key))).collect();
        stream::iter(writes).buffer_unordered(AT_ONCE).for_each(|_| async {}).await;
    }

    /// The value of an item.
    pub(super) async fn read_value(&self, user: &UserId, owner: &str, item: &Item) -> Result<Vec<u8>, StoreError> {
        if let Ok(value) = item.bytes(VALUE) {
            return Ok(value.to_vec());
        }
        let parts = self.query_prefix(user, &part_prefix(owner, item.text(PARTS_ID)?)).await?;
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
