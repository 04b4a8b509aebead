//! The configuration: environment variables, parsed once into one struct per concern.

mod auth;
mod conversations;
mod database;
mod embedding;
mod env;
mod learning;
mod memory;
mod model;
mod server;

use std::fmt;

pub use auth::{AuthConfig, AuthMode, TokenConfig, TokenKeys};
pub use conversations::{ConversationStoreConfig, ConversationsConfig, QuotasByPlan};
pub use database::{DatabaseConfig, StoresConfig};
pub use embedding::EmbeddingConfig;
pub use env::{ConfigErrors, EnvReader, InvalidSetting};
pub use learning::LearningConfig;
pub use memory::MemoryConfig;
pub use model::{
    DemoConfig, DemoReason, EndpointConfig, ModelConfig, ModelTimeouts, Provider, ProviderConfig, RetryConfig,
};
pub use server::{ServerConfig, TlsFiles};

/// Every variable that the service reads, in the order of the table in the README.
pub const VARIABLES: &[&str] = &[
    server::GRPC_HOST,
    server::GRPC_PORT,
    server::TLS_CERT_FILE,
    server::TLS_KEY_FILE,
    server::GRPC_REFLECTION,
    server::GRPC_HEALTH,
    server::WEB_PAGE,
    server::SHUTDOWN_GRACE_SECONDS,
    server::ALLOWED_ORIGINS,
    auth::AUTH,
    auth::JWT_SECRET,
    auth::JWT_JWKS_URL,
    auth::JWT_ISSUER,
    auth::JWT_AUDIENCE,
    auth::INTERNAL_API_KEY,
    model::DEMO_MODE,
    model::DEMO_THINKING_DELAY_MS,
    model::DEMO_CHUNK_DELAY_MS,
    model::DEMO_RESPONSES_FILE,
    model::LLM_PROVIDER,
    model::LLM_API_BASE_URL,
    model::LLM_API_KEY,
    model::LLM_MODEL_NAME,
    model::LLM_ALLOWED_MODELS,
    model::DEEPSEEK_API_KEY,
    model::DEEPSEEK_BASE_URL,
    model::LLM_CONNECT_TIMEOUT_SECONDS,
    model::LLM_FIRST_TOKEN_TIMEOUT_SECONDS,
    model::LLM_IDLE_TIMEOUT_SECONDS,
    model::LLM_TOTAL_TIMEOUT_SECONDS,
    model::LLM_MAX_ATTEMPTS,
    model::LLM_MAX_TOKENS,
    model::LLM_FALLBACKS,
    model::LLM_BREAKER_FAILURES,
    model::LLM_BREAKER_COOLDOWN_SECONDS,
    model::PRICES_FILE,
    model::TOOLS_FILE,
    embedding::EMBEDDING_PROVIDER,
    embedding::EMBEDDING_API_BASE_URL,
    embedding::EMBEDDING_API_KEY,
    embedding::EMBEDDING_MODEL,
    embedding::EMBEDDING_DIM,
    embedding::EMBEDDING_MODEL_DIR,
    memory::BM25_K1,
    memory::BM25_B,
    memory::VECTOR_INDEX_THRESHOLD,
    database::DATABASE_URL,
    database::DATABASE_READ_URL,
    database::DATABASE_ADMIN_URL,
    database::DATABASE_PREPARED_STATEMENTS,
    database::AGENT_DATA_DIR,
    database::ADMISSION_TIMEOUT_MS,
    conversations::CONVERSATIONS,
    conversations::RESUME_GRACE_SECONDS,
    conversations::RATE_LIMITS,
    conversations::RATE_LIMITS_PRO,
    conversations::MAX_CONCURRENT_STREAMS,
    learning::LEARNING,
    crate::telemetry::RUST_LOG,
    crate::telemetry::LOG_FORMAT,
];

/// Where the service runs, which some defaults depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// A server of one's own, which brings what it needs.
    Server,
    /// A function in the cloud: nobody stands before it, and nothing is there that was not given.
    Function,
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where and how the server listens.
    pub server: ServerConfig,
    /// How callers prove who they are.
    pub auth: AuthConfig,
    /// Who answers.
    pub model: ModelConfig,
    /// Who turns text into vectors.
    pub embedding: EmbeddingConfig,
    /// How memories are searched.
    pub memory: MemoryConfig,
    /// Where memories are kept.
    pub stores: StoresConfig,
    /// Where conversations are kept, and what their users may use.
    pub conversations: ConversationsConfig,
    /// What is learned from turns.
    pub learning: LearningConfig,
    /// How logs are written; `None` = pretty on a terminal, JSON otherwise.
    pub log_format: Option<crate::telemetry::LogFormat>,
}

impl Config {
    /// Reads the configuration from a source of variables.
    ///
    /// # Errors
    /// Every mistake in it, each with the variable's name and an example.
    pub fn read(source: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        Self::read_for(EntryPoint::Server, source)
    }

    /// Reads the configuration of a service that runs in some place. A function that has anything to guard has to be told
    /// how callers prove who they are.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_for(place: EntryPoint, source: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        let mut reader = EnvReader::new(source);
        let patience = RetryConfig::read(&mut reader);
        let model = ModelConfig::read(&mut reader, patience);
        let callers = AuthConfig::read(&mut reader, place);
        let stores = StoresConfig::read(&mut reader, place);
        let config = Self {
            server: ServerConfig::read(&mut reader, callers.mode),
            auth: callers,
            embedding: EmbeddingConfig::read(&mut reader, &model, patience),
            memory: MemoryConfig::read(&mut reader),
            conversations: ConversationsConfig::read(&mut reader, &stores.database),
            learning: LearningConfig::read(&mut reader),
            stores,
            log_format: crate::telemetry::LogFormat::read(&mut reader),
            model,
        };
        let guards_nothing =
            matches!(config.model, ModelConfig::Demo(_)) && matches!(config.stores.database, DatabaseConfig::Absent);
        let is_told = reader.text(auth::AUTH).is_some() || reader.has_error(auth::AUTH);
        if place == EntryPoint::Function && !guards_nothing && !is_told {
            let problem = "is not set: a function can be called by anyone; set it to jwt with JWT_SECRET or JWT_JWKS_URL, \
                           or say none";
            reader.report(auth::AUTH, problem, "jwt");
        }
        if let ModelConfig::Provider(provider) = &config.model
            && provider.tools_file.is_some()
            && config.conversations.store == ConversationStoreConfig::Off
        {
            let problem = "is set, but turns that wait for tools are kept with conversations, and CONVERSATIONS is off, or \
                           DATABASE_URL is not set";
            reader.report(model::TOOLS_FILE, problem, "");
        }
        if place == EntryPoint::Function && matches!(config.embedding, EmbeddingConfig::Local { .. }) {
            let problem = "is local, but a function has no model of its own, and vectors of different models are never compared; \
                           set it to openai or hashed, and in agent-local likewise";
            reader.report(embedding::EMBEDDING_PROVIDER, problem, "openai");
        }
        reader.finish(config)
    }

    /// Reads the configuration from the process's environment.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn from_env() -> Result<Self, ConfigErrors> {
        // What is no Unicode is no value of any variable, and is told so by its own reader.
        Self::read(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }
}

/// A value that must never be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let variables: std::collections::HashMap<_, _> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read(&|name| variables.get(name).cloned())
    }

    fn wrong(variables: &[(&str, &str)]) -> Vec<&'static str> {
        read(variables).unwrap_err().0.into_iter().map(|mistake| mistake.variable).collect()
    }

    #[test]
    fn nothing_set_means_demo_mode_with_hashed_embeddings_and_an_embedded_store() {
        let config = read(&[]).unwrap();
        let ModelConfig::Demo(demo) = config.model else { panic!("{:?}", config.model) };
        assert_eq!(demo.reason, DemoReason::NoKey);
        assert_eq!((demo.thinking_delay.as_millis(), demo.chunk_delay.as_millis()), (1000, 30));
        assert!(matches!(config.embedding, EmbeddingConfig::Hashed));
        assert!(matches!(config.stores.database, DatabaseConfig::Embedded { .. }));
        assert_eq!(config.server.port, 50051);
        assert!(config.server.host.is_loopback());
    }

    #[test]
    fn all_mistakes_are_reported_together_with_name_and_example_and_without_the_value() {
        let error = read(&[
            ("GRPC_PORT", "fifty"),
            ("GRPC_HOST", "localhost:1"),
            ("DEMO_MODE", "maybe"),
            ("LLM_TOTAL_TIMEOUT_SECONDS", "-1"),
            ("EMBEDDING_PROVIDER", "sk-secret"),
            ("DATABASE_URL", "mysql://sk-secret"),
            ("LOG_FORMAT", "xml"),
        ])
        .unwrap_err();
        let text = error.to_string();
        for part in [
            "GRPC_PORT=50051",
            "GRPC_HOST=",
            "DEMO_MODE=true",
            "LLM_TOTAL_TIMEOUT_SECONDS=",
            "EMBEDDING_PROVIDER=",
            "DATABASE_URL=postgres://",
            "LOG_FORMAT=",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("sk-secret"), "{text}");
    }

    #[test]
    fn a_key_chooses_its_provider_and_demo_mode_wins_over_a_key() {
        let provider = |variables: &[_]| match read(variables).unwrap().model {
            ModelConfig::Provider(config) => config.primary,
            ModelConfig::Demo(_) => panic!("demo"),
        };
        let openai = provider(&[("LLM_API_KEY", "k")]);
        assert_eq!((openai.provider, openai.base_url.as_str()), (Provider::OpenAi, "https://api.openai.com/v1"));
        let deepseek = provider(&[("DEEPSEEK_API_KEY", "k"), ("EMBEDDING_PROVIDER", "hashed")]);
        assert_eq!(deepseek.provider, Provider::DeepSeek);
        let qwen = provider(&[("LLM_PROVIDER", "qwen"), ("LLM_API_KEY", "k")]);
        assert!(qwen.base_url.contains("dashscope"));
        let demo = read(&[("LLM_API_KEY", "k"), ("DEMO_MODE", "true")]).unwrap();
        assert!(matches!(demo.model, ModelConfig::Demo(DemoConfig { reason: DemoReason::Chosen, .. })));
        assert!(matches!(demo.embedding, EmbeddingConfig::Hashed));
    }

    #[test]
    fn a_combination_that_can_not_work_is_refused() {
        assert_eq!(wrong(&[("LLM_PROVIDER", "qwen")]), ["LLM_API_KEY"]);
        assert_eq!(wrong(&[("DEEPSEEK_API_KEY", "k")]), ["EMBEDDING_PROVIDER"]);
        assert_eq!(wrong(&[("DEMO_MODE", "false")]), ["LLM_API_KEY"]);
        assert_eq!(wrong(&[("LLM_API_KEY", "k"), ("EMBEDDING_MODEL", "own")]), ["EMBEDDING_DIM"]);
        assert_eq!(wrong(&[("TLS_CERT_FILE", "/no/cert.pem")]), ["TLS_KEY_FILE", "TLS_CERT_FILE"]);
        assert_eq!(wrong(&[("DEMO_RESPONSES_FILE", "/no/file")]), ["DEMO_RESPONSES_FILE"]);
        assert_eq!(wrong(&[("EMBEDDING_PROVIDER", "local")]), ["EMBEDDING_MODEL_DIR"]);
        assert_eq!(wrong(&[("EMBEDDING_PROVIDER", "local"), ("EMBEDDING_MODEL_DIR", "/no")]), ["EMBEDDING_MODEL_DIR"]);
        assert_eq!(wrong(&[("LLM_API_BASE_URL", "garbage")]), ["LLM_API_BASE_URL"], "in demo mode too");
        assert_eq!(wrong(&[("LLM_API_BASE_URL", "https://user:key@host/v1")]), ["LLM_API_BASE_URL"]);
        assert_eq!(wrong(&[("DEEPSEEK_API_KEY", "k"), ("EMBEDDING_PROVIDER", "openai")]), ["EMBEDDING_API_KEY"]);
        assert_eq!(wrong(&[("GRPC_HOST", "0.0.0.0")]), ["GRPC_HOST"]);
        assert!(read(&[("GRPC_HOST", "0.0.0.0"), ("AUTH", "gateway")]).is_ok());
    }

    #[test]
    fn a_function_has_no_model_of_its_own() {
        let source = |name: &str| match name {
            "EMBEDDING_PROVIDER" => Some("local".to_owned()),
            "EMBEDDING_MODEL_DIR" => Some(".".to_owned()),
            _ => None,
        };
        assert!(Config::read(&source).is_ok());
        let mistakes = Config::read_for(EntryPoint::Function, &source).unwrap_err();
        assert!(
            mistakes.to_string().contains("EMBEDDING_PROVIDER: is local, but a function has no model"),
            "{mistakes}"
        );
    }

    #[test]
    fn a_secret_is_never_printed() {
        let config = read(&[("LLM_API_KEY", "sk-secret"), ("DATABASE_URL", "postgres://u:sk-secret@h/d")]).unwrap();
        assert!(!format!("{config:?}").contains("sk-secret"));
    }
}
