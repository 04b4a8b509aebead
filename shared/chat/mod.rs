//! One turn: recall → prompt → model → tools → answer, as a pull-based stream of events.
//!
//! The room knows users by their id only, and neither frames nor gRPC.

mod event;
mod exchange;
mod interruption;
mod prompt;
mod request;
mod rounds;
mod tally;
mod turn;

use std::{sync::Arc, time::Duration};

pub use event::{Event, Failure, Ran, Recalled, Spent, Stage};
pub use prompt::{PROMPT_VERSIONS, Prompts};
pub use request::{HistoryMessage, Profile, Speaker, ToolResult, TurnRequest};
pub use turn::{ResumedTurn, Taken};

use crate::{
    conversation::PendingTurns,
    llm::{ChatModel, Prices},
    memory::MemoryEngine,
    tools::Toolbox,
};

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
    /// Turns that wait for tools which clients run.
    pub pending: PendingTurns,
    /// What tokens cost.
    pub prices: Prices,
    /// Simulated thought of demo mode, after the first event.
    pub thinking_delay: Duration,
    /// Most that a whole turn may take, from its start or its resumption.
    pub total_timeout: Duration,
}
