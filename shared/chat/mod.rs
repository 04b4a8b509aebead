//! One turn: recall → prompt → model → tools → answer, as a pull-based stream of events.
//!
//! The room knows users by their id only, and neither frames nor gRPC.

mod event;
mod exchange;
mod input;
mod interruption;
mod prompt;
mod record;
mod rounds;
mod tally;
mod turn;

use std::{sync::Arc, time::Duration};

pub use event::{FinishedTurn, RecalledMemory, Stage, ToolExecution, TurnClosing, TurnEvent, TurnFailure, UsageReport};
pub use input::{HistoryMessage, Profile, Speaker, ToolResult, TurnInput};
pub use prompt::{PROMPT_VERSIONS, Prompts};
pub use record::{RecordError, RecordedCitation, RecordedUsage, TurnFinish, TurnRecord};
pub use turn::ResumedTurn;

use crate::{
    conversation::ConversationStore,
    llm::{ChatModel, Prices},
    memory::MemoryEngine,
    tools::Toolbox,
};

/// Most tokens of earlier turns that a model is told word for word.
pub const HISTORY_TOKEN_BUDGET: u32 = 6_000;

/// Everything that a turn needs and that turns share.
pub struct Assistant {
    /// Who answers.
    pub model: Arc<dyn ChatModel>,
    /// What is known of users.
    pub memory: Arc<MemoryEngine>,
    /// How the model is instructed.
    pub prompts: Prompts,
    /// What the model may call.
    pub tools: Toolbox,
    /// Where conversations are kept; `None` = they are not.
    pub conversations: Option<Arc<dyn ConversationStore>>,
    /// What tokens cost.
    pub prices: Prices,
    /// Simulated thought of demo mode, after the first event.
    pub thinking_delay: Duration,
    /// Most that a whole turn may take, from its start or its resumption.
    pub total_timeout: Duration,
}
