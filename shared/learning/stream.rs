//! Learning from turns that the stream of the table of conversations tells of.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{ExtractionOutcome, LearnError, TurnLearner};
use crate::{
    conversation::{
        ConversationStore,
        dynamodb::{FinishedTurnItem, finished_turn, sequence_number},
    },
    identity::UserId,
};

/// Users whose turns are learned from at the same time.
const AT_ONCE: usize = 4;
/// A turn is begun only where there is so much time left.
const LEAST_TIME: Duration = Duration::from_secs(20);

/// Which records have to come again. Where there are several, the source begins anew at the first of them.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct BatchItemFailures {
    #[serde(rename = "batchItemFailures")]
    failures: Vec<Failure>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Failure {
    #[serde(rename = "itemIdentifier")]
    sequence_number: String,
}

impl BatchItemFailures {
    /// Whether everything was done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }
}

/// A record that a user's turns are learned from, or why it can not be read.
struct Told<'r> {
    sequence_number: &'r str,
    turn: FinishedTurnItem,
}

/// Learns from the turns that some records tell of, in their order for each user, and names those that failed. What can not
/// be read has failed as well; the source gives it up after some times and tells of it elsewhere. No turn is begun for which
/// there may be no time `until` then.
pub async fn learn_from_records(
    learner: &TurnLearner,
    conversations: &Arc<dyn ConversationStore>,
    records: &[Value],
    until: Instant,
) -> BatchItemFailures {
    let mut failed: Vec<&str> = Vec::new();
    let mut users: HashMap<UserId, Vec<Told<'_>>> = HashMap::new();
    for record in records {
        // Without a number it can only be said that all have failed, which an empty one says.
        let sequence_number = sequence_number(record).unwrap_or_default();
        match finished_turn(record) {
            Ok(Some(turn)) => users.entry(turn.user.clone()).or_default().push(Told { sequence_number, turn }),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "a record can not be learned from");
                failed.push(sequence_number);
            }
        }
    }
    let of_users: Vec<_> =
        users.into_values().map(|turns| learn_in_order(learner, conversations, turns, until)).collect();
    let of_users: Vec<Vec<String>> = stream::iter(of_users).buffer_unordered(AT_ONCE).collect().await;
    let failed = failed.into_iter().map(str::to_owned).chain(of_users.into_iter().flatten());
    BatchItemFailures { failures: failed.map(|sequence_number| Failure { sequence_number }).collect() }
}

/// Learns from turns of one user, and names those that have to come again.
async fn learn_in_order(
    learner: &TurnLearner,
    conversations: &Arc<dyn ConversationStore>,
    turns: Vec<Told<'_>>,
    until: Instant,
) -> Vec<String> {
    let mut turns = turns.into_iter();
    for told in turns.by_ref() {
        let (user, turn) = (told.turn.user.digest(), told.turn.seq);
        match learn_from(learner, conversations, &told.turn, until).await {
            Ok(learned) => tracing::debug!(user, turn, ?learned, "learned from a turn"),
            Err(error) => {
                tracing::warn!(%error, user, turn, "a turn is not learned from yet");
                // What was said later is learned later.
                return std::iter::once(told).chain(turns).map(|told| told.sequence_number.to_owned()).collect();
            }
        }
    }
    Vec::new()
}

async fn learn_from(
    learner: &TurnLearner,
    conversations: &Arc<dyn ConversationStore>,
    FinishedTurnItem { user, session, seq }: &FinishedTurnItem,
    until: Instant,
) -> Result<ExtractionOutcome, LearnError> {
    if Instant::now() + LEAST_TIME > until {
        return Err(LearnError::Timeout);
    }
    let learn = async {
        let turns = conversations.list_turns(user, session, seq.checked_add(1), 1).await?;
        // The conversation may have been deleted.
        match turns.into_iter().find(|turn| turn.seq == *seq && turn.is_complete) {
            Some(turn) => learner.learn(user, session, &turn).await,
            None => Ok(ExtractionOutcome::default()),
        }
    };
    timeout_at(until, learn).await.map_err(|_| LearnError::Timeout)?
}
