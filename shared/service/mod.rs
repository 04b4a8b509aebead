//! The gRPC services: request to domain value, event to frame, error to status. They are served by every transport.

mod admission;
mod agent;
mod apis;
mod call;
mod conversation;
mod convert;
mod drain;
mod envelope;
mod error;
mod export;
mod failure;
mod frame;
mod frame_source;
mod memory;
mod parse;
mod run;
mod status;
mod wording;

use std::{sync::Arc, time::Duration};

pub use agent::{AgentApi, ChatFrames, Deadline};
pub use apis::{ApiParts, Apis};
pub use conversation::ConversationApi;
pub use drain::Drain;
pub use export::MemoryRecordStream;
pub use memory::MemoryApi;

use crate::{
    chat::{Assistant, Prompts},
    config::{Config, ModelConfig},
    conversation::{ConversationSetupError, ConversationStore},
    embedding::{self, Embedder, EmbedderSetupError},
    identity::Authenticator,
    learning::{ExtractionWorker, TurnLearner},
    llm::{self, ChatModel, ModelSetupError, Prices, PricesError},
    memory::MemoryEngine,
    postgres::RolePools,
    tools::{Toolbox, ToolsFileError},
};

/// Everything that answers calls.
#[derive(Clone)]
pub struct Services {
    model: Arc<dyn ChatModel>,
    /// What is kept of conversations, if they are.
    pub conversations: Option<Arc<dyn ConversationStore>>,
    /// What is known of users.
    pub engine: Arc<MemoryEngine>,
    /// `agent.v1.AgentService`.
    pub agent: AgentApi,
    /// `agent.v1.MemoryService`.
    pub memory: MemoryApi,
    /// `agent.v1.ConversationService`.
    pub conversation: ConversationApi,
    /// Learns from turns, where conversations are kept.
    pub learner: Option<Arc<TurnLearner>>,
    /// Works on the queue of turns to learn from, where there is one.
    pub extraction_worker: Option<Arc<ExtractionWorker>>,
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
    /// The keys of callers can not be fetched by any client.
    #[error("the HTTP client for JWT_JWKS_URL can not be built: {0}")]
    Callers(#[source] reqwest::Error),
    /// The table of prices can not be used.
    #[error(transparent)]
    Prices(#[from] PricesError),
    /// A tool can not be used.
    #[error(transparent)]
    Tools(#[from] ToolsFileError),
    /// The store of conversations can not be built.
    #[error(transparent)]
    Conversations(#[from] ConversationSetupError),
    /// A prompt is malformed.
    #[error("a prompt is malformed: {0}")]
    Prompt(#[from] minijinja::Error),
}

impl Services {
    /// Builds what the configuration names, without a memory where there is no database. Nothing is connected before the first call.
    ///
    /// # Errors
    /// A part can not be built, for example because a file can not be read.
    pub fn from_config(config: &Config, database: impl Into<Option<RolePools>>) -> Result<Self, SetupError> {
        Self::with_embedder(config, database, embedding::from_config(&config.embedding)?)
    }

    /// Builds the same with an embedder of the caller's.
    ///
    /// # Errors
    /// As [`Services::from_config`].
    pub fn with_embedder(
        config: &Config,
        database: impl Into<Option<RolePools>>,
        embedder: Arc<dyn Embedder>,
    ) -> Result<Self, SetupError> {
        let database = database.into().unwrap_or_else(RolePools::absent);
        let conversations = crate::conversation::from_config(config, &database)?;
        let memory = Arc::new(MemoryEngine::new(config.memory, database.clone(), embedder));
        let (thinking_delay, prices_file, tools_file) = match &config.model {
            ModelConfig::Demo(demo) => (demo.thinking_delay, None, None),
            ModelConfig::Provider(provider) => {
                (Duration::ZERO, provider.prices_file.as_deref(), provider.tools_file.as_deref())
            }
        };
        let model = llm::from_config(&config.model)?;
        let assistant = Assistant {
            model: model.clone(),
            memory: memory.clone(),
            prompts: Prompts::compile()?,
            tools: Toolbox::load(tools_file)?,
            conversations: conversations.clone(),
            prices: prices_file.map_or_else(Prices::built_in, Prices::load)?,
            thinking_delay,
            total_timeout: config.model.total_timeout(),
        };
        let learner = conversations
            .clone()
            .map(|store| Arc::new(TurnLearner::from_config(config, memory.clone(), store, model.clone())));
        let learning = learner.clone().zip(conversations.clone()).and_then(|(learner, store)| {
            let bell = store.learning_wakeup()?;
            Some(Arc::new(ExtractionWorker::new(&database, learner, store, bell)))
        });
        let callers = Authenticator::from_config(&config.auth).map_err(SetupError::Callers)?;
        let apis = Apis::new(ApiParts {
            assistant,
            authenticator: callers,
            quotas: config.conversations.quotas,
            resume_grace: config.conversations.resume_grace,
            max_concurrent_streams: config.conversations.max_concurrent_streams,
        });
        Ok(Self {
            conversations,
            model,
            engine: memory,
            agent: apis.agent,
            memory: apis.memory,
            conversation: apis.conversation,
            learner,
            extraction_worker: learning,
            drain: apis.drain,
        })
    }

    /// Opens connections to the stores and providers, all at once, so that the first call finds them open. Nothing fails by
    /// one that can not be had.
    pub async fn warm_up(&self) {
        let conversations = async {
            if let Some(conversations) = &self.conversations {
                conversations.warm_up().await;
            }
        };
        tokio::join!(self.model.warm_up(), self.engine.warm_up(), conversations);
    }
}
