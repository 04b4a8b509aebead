//! All reads are strongly consistent. SDK requests are boxed, because their futures take kilobytes.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    types::{AttributeValue, KeysAndAttributes},
};
use jiff::Timestamp;

use super::{
    access::{CONNECT_TIMEOUT, DynamoAccess},
    item::{Item, ItemExt as _, text},
    keys::{ITEM_ID, Key, LATEST_INDEX, UPDATED, USER_ID},
    request::{ThrottleBackoff, retry_throttled},
};
use crate::{
    conversation::error::{Result, StoreError},
    identity::UserId,
};

const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 3;
const INITIAL_BACKOFF: Duration = Duration::from_millis(25);
/// DynamoDB's limit for `BatchGetItem`.
const MAX_BATCH_KEYS: usize = 100;

#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) client: Client,
    pub(super) name: String,
}

impl Table {
    pub(super) fn new(name: String, access: DynamoAccess) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(INITIAL_BACKOFF);
        let config = access.config.timeout_config(timeouts).retry_config(retries);
        Self { client: Client::from_conf(config.build()), name }
    }

    pub(super) async fn get(&self, key: Key) -> Result<Option<Item>> {
        let request =
            self.client.get_item().table_name(&self.name).set_key(Some(key_attributes(key))).consistent_read(true);
        let answer = Box::pin(retry_throttled(move || request.clone().send())).await?;
        let now = Timestamp::now();
        Ok(answer.item.filter(|item| !item.is_expired(now)))
    }

    /// Absent items are missing from the map.
    pub(super) async fn batch_get(&self, mut keys: Vec<Key>) -> Result<HashMap<String, Item>> {
        let mut found = HashMap::new();
        // DynamoDB rejects a request that names a key twice.
        keys.sort_by(|one, other| one.item.cmp(&other.item));
        keys.dedup();
        let mut left: Vec<Item> = keys.into_iter().map(key_attributes).collect();
        let mut backoff = ThrottleBackoff::default();
        while !left.is_empty() {
            let batch = left.split_off(left.len().saturating_sub(MAX_BATCH_KEYS));
            let requested = batch.len();
            let keys = KeysAndAttributes::builder().set_keys(Some(batch)).consistent_read(true).build();
            let keys = keys.map_err(|error| StoreError::Dynamo(error.to_string()))?;
            let request = self.client.batch_get_item().request_items(&self.name, keys);
            let answer = Box::pin(retry_throttled(move || request.clone().send())).await?;
            let now = Timestamp::now();
            for item in answer.responses.into_iter().flatten().flat_map(|(_, items)| items) {
                if !item.is_expired(now) {
                    found.insert(item.text(ITEM_ID)?.to_owned(), item);
                }
            }
            let unread = answer.unprocessed_keys.into_iter().flatten();
            let unread: Vec<Item> = unread.flat_map(|(_, keys)| keys.keys).collect();
            if !unread.is_empty() {
                backoff.wait(unread.len() < requested).await?;
                left.extend(unread);
            }
        }
        Ok(found)
    }

    pub(super) async fn query_prefix(&self, user: &UserId, prefix: &str) -> Result<Vec<Item>> {
        self.query_all(Query::prefix(user, prefix)).await
    }

    pub(super) async fn query_all(&self, query: Query) -> Result<Vec<Item>> {
        let mut pages = PageCursor::new(query);
        let mut items = Vec::new();
        while let Some(page) = self.next_page(&mut pages).await? {
            items.extend(page);
        }
        Ok(items)
    }

    pub(super) async fn query_first(&self, query: Query, limit: usize) -> Result<Vec<Item>> {
        let mut pages = PageCursor::new(query.limit(limit));
        let mut items = Vec::new();
        while items.len() < limit {
            let Some(page) = self.next_page(&mut pages).await? else { break };
            items.extend(page);
        }
        items.truncate(limit);
        Ok(items)
    }

    /// At most a megabyte, or the query's limit; `None` after the last page.
    pub(super) async fn next_page(&self, pages: &mut PageCursor) -> Result<Option<Vec<Item>>> {
        if pages.is_over {
            return Ok(None);
        }
        let query = &pages.query;
        let request = self.client.query().table_name(&self.name).consistent_read(true);
        let request = request.key_condition_expression(&query.condition);
        let request = request.set_expression_attribute_values(Some(query.values.clone()));
        let request = request.set_index_name(query.is_latest.then(|| LATEST_INDEX.to_owned()));
        let request = request.set_projection_expression(query.only.map(str::to_owned));
        let request = request.scan_index_forward(!query.is_descending).set_limit(query.limit);
        let request = request.set_exclusive_start_key(pages.from.take());
        let answer = Box::pin(retry_throttled(move || request.clone().send())).await?;
        pages.is_over = answer.last_evaluated_key.is_none();
        pages.from = answer.last_evaluated_key;
        let now = Timestamp::now();
        let items = answer.items.into_iter().flatten();
        Ok(Some(items.filter(|item| query.has_expired || !item.is_expired(now)).collect()))
    }
}

/// Expired items are skipped.
#[derive(Debug, Clone)]
pub(super) struct Query {
    condition: String,
    values: Item,
    is_latest: bool,
    is_descending: bool,
    limit: Option<i32>,
    only: Option<&'static str>,
    has_expired: bool,
}

impl Query {
    fn new(user: &UserId, condition: &str) -> Self {
        Self {
            condition: condition.to_owned(),
            values: Item::from([(":user".to_owned(), text(user.as_str()))]),
            is_latest: false,
            is_descending: false,
            limit: None,
            only: None,
            has_expired: false,
        }
    }

    pub(super) fn everything(user: &UserId) -> Self {
        Self::new(user, "user_id = :user")
    }

    pub(super) fn prefix(user: &UserId, prefix: &str) -> Self {
        Self::new(user, "user_id = :user AND begins_with(item_id, :prefix)").with(":prefix", prefix)
    }

    pub(super) fn between(user: &UserId, from: &str, to: &str) -> Self {
        Self::new(user, "user_id = :user AND item_id BETWEEN :from AND :to").with(":from", from).with(":to", to)
    }

    pub(super) fn latest(user: &UserId, before: Option<&str>) -> Self {
        debug_assert_eq!(UPDATED, "updated", "the attribute's name is in the condition");
        let query = match before {
            Some(before) => Self::new(user, "user_id = :user AND updated < :before").with(":before", before),
            None => Self::everything(user),
        };
        Self { is_latest: true, ..query.descending() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.values.insert(name.to_owned(), text(value));
        self
    }

    pub(super) fn descending(self) -> Self {
        Self { is_descending: true, ..self }
    }

    pub(super) fn limit(self, limit: usize) -> Self {
        Self { limit: Some(i32::try_from(limit).unwrap_or(i32::MAX).max(1)), ..self }
    }

    /// Attributes separated by commas. They cost the same, but transfer less.
    pub(super) fn project(self, only: &'static str) -> Self {
        Self { only: Some(only), ..self }
    }

    pub(super) fn include_expired(self) -> Self {
        Self { has_expired: true, ..self }
    }
}

#[derive(Debug)]
pub(super) struct PageCursor {
    query: Query,
    from: Option<Item>,
    is_over: bool,
}

impl PageCursor {
    pub(super) fn new(query: Query) -> Self {
        Self { query, from: None, is_over: false }
    }
}

pub(super) fn key_attributes(key: Key) -> HashMap<String, AttributeValue> {
    HashMap::from([(USER_ID.to_owned(), text(key.user)), (ITEM_ID.to_owned(), text(key.item))])
}
