//! Writing to the table: one item, or several at once or not at all.

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
    table::{Table, key_attributes, store_error},
};
use crate::conversation::StoreError;

/// Largest item, by the rules of DynamoDB.
pub(super) const MAX_ITEM_BYTES: usize = 400 * 1_024;
/// Most items of one transaction, and their bytes together.
const TRANSACTION_ITEMS: usize = 100;
const TRANSACTION_BYTES: usize = 4 * 1_024 * 1_024;
/// How often is tried what met another transaction on the same item, which is over in a few milliseconds, or was throttled.
const TRIES: u32 = 12;
/// About how long is waited before the second try, and the longest wait.
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// A change of one item.
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

    /// Puts an item in the place of whatever is there.
    pub(super) fn put(key: Key, attributes: impl IntoIterator<Item = Attribute>) -> Self {
        let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value));
        Self::new(key, Kind::Put(attributes.collect()))
    }

    /// Changes attributes by an update expression.
    pub(super) fn update(key: Key, expression: impl Into<String>) -> Self {
        Self::new(key, Kind::Update(expression.into()))
    }

    /// Deletes an item; that there is none is no failure.
    pub(super) fn delete(key: Key) -> Self {
        Self::new(key, Kind::Delete)
    }

    /// Changes nothing, but fails the transaction whose part it is if its condition does not hold.
    pub(super) fn check(key: Key) -> Self {
        Self::new(key, Kind::Check)
    }

    /// With more at the end of its update expression.
    pub(super) fn append(mut self, more: &str) -> Self {
        if let Kind::Update(expression) = &mut self.kind {
            expression.push_str(more);
        }
        self
    }

    /// Only if this holds.
    pub(super) fn condition(mut self, condition: impl Into<String>) -> Self {
        self.condition = Some(condition.into());
        self
    }

    /// A value that the expressions name.
    pub(super) fn bind(mut self, placeholder: &str, value: AttributeValue) -> Self {
        self.values.insert(placeholder.to_owned(), value);
        self
    }

    /// [`Table::apply`] returns the item as it was.
    pub(super) fn returning_old(self) -> Self {
        Self { returns: ReturnValue::AllOld, ..self }
    }

    /// [`Table::apply`] returns the item as it is then.
    pub(super) fn returning_new(self) -> Self {
        Self { returns: ReturnValue::AllNew, ..self }
    }

    fn values(&self) -> Option<Item> {
        (!self.values.is_empty()).then(|| self.values.clone())
    }

    /// The whole item that is put.
    fn item(&self, attributes: &Item) -> Item {
        attributes.clone().into_iter().chain(key_attributes(self.key.clone())).collect()
    }

    /// Bytes that it adds to a transaction, as far as they can be known without the item.
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
        let told = condition.is_some().then_some(ReturnValuesOnConditionCheckFailure::AllOld);
        let item = TransactWriteItem::builder();
        Ok(match &self.kind {
            Kind::Put(attributes) => item.put(
                Put::builder()
                    .table_name(table)
                    .set_item(Some(self.item(attributes)))
                    .set_condition_expression(condition)
                    .set_expression_attribute_values(values)
                    .set_return_values_on_condition_check_failure(told)
                    .build()?,
            ),
            Kind::Update(expression) => item.update(
                Update::builder()
                    .table_name(table)
                    .set_key(Some(key_attributes(self.key)))
                    .update_expression(expression)
                    .set_condition_expression(condition)
                    .set_expression_attribute_values(values)
                    .set_return_values_on_condition_check_failure(told)
                    .build()?,
            ),
            Kind::Delete => item.delete(
                Delete::builder()
                    .table_name(table)
                    .set_key(Some(key_attributes(self.key)))
                    .set_condition_expression(condition)
                    .set_expression_attribute_values(values)
                    .set_return_values_on_condition_check_failure(told)
                    .build()?,
            ),
            Kind::Check => item.condition_check(
                ConditionCheck::builder()
                    .table_name(table)
                    .set_key(Some(key_attributes(self.key)))
                    .set_condition_expression(condition)
                    .set_expression_attribute_values(values)
                    .set_return_values_on_condition_check_failure(told)
                    .build()?,
            ),
        }
        .build())
    }
}

/// An attribute that is written.
pub(super) type Attribute = (&'static str, AttributeValue);

/// What became of a change of one item.
#[derive(Debug)]
pub(super) enum WriteOutcome {
    /// It is done. The item as it was or is, if that was asked for and there is one.
    Done(Item),
    /// Its condition does not hold.
    Refused,
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum TransactOutcome {
    /// All of it is done.
    Done,
    /// Nothing of it is done, because conditions do not hold.
    Refused(FailedConditions),
}

/// The conditions of a transaction that do not hold.
#[derive(Debug)]
pub(super) struct FailedConditions(Vec<Option<Item>>);

impl FailedConditions {
    /// Whether the condition of that write does not hold. The item as it is, if there is one.
    pub(super) fn get(&self, index: usize) -> Option<&Item> {
        self.0.get(index)?.as_ref()
    }
}

impl Table {
    /// Changes one item.
    pub(super) async fn write(&self, write: Write) -> Result<WriteOutcome, StoreError> {
        check(std::slice::from_ref(&write))?;
        let mut tries = 1;
        loop {
            let refused = match self.apply_once(&write).await {
                Ok(item) => return Ok(WriteOutcome::Done(item.unwrap_or_default())),
                Err(refused) => refused,
            };
            match refused {
                Refused::Condition => return Ok(WriteOutcome::Refused),
                Refused::Conflict(_) if tries < TRIES => backoff(tries).await,
                Refused::Conflict(error) | Refused::Failed(error) => return Err(error),
            }
            tries += 1;
        }
    }

    async fn apply_once(&self, write: &Write) -> Result<Option<Item>, Refused> {
        let values = write.values();
        let (key, condition) = (Some(key_attributes(write.key.clone())), write.condition.clone());
        Ok(match &write.kind {
            Kind::Put(attributes) => {
                let request = self.client.put_item().table_name(&self.name).set_item(Some(write.item(attributes)));
                let request = request.set_condition_expression(condition).return_values(write.returns.clone());
                let request = request.set_expression_attribute_values(values);
                request.send().await.map_err(refused)?.attributes
            }
            Kind::Update(expression) => {
                let request = self.client.update_item().table_name(&self.name).set_key(key);
                let request = request.update_expression(expression).set_condition_expression(condition);
                let request = request.set_expression_attribute_values(values);
                request.return_values(write.returns.clone()).send().await.map_err(refused)?.attributes
            }
            Kind::Delete => {
                let request = self.client.delete_item().table_name(&self.name).set_key(key);
                let request = request.set_condition_expression(condition).return_values(write.returns.clone());
                let request = request.set_expression_attribute_values(values);
                request.send().await.map_err(refused)?.attributes
            }
            Kind::Check => None,
        })
    }

    /// Changes several items at once, or none. Each is another one.
    pub(super) async fn transact(&self, writes: Vec<Write>) -> Result<TransactOutcome, StoreError> {
        check(&writes)?;
        let items: Result<Vec<_>, _> = writes.into_iter().map(|write| write.into_transact(&self.name)).collect();
        let items = items.map_err(|error| StoreError::Dynamo(error.to_string()))?;
        let mut tries = 1;
        loop {
            // Each of these has a token of its own, by which a try of the SDK whose answer was lost is not done twice.
            let request = self.client.transact_write_items().set_transact_items(Some(items.clone()));
            let error = match request.send().await {
                Ok(_) => return Ok(TransactOutcome::Done),
                Err(error) => error,
            };
            match reasons_of(&error).map(judged) {
                Some(Judged::Refused(refusals)) => return Ok(TransactOutcome::Refused(refusals)),
                Some(Judged::Conflict) if tries < TRIES => backoff(tries).await,
                Some(Judged::Failed(code)) => return Err(StoreError::Dynamo(code)),
                _ => return Err(store_error(error)),
            }
            tries += 1;
        }
    }
}

/// Why one try to change one item failed.
enum Refused {
    Condition,
    Conflict(StoreError),
    Failed(StoreError),
}

/// Whether it was refused for a moment: an item is part of a transaction, or there was too much to do even for the SDK's
/// patience, as with megabytes in one second.
pub(super) fn is_transient<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    const CODES: [&str; 3] =
        ["TransactionConflictException", "ThrottlingException", "ProvisionedThroughputExceededException"];
    let code = error.as_service_error().and_then(|refusal| refusal.meta().code());
    code.is_some_and(|code| CODES.contains(&code))
}

fn refused<E>(error: SdkError<E>) -> Refused
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error.as_service_error().and_then(|refusal| refusal.meta().code()) {
        Some("ConditionalCheckFailedException") => Refused::Condition,
        _ if is_transient(&error) => Refused::Conflict(store_error(error)),
        _ => Refused::Failed(store_error(error)),
    }
}

fn reasons_of(error: &SdkError<TransactWriteItemsError>) -> Option<&[CancellationReason]> {
    match error.as_service_error()? {
        TransactWriteItemsError::TransactionCanceledException(cancelled) => Some(cancelled.cancellation_reasons()),
        _ => None,
    }
}

/// What the reasons say why a transaction was not done.
#[derive(Debug)]
enum Judged {
    Refused(FailedConditions),
    /// Another one was at the same items, or there was too much to do.
    Conflict,
    Failed(String),
}

/// As long as one item may be in another's hands, it is not known which conditions hold.
fn judged(reasons: &[CancellationReason]) -> Judged {
    let codes = || reasons.iter().filter_map(CancellationReason::code);
    let passing = ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"];
    let known = |code: &&str| matches!(*code, "None" | "ConditionalCheckFailed");
    if let Some(code) = codes().find(|code| !known(code) && !passing.contains(code)) {
        return Judged::Failed(code.to_owned());
    }
    if codes().any(|code| passing.contains(&code)) {
        return Judged::Conflict;
    }
    let refusal = |reason: &CancellationReason| {
        (reason.code() == Some("ConditionalCheckFailed")).then(|| reason.item().cloned().unwrap_or_default())
    };
    Judged::Refused(FailedConditions(reasons.iter().map(refusal).collect()))
}

/// What DynamoDB would refuse. What stands in for it in tests takes more, so this is where it is noticed.
fn check(writes: &[Write]) -> Result<(), StoreError> {
    if writes.iter().any(|write| write.size() > MAX_ITEM_BYTES) {
        return Err(StoreError::Malformed("an item above 400 KB"));
    }
    if writes.len() > TRANSACTION_ITEMS {
        return Err(StoreError::Malformed("a transaction of more than 100 items"));
    }
    if writes.iter().map(Write::size).sum::<usize>() > TRANSACTION_BYTES {
        return Err(StoreError::Malformed("a transaction above 4 MB"));
    }
    let is_twice = |(index, write): (usize, &Write)| writes.iter().take(index).any(|other| other.key == write.key);
    if writes.iter().enumerate().any(is_twice) {
        return Err(StoreError::Malformed("a transaction with an item twice"));
    }
    Ok(())
}

/// Longer each time and never the same, so that those who met do not meet again.
pub(super) async fn backoff(tries: u32) {
    let longest = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries)).min(LONGEST_WAIT);
    sleep(longest.mul_f64(fastrand::f64())).await;
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
