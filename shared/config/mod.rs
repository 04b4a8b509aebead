//! The configuration: environment variables, parsed once into one settings type per concern.
//!
//! Settings are plain data and know nothing of the modules that they configure: this module depends on no other. It
//! connects to nothing; it opens configured files only to check that they can be read.

mod auth;
mod conversations;
mod database;
mod embedding;
mod endpoint;
mod entry_point;
mod env;
mod fallbacks;
mod learning;
mod load;
mod logging;
mod memory;
mod model;
mod origin;
mod quotas;
mod refusals;
mod retry;
mod secret;
mod server;

pub use auth::{AuthConfig, AuthMode, TokenConfig, TokenKeys};
pub use conversations::{ConversationStoreConfig, ConversationsConfig, TurnDelivery};
pub use database::{DatabaseConfig, StoresConfig};
pub use embedding::EmbeddingConfig;
pub use endpoint::{EndpointConfig, Provider};
pub use entry_point::EntryPoint;
pub use env::{ConfigErrors, EnvReader, InvalidSetting};
pub use learning::LearningConfig;
pub use load::{Config, VARIABLES};
pub use logging::LogFormat;
pub use memory::MemoryConfig;
pub use model::{DemoConfig, DemoReason, ModelConfig, ModelTimeouts, ProviderConfig};
pub use origin::{Origin, OriginError};
pub use quotas::{CallQuotas, PlanQuotas, QuotasByPlan, UserQuotas};
pub use refusals::ChatRefusals;
pub use retry::{BreakerSettings, RetryConfig};
pub use secret::Secret;
pub use server::{AllowedOrigin, ServerConfig, TlsFiles};
