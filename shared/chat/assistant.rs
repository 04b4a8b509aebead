//! The dependencies that all turns share.

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
    /// `None` = conversations are not persisted.
    pub conversations: Option<Arc<dyn ConversationStore>>,
    pub prices: Prices,
    /// Simulated thought of demo mode, after the first event.
    pub thinking_delay: Duration,
    /// Longest run of a turn, from its start or its resumption, with all retries and tools.
    pub total_timeout: Duration,
}

impl Assistant {
    /// `can_suspend`: client tools are offered only where the turn can be persisted until their results arrive.
    pub(super) fn offer_tools(&self, selection: &ToolSelection, may_search: bool, can_suspend: bool) -> ToolOffer {
        let has_memory = self.memory.is_configured();
        self.tools.offer(selection, ToolAvailability { has_memory, may_search, can_suspend })
    }
}
