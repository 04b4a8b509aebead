//! The two gRPC services: request → typed command, event → frame, error → status. Written once, behind every way in.

mod agent;
mod call;
mod drain;
mod frames;
mod memory;
mod parse;
mod status;
mod wording;

use std::{sync::Arc, time::Duration};

use sqlx::PgPool;

pub use agent::{AgentApi, ChatFrames};
pub use drain::Drain;
pub use memory::MemoryApi;

use crate::{
    chat::{Assistant, Prompts},
    config::{Config, ModelConfig},
    embedding::{self, EmbedderSetupError},
    llm::{self, ModelSetupError},
    memory::MemoryEngine,
};

/// Everything that answers calls.
#[derive(Clone)]
pub struct Services {
    /// `agent.v1.AgentService`.
    pub agent: AgentApi,
    /// `agent.v1.MemoryService`.
    pub memory: MemoryApi,
    /// Ends what is still running when the server stops.
    pub drain: Drain,
}

/// Why the services can not be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The model can not be built.
    #[error(transparent)]
    Model(#[from] ModelSetupError),
    /// The embedder can not be built.
    #[error(transparent)]
    Embedder(#[from] EmbedderSetupError),
    /// A prompt is malformed.
    #[error("a prompt is malformed: {0}")]
    Prompt(#[from] minijinja::Error),
}

impl Services {
    /// Builds what the configuration names. Nothing is connected before the first call.
    ///
    /// # Errors
    /// A part can not be built, for example because a file can not be read.
    pub fn from_config(config: &Config, pool: PgPool) -> Result<Self, SetupError> {
        let memory = Arc::new(MemoryEngine::new(pool, embedding::from_config(&config.embedding)?));
        let (thinking_delay, total_timeout) = match &config.model {
            // Canned answers end by themselves.
            ModelConfig::Demo(demo) => (demo.thinking_delay, Duration::from_hours(1)),
            ModelConfig::Provider(provider) => (Duration::ZERO, provider.limits.total),
        };
        let assistant = Assistant {
            model: llm::from_config(&config.model)?,
            memory: memory.clone(),
            prompts: Prompts::compile()?,
            thinking_delay,
            total_timeout,
        };
        let drain = Drain::default();
        Ok(Self {
            agent: AgentApi::new(Arc::new(assistant), memory.clone(), drain.clone()),
            memory: MemoryApi::new(memory, drain.clone()),
            drain,
        })
    }
}
