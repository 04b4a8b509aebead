use std::{collections::BTreeSet, time::Duration};

use jiff::tz::TimeZone;
use tokio::time::Instant;

use super::{
    input::{Speaker, TurnInput},
    title::title,
};
use crate::{
    conversation::History,
    language::Language,
    memory::{CHAT_SOURCE_TYPE, DEFAULT_ALPHA, MAX_QUERY_BYTES, Memory, MemoryEngine, RetrievalQuery, select_hits},
};

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
    /// For a citation: that of the source or, if it has none, one made of the memory. Never empty.
    pub title: String,
}

/// More than a turn uses, best first, because the history that excludes some of them is loaded at the same time.
pub(super) type RecallHits = Vec<(Memory, f32)>;

/// `None` if retrieval failed or timed out.
pub(super) async fn recall(engine: &MemoryEngine, input: &TurnInput) -> Option<RecallHits> {
    let query = RetrievalQuery {
        text: input.message[..input.message.floor_char_boundary(MAX_QUERY_BYTES)].to_owned(),
        limit: RECALL_LIMIT,
        min_score: RECALL_MIN_SCORE,
        filter: input.recall.clone().unwrap_or_default(),
        alpha: DEFAULT_ALPHA,
        time_zone: input.profile.time_zone(),
        counts_matches: false,
    };
    // The model may read memories of this session in the history already, so they do not count towards the limit.
    let counts = |memory: &Memory| turn_of_session(memory, input.session.as_str()).is_none();
    let deadline = Instant::now() + RECALL_TIMEOUT;
    let recalled = Box::pin(engine.recall(&input.user, &query, deadline, counts)).await;
    recalled.inspect_err(|error| tracing::warn!(%error, "recall failed; the turn goes on without it")).ok()
}

/// The memories for the prompt and its citations. The model does not get twice what it reads in the history.
pub(super) fn select(mut hits: RecallHits, input: &TurnInput, history: &History) -> Vec<RecalledMemory> {
    let turns: BTreeSet<u32> = history.turns.iter().map(|turn| turn.seq).collect();
    let is_in_client_history = |memory: &Memory| {
        *history == History::default()
            && memory.source_type == CHAT_SOURCE_TYPE
            && input.history.iter().any(|message| {
                matches!(message.speaker, Speaker::User | Speaker::Assistant) && message.has_text(&memory.content)
            })
    };
    hits.retain(|(memory, _)| {
        let is_in_history = turn_of_session(memory, input.session.as_str()).is_some_and(|turn| turns.contains(&turn));
        !is_in_history && !is_in_client_history(memory)
    });
    let zone = input.profile.time_zone();
    let recalled = |(memory, score)| recalled_memory(memory, score, input.language, &zone);
    select_hits(hits, RECALL_LIMIT).into_iter().map(recalled).collect()
}

fn recalled_memory(memory: Memory, score: f32, language: Language, zone: &TimeZone) -> RecalledMemory {
    let title = title(&memory, language, zone);
    RecalledMemory { memory, score, title }
}

/// The turn of this session that a memory is, or that a fact was learned from.
fn turn_of_session(memory: &Memory, session: &str) -> Option<u32> {
    let session_of = |key: &str| memory.metadata.get(key).is_some_and(|id| id == session);
    if !session_of("session_id") && !session_of("source_session_id") {
        return None;
    }
    memory.metadata.get("turn")?.parse().ok()
}
