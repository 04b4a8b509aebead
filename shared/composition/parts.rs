use std::sync::Arc;

use super::error::SetupError;
#[cfg(feature = "dynamodb")]
use crate::config::TurnDelivery;
#[cfg(feature = "dynamodb")]
use crate::conversation::dynamodb::{DynamoAccess, DynamoConversations, DynamoTable, ExtractionJobs};
#[cfg(feature = "local-embeddings")]
use crate::embedding::LocalEmbedder;
use crate::{
    config::{Config, ConversationStoreConfig, EmbeddingConfig, LearningConfig, ModelConfig},
    conversation::{ConversationStore, PostgresConversations},
    embedding::{Embedder, EmbeddingModel, HashedEmbedder, OpenAiEmbedder},
    learning::{Extractor, ModelExtractor, ModelSummarizer, RuleExtractor, RuleSummarizer, Summarizer, TurnLearner},
    llm::{ChatModel, DemoModel, DemoResponses, ModelChain},
    memory::MemoryEngine,
    postgres::RolePools,
};

/// Loading a local model blocks for a moment.
pub fn build_embedder(config: &EmbeddingConfig) -> Result<Arc<dyn Embedder>, SetupError> {
    Ok(match config {
        EmbeddingConfig::Hashed => Arc::new(HashedEmbedder::new()),
        #[cfg(feature = "local-embeddings")]
        EmbeddingConfig::Local { model_dir } => Arc::new(LocalEmbedder::load(model_dir)?),
        #[cfg(not(feature = "local-embeddings"))]
        EmbeddingConfig::Local { .. } => return Err(SetupError::LocalModelUnsupported),
        EmbeddingConfig::OpenAi { base_url, api_key, model, dimension, sends_dimension, retry } => {
            let model = EmbeddingModel { name: model.clone(), dimension: *dimension };
            Arc::new(OpenAiEmbedder::new(base_url, api_key.clone(), model, *sends_dimension, *retry)?)
        }
    })
}

pub fn build_chat_model(config: &ModelConfig) -> Result<Arc<dyn ChatModel>, SetupError> {
    Ok(match config {
        ModelConfig::Demo(demo) => {
            let responses = match &demo.responses_file {
                Some(path) => DemoResponses::load(path)?,
                None => DemoResponses::built_in()?,
            };
            Arc::new(DemoModel::new(responses, demo.chunk_delay))
        }
        ModelConfig::Provider(provider) => Arc::new(ModelChain::new(provider)?),
    })
}

/// Access to services of AWS that was set up before the stores are built.
#[derive(Debug, Default)]
pub(super) struct AwsAccess {
    /// `None` = from the environment.
    #[cfg(feature = "dynamodb")]
    dynamo: Option<DynamoAccess>,
}

impl AwsAccess {
    /// By the default chain of the AWS SDKs, if a store needs it. It may ask services of AWS for the region and for
    /// credentials.
    pub(super) async fn load(config: &ConversationStoreConfig) -> Result<Self, SetupError> {
        #[cfg(feature = "aws-config")]
        if let ConversationStoreConfig::DynamoDb { .. } = config {
            return Ok(Self { dynamo: Some(DynamoAccess::from_default_chain().await?) });
        }
        let _unused = config;
        Ok(Self::default())
    }
}

pub(super) fn build_conversation_store(
    config: &Config,
    database: &RolePools,
    access: AwsAccess,
) -> Result<Option<Arc<dyn ConversationStore>>, SetupError> {
    let (max_turn_duration, admission_timeout) = (config.model.total_timeout(), config.stores.admission_timeout);
    Ok(match &config.conversations.store {
        ConversationStoreConfig::Off => None,
        ConversationStoreConfig::Postgres => Some(Arc::new(PostgresConversations::with_deadlines(
            &database.conversations,
            max_turn_duration,
            admission_timeout,
        ))),
        #[cfg(feature = "dynamodb")]
        ConversationStoreConfig::DynamoDb { table, turn_delivery } => {
            let table = DynamoTable {
                name: table.clone(),
                access: access.dynamo.map_or_else(DynamoAccess::from_env, Ok)?,
                extraction_jobs: match turn_delivery {
                    TurnDelivery::Queue => Some(ExtractionJobs::new(database)),
                    TurnDelivery::Stream => None,
                },
            };
            Some(Arc::new(DynamoConversations::with_deadlines(table, max_turn_duration, admission_timeout)))
        }
        #[cfg(not(feature = "dynamodb"))]
        ConversationStoreConfig::DynamoDb { .. } => {
            let AwsAccess {} = access;
            return Err(SetupError::DynamoUnsupported);
        }
    })
}

pub(super) fn build_learner(
    config: &Config,
    memory: Arc<MemoryEngine>,
    conversations: Arc<dyn ConversationStore>,
    model: Arc<dyn ChatModel>,
) -> TurnLearner {
    let (extractor, summarizer): (Arc<dyn Extractor>, Arc<dyn Summarizer>) = match config.model {
        ModelConfig::Demo(_) => (Arc::new(RuleExtractor), Arc::new(RuleSummarizer)),
        ModelConfig::Provider(_) => {
            (Arc::new(ModelExtractor::new(model.clone())), Arc::new(ModelSummarizer::new(model)))
        }
    };
    let learner = TurnLearner::new(memory, conversations, extractor, summarizer);
    match config.learning {
        LearningConfig::On => learner,
        LearningConfig::Verbatim => learner.verbatim_only(),
        LearningConfig::Off => learner.without_memory(),
    }
}
