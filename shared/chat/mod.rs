//! One turn: recall → prompt → model → answer, as a pull-based stream of events.
//!
//! The room knows users by their id only, and neither frames nor gRPC.

mod event;
mod prompt;
mod turn;

use std::{sync::Arc, time::Duration};

pub use event::{Event, Failure, Recalled, Spent, Stage};
pub use prompt::{PROMPT_VERSIONS, Prompts};
pub use turn::{HistoryMessage, Profile, Speaker, TurnRequest};

use crate::{llm::ChatModel, memory::MemoryEngine};

/// Everything that a turn needs and that turns share.
pub struct Assistant {
    /// Who answers.
    pub model: Arc<dyn ChatModel>,
    /// What is known of users.
    pub memory: Arc<MemoryEngine>,
    /// How the model is instructed.
    pub prompts: Prompts,
    /// Simulated thought of demo mode, after the first event.
    pub thinking_delay: Duration,
    /// Most that a whole turn may take.
    pub total_timeout: Duration,
}
