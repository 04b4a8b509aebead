//! Budgets of summaries and titles.

/// Unsummarized turns above this are summarized, oldest first, …
pub const SUMMARIZE_ABOVE_TOKENS: u32 = 4_500;
/// … down to this. The gap to [`HISTORY_TOKEN_BUDGET`](crate::chat::HISTORY_TOKEN_BUDGET) leaves space for turns that end
/// while a summary is being written.
pub const SUMMARIZE_TO_TOKENS: u32 = 2_500;
pub const MAX_SUMMARY_TOKENS: u32 = 600;
pub const MAX_TITLE_CHARS: usize = 60;
