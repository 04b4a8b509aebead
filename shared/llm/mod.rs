//! Models that answer: any OpenAI-compatible API, or canned answers in demo mode.
//!
//! A model turns a list of messages into a stream of events. It knows nothing of users, memory or frames, and runs no tool.

mod chain;
mod demo;
mod error;
mod openai;
mod pace;
mod prices;
mod tokens;

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, future::BoxFuture};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

pub use chain::ModelChain;
pub use demo::{DEMO_MODEL, DemoModel, DemoResponses, DemoResponsesError};
pub use error::{ErrorOrigin, ModelError, ModelErrorKind};
#[cfg(fuzzing)]
pub use openai::parse_pieces;
pub use prices::{Price, Prices, PricesError};
pub use tokens::{TokenUsage, estimate_tokens};

use crate::config::ModelConfig;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Instructions of the service.
    System(String),
    /// What the user says.
    User(String),
    /// What the model said.
    Assistant {
        /// Its text, which is empty where it only called tools.
        content: String,
        /// What it thought before, where it told.
        reasoning: Option<String>,
        /// The tools that it called.
        calls: Vec<ToolCall>,
    },
    /// What came of a call.
    Tool {
        /// The call's id.
        call_id: String,
        /// The result, most often JSON.
        content: String,
    },
}

impl Message {
    /// A rough count of its tokens.
    #[must_use]
    pub fn estimate_tokens(&self) -> u32 {
        match self {
            Self::System(text) | Self::User(text) | Self::Tool { content: text, .. } => estimate_tokens(text),
            Self::Assistant { content, reasoning, calls } => {
                let calls = calls.iter().map(|call| estimate_tokens(&call.name) + estimate_tokens(&call.arguments));
                let reasoning = reasoning.as_deref().map_or(0, estimate_tokens);
                calls.fold(estimate_tokens(content).saturating_add(reasoning), u32::saturating_add)
            }
        }
    }
}

/// A call of a tool, as the model wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within the conversation.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON text, if the model did well.
    pub arguments: String,
}

/// What a model is asked.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// The model by name; `None` = the configured one.
    pub model: Option<String>,
    /// The conversation, oldest message first; the last is the user's question or a tool's result.
    pub messages: Arc<Vec<Message>>,
    /// Sampling temperature, 0 to 2; `None` = the provider's default.
    pub temperature: Option<f32>,
    /// Most tokens of the answer, at least 1; `None` = the provider's default.
    pub max_tokens: Option<u32>,
    /// Tools that the model may call: entries of OpenAI's `tools`.
    pub tools: Arc<[Box<RawValue>]>,
    /// Whether it has to answer without calling any of them.
    pub must_answer: bool,
    /// When the whole turn must have ended.
    pub deadline: Instant,
}

/// What a model gives, in order: deltas, then usage if the provider tells it, then how it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// The next piece of the answer, never empty.
    Delta(String),
    /// Tokens, as a provider counted them for one request; a request that failed may have spent some, too.
    Usage {
        /// The model that spent them.
        model: String,
        /// How many.
        tokens: TokenUsage,
    },
    /// The end: the answer of this model is complete.
    Finished {
        /// Who answered.
        model: String,
        /// Why it stopped.
        finish: Finish,
    },
    /// The end: the model of this name wants tools to be called, at least one.
    ToolsCalled {
        /// Who wants them.
        model: String,
        /// In the order in which it named them.
        calls: Vec<ToolCall>,
        /// What it thought before, where it told.
        reasoning: Option<String>,
    },
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

/// The events of one answer. Dropping it cancels the request to the provider.
pub type ModelStream = Pin<Box<dyn Stream<Item = Result<ModelEvent, ModelError>> + Send>>;

/// Something that answers.
pub trait ChatModel: Send + Sync {
    /// Starts an answer. Nothing is asked of a provider before the stream is polled.
    fn answer(self: Arc<Self>, request: ModelRequest) -> ModelStream;

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
        ModelConfig::Provider(provider) => Arc::new(ModelChain::new(provider)?),
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
