//! Token budgets of a conversation's history, shared with the chat that loads it.

/// Budget of the recent turns that a model gets verbatim.
pub const HISTORY_TOKENS: u32 = 6_000;
/// Unsummarized turns above this are summarized, oldest first, …
pub const SUMMARIZE_ABOVE_TOKENS: u32 = 4_500;
/// … down to this. The gap to [`HISTORY_TOKENS`] leaves space for turns that end while a summary is being written.
pub const SUMMARIZE_TO_TOKENS: u32 = 2_500;
pub const MAX_SUMMARY_TOKENS: u32 = 600;
pub const MAX_TITLE_CHARS: usize = 60;
