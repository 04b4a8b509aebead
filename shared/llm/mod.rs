//! Chat models: any OpenAI-compatible API with fallbacks, or canned answers in demo mode.
//!
//! A model turns messages into a stream of events. It knows nothing of users, memory or frames, and runs no tool.

mod chain;
mod demo;
mod error;
mod model;
mod openai;
mod pace;
mod prices;
mod tokens;

use std::sync::Arc;

pub use chain::ModelChain;
pub use demo::{DEMO_MODEL, DemoModel, DemoResponses, DemoResponsesError};
pub use error::{ErrorOrigin, ModelError, ModelErrorKind};
pub use model::{ChatModel, Finish, Message, ModelEvent, ModelRequest, ModelStream, ToolCall};
#[cfg(fuzzing)]
pub use openai::parse_pieces;
pub use prices::{Price, Prices, PricesError};
pub use tokens::{TokenUsage, estimate_tokens};

use crate::config::ModelConfig;

/// Builds the configured model.
///
/// # Errors
/// The demo responses are invalid, or TLS cannot be set up.
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

#[derive(Debug, thiserror::Error)]
pub enum ModelSetupError {
    #[error(transparent)]
    Responses(#[from] DemoResponsesError),
    #[error("the HTTP client cannot be built: {0}")]
    Client(#[from] reqwest::Error),
}
