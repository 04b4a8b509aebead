//! The interface of chat models: a list of messages in, a stream of events out.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, future::BoxFuture};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    error::ModelError,
    tokens::{TokenUsage, estimate_tokens},
};
use crate::identity::UserId;

/// One message of a conversation. Its serde names are a storage format and must not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    System(String),
    User(String),
    Assistant {
        /// Empty if the model only called tools.
        content: String,
        reasoning: Option<String>,
        calls: Vec<ToolCall>,
    },
    Tool {
        call_id: String,
        content: String,
    },
}

impl Message {
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

/// Not validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within the answer.
    pub id: String,
    pub name: String,
    /// Text that should be JSON.
    pub arguments: String,
}

#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// `None` = the configured model.
    pub model: Option<String>,
    /// Oldest first; the last one is the user's question or a tool result.
    pub messages: Arc<Vec<Message>>,
    /// 0 to 2; `None` = the provider's default.
    pub temperature: Option<f32>,
    /// `None`: no user has caused the request.
    pub user: Option<UserId>,
    /// Of the answer, at least 1; `None` = the provider's default.
    pub max_tokens: Option<u32>,
    /// Entries of OpenAI's `tools`.
    pub tools: Arc<[Box<RawValue>]>,
    pub must_answer: bool,
    /// Of the whole turn.
    pub deadline: Instant,
}

/// Order: deltas, then usage if the provider reports it, then exactly one of `Finished` and `ToolsCalled`.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// Never empty.
    Delta(String),
    /// Of one request. A failed request may have spent tokens too.
    Usage { model: String, tokens: TokenUsage },
    /// `model` completed the answer.
    Finished { model: String, finish: Finish },
    /// At least one call.
    ToolsCalled { model: String, calls: Vec<ToolCall>, reasoning: Option<String> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
    ContentFilter,
}

/// The events of one answer. Nothing is sent before the first poll; dropping the stream cancels the provider's request.
pub type ModelStream = Pin<Box<dyn Stream<Item = Result<ModelEvent, ModelError>> + Send>>;

/// A model, or a chain of models with fallbacks.
#[warn(missing_docs)]
pub trait ChatModel: Send + Sync {
    /// Starts an answer. It is pull-based: nothing is sent before the first poll.
    fn answer(self: Arc<Self>, request: ModelRequest) -> ModelStream;

    /// The model that answers a request which names `requested`.
    fn name<'a>(&'a self, requested: Option<&'a str>) -> &'a str;

    /// Whether a request may name this model.
    fn allows(&self, model: &str) -> bool;

    /// Errors are ignored: the first answer reports them.
    fn warm_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
