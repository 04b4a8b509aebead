//! Values that do not fit into an item: they are divided over items of their own, which are written first, so that an item
//! that names them is what makes them count.

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::{
    item::{Item, Read as _, bytes, number, text},
    keys::{EXPIRES, Key, parts_of},
    table::Table,
    write::{Applied, Attribute, ITEM_BYTES, Write},
};
use crate::{conversation::StoreError, identity::UserId};

/// Longest value that is kept within its item. A few of them fit into a transaction.
pub(super) const INLINE: usize = 256 * 1_024;
/// Bytes of a part, beside which its names fit.
const PART: usize = ITEM_BYTES - 16 * 1_024;
/// Parts that are written at a time.
const AT_ONCE: usize = 4;

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
pub(super) struct Divided {
    user: UserId,
    owner: String,
    id: String,
    parts: usize,
}

/// A value that is as good as kept: what has to be written into the item that it is of.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) attributes: Vec<Attribute>,
    pub(super) divided: Option<Divided>,
}

impl Divided {
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
    pub(super) async fn prepare(
        &self,
        user: &UserId,
        owner: &str,
        id: Uuid,
        value: &[u8],
        expires: &AttributeValue,
    ) -> Result<Prepared, StoreError> {
        if value.len() <= INLINE {
            return Ok(Prepared { attributes: vec![(VALUE, bytes(value))], divided: None });
        }
        self.prepare_apart(user, owner, id, value, expires).await
    }

    /// The same, for a value that is not to be in its item even if it is short, because the item is read for other things.
    pub(super) async fn prepare_apart(
        &self,
        user: &UserId,
        owner: &str,
        id: Uuid,
        value: &[u8],
        expires: &AttributeValue,
    ) -> Result<Prepared, StoreError> {
        let parts: Vec<&[u8]> = value.chunks(PART).collect();
        let divided = Divided { user: user.clone(), owner: owner.to_owned(), id: id.to_string(), parts: parts.len() };
        let writes: Vec<_> = divided
            .keys()
            .zip(&parts)
            .map(|(key, part)| self.apply(Write::put(key, [(CONTENT, bytes(part)), (EXPIRES, expires.clone())])))
            .collect();
        stream::iter(writes).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        let attributes = vec![(PARTS_ID, text(&divided.id)), (PARTS, number(divided.parts))];
        Ok(Prepared { attributes, divided: Some(divided) })
    }

    /// Lets parts live as long as the item that names them.
    pub(super) async fn make_lasting(&self, divided: &Divided) -> Result<(), StoreError> {
        let lasting = |key| Write::update(key, "REMOVE expires_at").when("attribute_exists(content)");
        let writes: Vec<_> = divided.keys().map(|key| self.apply(lasting(key))).collect();
        let is_there = |applied| async move {
            match applied {
                Applied::Done(_) => Ok(()),
                Applied::Refused => Err(StoreError::Malformed("a part is gone")),
            }
        };
        stream::iter(writes).buffer_unordered(AT_ONCE).try_for_each(is_there).await
    }

    /// Deletes parts that no item names. Those that are left have an expiry.
    pub(super) async fn discard(&self, divided: &Divided) {
        let writes: Vec<_> = divided.keys().map(|key| self.apply(Write::delete(key))).collect();
        stream::iter(writes).buffer_unordered(AT_ONCE).for_each(|_| async {}).await;
    }

    /// The value of an item.
    pub(super) async fn value(&self, user: &UserId, owner: &str, item: &Item) -> Result<Vec<u8>, StoreError> {
        if let Ok(value) = item.bytes(VALUE) {
            return Ok(value.to_vec());
        }
        let parts = self.all(user, &parts_of(owner, item.text(PARTS_ID)?)).await?;
        if parts.len() != item.number::<usize>(PARTS)? {
            return Err(StoreError::Malformed("parts of a value"));
        }
        let mut value = Vec::with_capacity(parts.len() * PART);
        for part in &parts {
            value.extend_from_slice(part.bytes(CONTENT)?);
        }
        Ok(value)
    }
}
