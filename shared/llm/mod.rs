//! Models that answer: any OpenAI-compatible API, or canned answers in demo mode.
//!
//! A model turns a list of messages into a stream of events. It knows nothing of users, memory or frames.

mod demo;
mod error;
mod openai;
mod pace;
mod tokens;

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::{Stream, future::BoxFuture};

pub use demo::{DemoModel, DemoResponses, DemoResponsesError};
pub use error::{ModelError, ModelErrorKind};
pub use openai::OpenAiModel;
pub use tokens::estimate_tokens;

use crate::config::ModelConfig;

/// Who says a message of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions of the service.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// What a model is asked.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// The model by name; `None` = the configured one.
    pub model: Option<String>,
    /// The conversation, oldest message first; the last is the user's question.
    pub messages: Vec<Message>,
    /// Sampling temperature, 0 to 2; `None` = the provider's default.
    pub temperature: Option<f32>,
    /// Most tokens of the answer, at least 1; `None` = the provider's default.
    pub max_tokens: Option<u32>,
    /// When the whole turn must have ended.
    pub deadline: Instant,
}

/// What a model gives, in order: deltas, then usage if the provider tells it, then how it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// The next piece of the answer, never empty.
    Delta(String),
    /// Tokens, as the provider counted them.
    Usage(TokenUsage),
    /// The end; nothing follows.
    Finished(Finish),
}

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The answer is complete.
    Stop,
    /// The limit of tokens is reached.
    Length,
    /// The provider's filter cut it.
    ContentFilter,
}

/// Tokens of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    /// Tokens of the question with everything around it.
    pub prompt: u32,
    /// Tokens of the answer.
    pub completion: u32,
}

/// The events of one answer. Dropping it cancels the request to the provider.
pub type ModelStream = Pin<Box<dyn Stream<Item = Result<ModelEvent, ModelError>> + Send>>;

/// Something that answers.
pub trait ChatModel: Send + Sync {
    /// Starts an answer. Nothing is asked of a provider before the stream is polled.
    fn answer(&self, request: ModelRequest) -> ModelStream;

    /// The model that answers a request which names `requested`.
    fn name<'a>(&'a self, requested: Option<&'a str>) -> &'a str;

    /// Whether a request may name this model.
    fn allows(&self, model: &str) -> bool;

    /// Opens a connection to the provider, if there is one, for the first answer to use. What fails is tried again then.
    fn warm_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Builds the model that the configuration names.
///
/// # Errors
/// The file of demo answers can not be used, or no TLS is to be had.
pub fn from_config(config: &ModelConfig) -> Result<Arc<dyn ChatModel>, ModelSetupError> {
    Ok(match config {
        ModelConfig::Demo(demo) => {
            let responses = match &demo.responses_file {
                Some(path) => DemoResponses::load(path)?,
                None => DemoResponses::built_in()?,
            };
            Arc::new(DemoModel::new(responses, demo.chunk_delay))
        }
        ModelConfig::Provider(provider) => Arc::new(OpenAiModel::new(provider.clone())?),
    })
}

/// Why a model can not be built.
#[derive(Debug, thiserror::Error)]
pub enum ModelSetupError {
    /// The file of demo answers can not be used.
    #[error(transparent)]
    Responses(#[from] DemoResponsesError),
    /// The HTTP client can not be built.
    #[error("the HTTP client can not be built: {0}")]
    Client(#[from] reqwest::Error),
}
