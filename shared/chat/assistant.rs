use std::{sync::Arc, time::Duration};

use super::prompt::Prompts;
use crate::{
    conversation::ConversationStore,
    llm::{ChatModel, Prices},
    memory::MemoryEngine,
    tools::{ToolAvailability, ToolOffer, ToolSelection, Toolbox},
};

pub struct Assistant {
    pub model: Arc<dyn ChatModel>,
    pub memory: Arc<MemoryEngine>,
    pub prompts: Prompts,
    pub tools: Toolbox,
    pub conversations: Option<Arc<dyn ConversationStore>>,
    pub prices: Prices,
    /// Demo mode.
    pub thinking_delay: Duration,
    /// Includes all retries and tools; starts again when a turn is resumed.
    pub total_timeout: Duration,
}

impl Assistant {
    /// `can_suspend`: the turn can be persisted until results of client tools arrive.
    pub(super) fn offer_tools(&self, selection: &ToolSelection, may_search: bool, can_suspend: bool) -> ToolOffer {
        let has_memory = self.memory.is_configured();
        self.tools.offer(selection, ToolAvailability { has_memory, may_search, can_suspend })
    }
}
