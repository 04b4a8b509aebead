//! The composition root: builds stores, models, embedders and services from the [`Config`].
//!
//! It is the only module besides `config` that names [`Config`]. Building connects to nothing, so that a program can
//! start while its stores and providers are down.

mod error;
mod parts;

pub use error::SetupError;
pub use parts::{build_chat_model, build_embedder};

use std::sync::Arc;

use self::parts::AwsAccess;

use crate::{
    chat::{Assistant, Prompts},
    config::{Config, ModelConfig},
    conversation::ConversationStore,
    embedding::Embedder,
    identity::Authenticator,
    learning::{ExtractionWorker, TurnLearner},
    llm::{ChatModel, Prices},
    memory::MemoryEngine,
    postgres::RolePools,
    retention::RetentionSweep,
    service::{ApiParts, Apis},
    tools::Toolbox,
};

/// The application, for the programs and functions that run it.
#[warn(missing_docs)]
#[derive(Clone)]
pub struct App {
    model: Arc<dyn ChatModel>,
    /// For tasks besides the calls, such as building vector indexes.
    pub engine: Arc<MemoryEngine>,
    /// `None` = conversations are not stored.
    pub conversations: Option<Arc<dyn ConversationStore>>,
    /// The gRPC services.
    pub apis: Apis,
    /// Deletes what is kept for a time only.
    pub retention: RetentionSweep,
    /// `None` = conversations are not stored.
    pub learner: Option<Arc<TurnLearner>>,
    /// `None` = the store has no queue of turns to learn from.
    pub extraction_worker: Option<Arc<ExtractionWorker>>,
}

#[warn(missing_docs)]
impl App {
    /// Without `database` the application has no memory.
    pub fn from_config(config: &Config, database: impl Into<Option<RolePools>>) -> Result<Self, SetupError> {
        Self::with_embedder(config, database, build_embedder(&config.embedding)?)
    }

    /// As [`App::from_config`], but a store on AWS has region and credentials by the default chain of the AWS SDKs, which
    /// refreshes them.
    pub async fn for_server(config: &Config, database: RolePools) -> Result<Self, SetupError> {
        let access = AwsAccess::load(&config.conversations.store).await?;
        Self::build(config, database, build_embedder(&config.embedding)?, access)
    }

    /// As [`App::from_config`], with an embedder that the caller supplies.
    pub fn with_embedder(
        config: &Config,
        database: impl Into<Option<RolePools>>,
        embedder: Arc<dyn Embedder>,
    ) -> Result<Self, SetupError> {
        Self::build(config, database.into().unwrap_or_else(RolePools::absent), embedder, AwsAccess::default())
    }

    fn build(
        config: &Config,
        database: RolePools,
        embedder: Arc<dyn Embedder>,
        access: AwsAccess,
    ) -> Result<Self, SetupError> {
        let engine = Arc::new(MemoryEngine::new(config.memory, database.clone(), embedder));
        let model = build_chat_model(&config.model)?;
        let conversations = parts::build_conversation_store(config, &database, access)?;
        let learner = conversations
            .clone()
            .map(|store| Arc::new(parts::build_learner(config, engine.clone(), store, model.clone())));
        let extraction_worker = learner.clone().zip(conversations.clone()).and_then(|(learner, store)| {
            let stored_turns = store.stored_turns()?;
            Some(Arc::new(ExtractionWorker::new(&database, learner, store, stored_turns)))
        });
        let assistant = build_assistant(config, model.clone(), engine.clone(), conversations.clone())?;
        let apis = Apis::new(ApiParts {
            assistant,
            authenticator: Authenticator::from_config(&config.auth)?,
            quotas: config.conversations.quotas,
            resume_grace: config.conversations.resume_grace,
            max_concurrent_streams: config.conversations.max_concurrent_streams,
            refusals: config.chat_refusals,
            status_interval: config.server.status_interval,
        });
        let retention = RetentionSweep::new(&database);
        Ok(Self { model, engine, conversations, apis, retention, learner, extraction_worker })
    }

    /// Connects concurrently. Failures are ignored: the first call tries again.
    pub async fn warm_up(&self) {
        let conversations = async {
            if let Some(conversations) = &self.conversations {
                conversations.warm_up().await;
            }
        };
        tokio::join!(self.model.warm_up(), self.engine.warm_up(), conversations);
    }
}

fn build_assistant(
    config: &Config,
    model: Arc<dyn ChatModel>,
    memory: Arc<MemoryEngine>,
    conversations: Option<Arc<dyn ConversationStore>>,
) -> Result<Assistant, SetupError> {
    let (thinking_delay, prices_file, tools_file) = match &config.model {
        ModelConfig::Demo(demo) => (demo.thinking_delay, None, None),
        ModelConfig::Provider(provider) => {
            (Default::default(), provider.prices_file.as_deref(), provider.tools_file.as_deref())
        }
    };
    Ok(Assistant {
        model,
        memory,
        prompts: Prompts::compile()?,
        tools: Toolbox::load(tools_file)?,
        conversations,
        prices: prices_file.map_or_else(Prices::built_in, Prices::load)?,
        thinking_delay,
        total_timeout: config.model.total_timeout(),
    })
}
