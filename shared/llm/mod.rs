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

pub use chain::ModelChain;
pub use demo::{DEMO_MODEL, DemoModel, DemoResponses, DemoResponsesError};
pub use error::{AddressHint, ErrorOrigin, ModelError, ModelErrorKind};
pub use model::{ChatModel, Finish, Message, ModelEvent, ModelRequest, ModelStream, ToolCall};
pub use openai::parse_pieces;
pub use prices::{Price, Prices, PricesError};
pub use tokens::{TokenUsage, estimate_tokens};
