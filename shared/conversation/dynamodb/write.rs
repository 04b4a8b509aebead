use std::time::Duration;

use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::transact_write_items::TransactWriteItemsError,
    types::{
        AttributeValue, CancellationReason, ConditionCheck, Delete, Put, ReturnValue,
        ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
    },
};
use aws_smithy_types::error::operation::BuildError;
use tokio::time::sleep;

use super::{
    item::{Item, size},
    keys::Key,
    request::{is_transient, store_error},
    table::{Table, key_attributes},
};
use crate::conversation::error::{Result, StoreError};

/// DynamoDB's limits for an item and a transaction.
pub(super) const MAX_ITEM_BYTES: usize = 400 * 1_024;
const MAX_TRANSACTION_ITEMS: usize = 100;
const MAX_TRANSACTION_BYTES: usize = 4 * 1_024 * 1_024;
/// Conflicts with other transactions take milliseconds.
const ATTEMPTS: u32 = 12;
const INITIAL_BACKOFF: Duration = Duration::from_millis(5);
const MAX_BACKOFF: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub(super) struct Write {
    key: Key,
    kind: Kind,
    condition: Option<String>,
    values: Item,
    returns: ReturnValue,
}

#[derive(Debug, Clone)]
enum Kind {
    Put(Item),
    Update(String),
    Delete,
    Check,
}

impl Write {
    fn new(key: Key, kind: Kind) -> Self {
        let returns = ReturnValue::None;
        Self { key, kind, condition: None, values: Item::new(), returns }
    }

    pub(super) fn put(key: Key, attributes: impl IntoIterator<Item = Attribute>) -> Self {
        let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value));
        Self::new(key, Kind::Put(attributes.collect()))
    }

    pub(super) fn update(key: Key, expression: impl Into<String>) -> Self {
        Self::new(key, Kind::Update(expression.into()))
    }

    /// Succeeds if there is no item.
    pub(super) fn delete(key: Key) -> Self {
        Self::new(key, Kind::Delete)
    }

    pub(super) fn check(key: Key) -> Self {
        Self::new(key, Kind::Check)
    }

    pub(super) fn append(mut self, more: &str) -> Self {
        if let Kind::Update(expression) = &mut self.kind {
            expression.push_str(more);
        }
        self
    }

    pub(super) fn condition(mut self, condition: impl Into<String>) -> Self {
        self.condition = Some(condition.into());
        self
    }

    pub(super) fn bind(mut self, placeholder: &str, value: AttributeValue) -> Self {
        self.values.insert(placeholder.to_owned(), value);
        self
    }

    pub(super) fn returning_old(self) -> Self {
        Self { returns: ReturnValue::AllOld, ..self }
    }

    pub(super) fn returning_new(self) -> Self {
        Self { returns: ReturnValue::AllNew, ..self }
    }

    fn values(&self) -> Option<Item> {
        (!self.values.is_empty()).then(|| self.values.clone())
    }

    fn item(&self, attributes: &Item) -> Item {
        attributes.clone().into_iter().chain(key_attributes(self.key.clone())).collect()
    }

    /// As far as the size is known without the stored item.
    fn size(&self) -> usize {
        let attributes = match &self.kind {
            Kind::Put(attributes) => size(attributes),
            _ => 0,
        };
        attributes + size(&self.values) + size(&key_attributes(self.key.clone()))
    }

    fn into_transact(self, table: &str) -> Result<TransactWriteItem, BuildError> {
        let values = self.values();
        let condition = self.condition.clone();
        let on_failure = condition.is_some().then_some(ReturnValuesOnConditionCheckFailure::AllOld);
        macro_rules! conditional {
            ($builder:expr) => {
                $builder
                    .table_name(table)
                    .set_condition_expression(condition)
                    .set_expression_attribute_values(values)
                    .set_return_values_on_condition_check_failure(on_failure)
                    .build()?
            };
        }
        let item = TransactWriteItem::builder();
        Ok(match &self.kind {
            Kind::Put(attributes) => item.put(conditional!(Put::builder().set_item(Some(self.item(attributes))))),
            Kind::Update(expression) => {
                let update = Update::builder().set_key(Some(key_attributes(self.key))).update_expression(expression);
                item.update(conditional!(update))
            }
            Kind::Delete => item.delete(conditional!(Delete::builder().set_key(Some(key_attributes(self.key))))),
            Kind::Check => {
                item.condition_check(conditional!(ConditionCheck::builder().set_key(Some(key_attributes(self.key)))))
            }
        }
        .build())
    }
}

pub(super) type Attribute = (&'static str, AttributeValue);

#[derive(Debug)]
pub(super) enum WriteOutcome {
    Done(Item),
    ConditionFailed,
}

#[derive(Debug)]
pub(super) enum TransactOutcome {
    Committed,
    ConditionsFailed(FailedConditions),
}

/// By the positions of their writes.
#[derive(Debug)]
pub(super) struct FailedConditions(Vec<Option<Item>>);

impl FailedConditions {
    /// An empty item if none is stored; `None`: the condition holds.
    pub(super) fn get(&self, index: usize) -> Option<&Item> {
        self.0.get(index)?.as_ref()
    }
}

impl Table {
    pub(super) async fn write(&self, write: Write) -> Result<WriteOutcome> {
        check_limits(std::slice::from_ref(&write))?;
        let mut attempts = 1;
        loop {
            match self.write_once(&write).await {
                Ok(item) => return Ok(WriteOutcome::Done(item.unwrap_or_default())),
                Err(WriteFailure::Condition) => return Ok(WriteOutcome::ConditionFailed),
                Err(WriteFailure::Conflict(_)) if attempts < ATTEMPTS => backoff(attempts).await,
                Err(WriteFailure::Conflict(error) | WriteFailure::Failed(error)) => return Err(error),
            }
            attempts += 1;
        }
    }

    async fn write_once(&self, write: &Write) -> Result<Option<Item>, WriteFailure> {
        macro_rules! send {
            ($request:expr) => {{
                let request = $request.table_name(&self.name).set_condition_expression(write.condition.clone());
                let request = request.set_expression_attribute_values(write.values());
                let request = request.return_values(write.returns.clone());
                Box::pin(request.send()).await.map_err(write_failure)?.attributes
            }};
        }
        let key = Some(key_attributes(write.key.clone()));
        Ok(match &write.kind {
            Kind::Put(attributes) => send!(self.client.put_item().set_item(Some(write.item(attributes)))),
            Kind::Update(expression) => send!(self.client.update_item().set_key(key).update_expression(expression)),
            Kind::Delete => send!(self.client.delete_item().set_key(key)),
            Kind::Check => None,
        })
    }

    pub(super) async fn transact(&self, writes: Vec<Write>) -> Result<TransactOutcome> {
        check_limits(&writes)?;
        let items: Result<Vec<_>, _> = writes.into_iter().map(|write| write.into_transact(&self.name)).collect();
        let items = items.map_err(|error| StoreError::Dynamo(error.to_string()))?;
        let mut attempts = 1;
        loop {
            // The SDK sends an idempotency token, the same one in its own retries.
            let request = self.client.transact_write_items().set_transact_items(Some(items.clone()));
            let Err(error) = Box::pin(request.send()).await else { return Ok(TransactOutcome::Committed) };
            match cancellation_reasons(&error).map(classify) {
                Some(Cancellation::ConditionsFailed(failed)) => return Ok(TransactOutcome::ConditionsFailed(failed)),
                Some(Cancellation::Conflict) if attempts < ATTEMPTS => backoff(attempts).await,
                None if is_transient(&error) && attempts < ATTEMPTS => backoff(attempts).await,
                Some(Cancellation::Failed(code)) => return Err(StoreError::Dynamo(code)),
                _ => return Err(store_error(error)),
            }
            attempts += 1;
        }
    }
}

enum WriteFailure {
    Condition,
    Conflict(StoreError),
    Failed(StoreError),
}

fn write_failure<E>(error: SdkError<E>) -> WriteFailure
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error.as_service_error().and_then(|refusal| refusal.meta().code()) {
        Some("ConditionalCheckFailedException") => WriteFailure::Condition,
        _ if is_transient(&error) => WriteFailure::Conflict(store_error(error)),
        _ => WriteFailure::Failed(store_error(error)),
    }
}

fn cancellation_reasons(error: &SdkError<TransactWriteItemsError>) -> Option<&[CancellationReason]> {
    match error.as_service_error()? {
        TransactWriteItemsError::TransactionCanceledException(cancelled) => Some(cancelled.cancellation_reasons()),
        _ => None,
    }
}

#[derive(Debug)]
enum Cancellation {
    ConditionsFailed(FailedConditions),
    /// Or throttling.
    Conflict,
    Failed(String),
}

/// A conflict on one item leaves open which conditions hold.
fn classify(reasons: &[CancellationReason]) -> Cancellation {
    let codes = || reasons.iter().filter_map(CancellationReason::code);
    let transient = ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"];
    let known = |code: &&str| matches!(*code, "None" | "ConditionalCheckFailed");
    if let Some(code) = codes().find(|code| !known(code) && !transient.contains(code)) {
        return Cancellation::Failed(code.to_owned());
    }
    if codes().any(|code| transient.contains(&code)) {
        return Cancellation::Conflict;
    }
    let failed_item = |reason: &CancellationReason| {
        (reason.code() == Some("ConditionalCheckFailed")).then(|| reason.item().cloned().unwrap_or_default())
    };
    Cancellation::ConditionsFailed(FailedConditions(reasons.iter().map(failed_item).collect()))
}

/// DynamoDB's limits, checked here because the double of the tests accepts more.
fn check_limits(writes: &[Write]) -> Result<()> {
    if writes.iter().any(|write| write.size() > MAX_ITEM_BYTES) {
        return Err(StoreError::Malformed("an item above 400 KB"));
    }
    if writes.len() > MAX_TRANSACTION_ITEMS {
        return Err(StoreError::Malformed("a transaction of more than 100 items"));
    }
    if writes.iter().map(Write::size).sum::<usize>() > MAX_TRANSACTION_BYTES {
        return Err(StoreError::Malformed("a transaction above 4 MB"));
    }
    let is_twice = |(index, write): (usize, &Write)| writes.iter().take(index).any(|other| other.key == write.key);
    if writes.iter().enumerate().any(is_twice) {
        return Err(StoreError::Malformed("a transaction with an item twice"));
    }
    Ok(())
}

/// Exponential backoff with full jitter, so that writers that met do not meet again.
pub(super) async fn backoff(attempts: u32) {
    let longest = INITIAL_BACKOFF.saturating_mul(2_u32.saturating_pow(attempts)).min(MAX_BACKOFF);
    sleep(longest.mul_f64(fastrand::f64())).await;
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
