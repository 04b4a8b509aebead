use std::time::Duration;

use tokio::time::timeout;

use super::input::TurnInput;
use crate::memory::{CHAT_SOURCE_TYPE, DEFAULT_ALPHA, MAX_QUERY_BYTES, Memory, MemoryEngine, RetrievalQuery};

const RECALL_LIMIT: usize = 8;
/// Below it, texts have hardly more in common than chance.
const RECALL_MIN_SCORE: f32 = 0.2;
/// An answer without memories is better than a late one.
const RECALL_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub struct RecalledMemory {
    pub memory: Memory,
    /// 0 to 1.
    pub score: f32,
}

/// Best first; `None` if retrieval failed or timed out.
pub(super) async fn recall(engine: &MemoryEngine, input: &TurnInput) -> Option<Vec<RecalledMemory>> {
    let query = RetrievalQuery {
        text: input.message[..input.message.floor_char_boundary(MAX_QUERY_BYTES)].to_owned(),
        limit: RECALL_LIMIT,
        min_score: RECALL_MIN_SCORE,
        filter: input.recall.clone().unwrap_or_default(),
        alpha: DEFAULT_ALPHA,
        time_zone: input.profile.time_zone(),
        counts_matches: false,
    };
    match timeout(RECALL_TIMEOUT, Box::pin(engine.retrieve(&input.user, &query))).await {
        Ok(Ok(found)) => {
            let recalled = found.hits.into_iter().map(|(memory, score)| RecalledMemory { memory, score });
            Some(recalled.filter(|recalled| !is_echo(&recalled.memory, &input.message)).collect())
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "recall failed; the turn goes on without it");
            None
        }
        Err(_) => {
            tracing::warn!(timeout_ms = RECALL_TIMEOUT.as_millis(), "recall timed out; the turn goes on without it");
            None
        }
    }
}

/// The same question, asked before, would score best and add nothing.
fn is_echo(memory: &Memory, question: &str) -> bool {
    memory.source_type == CHAT_SOURCE_TYPE && memory.content.trim() == question.trim()
}
