//! Learns from turns that arrive as records of the DynamoDB stream of the conversation table.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    error::LearnError,
    learner::{ExtractionOutcome, TurnLearner},
};
use crate::{
    conversation::{
        ConversationStore,
        dynamodb::{FinishedTurnItem, finished_turn, sequence_number},
    },
    identity::UserId,
};

const MAX_CONCURRENT_USERS: usize = 4;
/// A turn is not begun with less time left: the model's answer would be lost.
const MIN_TIME_LEFT: Duration = Duration::from_secs(20);

/// The records to deliver again, as Lambda's `ReportBatchItemFailures` defines it: the event source resumes at the lowest
/// sequence number.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct BatchItemFailures {
    #[serde(rename = "batchItemFailures")]
    failures: Vec<BatchItemFailure>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct BatchItemFailure {
    #[serde(rename = "itemIdentifier")]
    sequence_number: String,
}

struct TurnDelivery<'r> {
    sequence_number: &'r str,
    turn: FinishedTurnItem,
}

/// Learns from the turns of some stream records, in order for each user, and reports those that failed. A record that cannot
/// be parsed counts as failed, so that it ends in the event source's dead letter queue.
pub async fn learn_from_records(
    learner: &TurnLearner,
    conversations: &Arc<dyn ConversationStore>,
    records: &[Value],
    deadline: Instant,
) -> BatchItemFailures {
    let mut unparsed: Vec<&str> = Vec::new();
    let mut users: HashMap<UserId, Vec<TurnDelivery<'_>>> = HashMap::new();
    for record in records {
        // An empty sequence number makes Lambda treat the whole batch as failed.
        let sequence_number = sequence_number(record).unwrap_or_default();
        match finished_turn(record) {
            Ok(Some(turn)) => users.entry(turn.user.clone()).or_default().push(TurnDelivery { sequence_number, turn }),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "a stream record cannot be parsed");
                unparsed.push(sequence_number);
            }
        }
    }
    let by_user: Vec<_> =
        users.into_values().map(|turns| learn_in_order(learner, conversations, turns, deadline)).collect();
    let failed: Vec<Vec<String>> = stream::iter(by_user).buffer_unordered(MAX_CONCURRENT_USERS).collect().await;
    let failed = unparsed.into_iter().map(str::to_owned).chain(failed.into_iter().flatten());
    BatchItemFailures { failures: failed.map(|sequence_number| BatchItemFailure { sequence_number }).collect() }
}

/// Learns from one user's turns until one fails, and returns the sequence numbers from that one on: a later turn must not be
/// learned from before an earlier one.
async fn learn_in_order(
    learner: &TurnLearner,
    conversations: &Arc<dyn ConversationStore>,
    turns: Vec<TurnDelivery<'_>>,
    deadline: Instant,
) -> Vec<String> {
    let mut turns = turns.into_iter();
    for delivery in turns.by_ref() {
        let (user, turn) = (delivery.turn.user.digest(), delivery.turn.seq);
        match learn_from_item(learner, conversations, &delivery.turn, deadline).await {
            Ok(outcome) => tracing::debug!(user, turn, ?outcome, "learned from a turn"),
            Err(error) => {
                tracing::warn!(%error, user, turn, "learning from a turn failed, will retry");
                let failed = std::iter::once(delivery).chain(turns);
                return failed.map(|delivery| delivery.sequence_number.to_owned()).collect();
            }
        }
    }
    Vec::new()
}

async fn learn_from_item(
    learner: &TurnLearner,
    conversations: &Arc<dyn ConversationStore>,
    FinishedTurnItem { user, session, seq }: &FinishedTurnItem,
    deadline: Instant,
) -> Result<ExtractionOutcome, LearnError> {
    if Instant::now() + MIN_TIME_LEFT > deadline {
        return Err(LearnError::Timeout);
    }
    let learn = async {
        let turns = conversations.list_turns(user, session, seq.checked_add(1), 1).await?;
        match turns.into_iter().find(|turn| turn.seq == *seq && turn.is_complete) {
            Some(turn) => learner.learn(user, session, &turn).await,
            // The session was deleted meanwhile.
            None => Ok(ExtractionOutcome::default()),
        }
    };
    timeout_at(deadline, learn).await.map_err(|_| LearnError::Timeout)?
}
