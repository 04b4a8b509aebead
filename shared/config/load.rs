//! The whole configuration, and the rules that involve more than one part of it.

use super::{
    AuthConfig, ChatRefusals, ConfigErrors, ConversationStoreConfig, ConversationsConfig, DatabaseConfig,
    EmbeddingConfig, EntryPoint, EnvReader, LearningConfig, LogFormat, MemoryConfig, ModelConfig, RetryConfig,
    ServerConfig, StoresConfig, auth, conversations, database, embedding, endpoint, fallbacks, learning, logging,
    memory, model, quotas, refusals, retry, server,
};

/// In the order of the table in the docs.
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
    server::CORS_ALLOWED_HEADERS,
    server::HTTP1_KEEPALIVE_SECONDS,
    server::STATUS_INTERVAL_SECONDS,
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
    endpoint::LLM_API_BASE_URL,
    endpoint::LLM_API_KEY,
    endpoint::LLM_MODEL_NAME,
    model::LLM_ALLOWED_MODELS,
    endpoint::DEEPSEEK_API_KEY,
    endpoint::DEEPSEEK_BASE_URL,
    model::LLM_CONNECT_TIMEOUT_SECONDS,
    model::LLM_FIRST_TOKEN_TIMEOUT_SECONDS,
    model::LLM_IDLE_TIMEOUT_SECONDS,
    model::LLM_TOTAL_TIMEOUT_SECONDS,
    retry::LLM_MAX_ATTEMPTS,
    model::LLM_MAX_TOKENS,
    fallbacks::LLM_FALLBACKS,
    retry::LLM_BREAKER_FAILURES,
    retry::LLM_BREAKER_COOLDOWN_SECONDS,
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
    quotas::RATE_LIMITS,
    quotas::RATE_LIMITS_PRO,
    conversations::MAX_CONCURRENT_STREAMS,
    refusals::CHAT_REFUSALS,
    learning::LEARNING,
    logging::RUST_LOG,
    logging::LOG_FORMAT,
];

#[derive(Debug, Clone)]
pub struct Config {
    pub server: ServerConfig,
    pub auth: AuthConfig,
    pub model: ModelConfig,
    pub embedding: EmbeddingConfig,
    pub memory: MemoryConfig,
    pub stores: StoresConfig,
    pub conversations: ConversationsConfig,
    pub learning: LearningConfig,
    pub chat_refusals: ChatRefusals,
    /// `None` = pretty on a terminal, JSON otherwise.
    pub log_format: Option<LogFormat>,
}

impl Config {
    pub fn read(source: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        Self::read_for(EntryPoint::Server, source)
    }

    /// A function with data or a provider to protect must set `AUTH` explicitly.
    pub fn read_for(entry_point: EntryPoint, source: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        let mut reader = EnvReader::new(source);
        let retry = RetryConfig::read(&mut reader);
        let model = ModelConfig::read(&mut reader, retry);
        let auth = AuthConfig::read(&mut reader, entry_point);
        let stores = StoresConfig::read(&mut reader, entry_point);
        let config = Self {
            server: ServerConfig::read(&mut reader, auth.mode, model.stall_timeout()),
            auth,
            embedding: EmbeddingConfig::read(&mut reader, &model, retry),
            memory: MemoryConfig::read(&mut reader),
            conversations: ConversationsConfig::read(&mut reader, &stores.database, entry_point),
            learning: LearningConfig::read(&mut reader),
            chat_refusals: ChatRefusals::read(&mut reader),
            stores,
            log_format: LogFormat::read(&mut reader),
            model,
        };
        if entry_point == EntryPoint::Function {
            config.check_function(&mut reader);
        }
        if let ModelConfig::Provider(provider) = &config.model
            && provider.tools_file.is_some()
            && config.conversations.store == ConversationStoreConfig::Off
        {
            let problem = "is set, but pending turns are stored with conversations, and CONVERSATIONS is off or \
                           DATABASE_URL is not set";
            reader.report(model::TOOLS_FILE, problem, "");
        }
        reader.finish(config)
    }

    pub fn from_env() -> Result<Self, ConfigErrors> {
        // A value that is not Unicode is invalid for every variable, and its reader reports it.
        Self::read(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn check_function(&self, reader: &mut EnvReader<'_>) {
        let is_demo_without_memory =
            matches!(self.model, ModelConfig::Demo(_)) && matches!(self.stores.database, DatabaseConfig::Absent);
        let is_auth_set = reader.text(auth::AUTH).is_some() || reader.has_error(auth::AUTH);
        if !is_demo_without_memory && !is_auth_set {
            let problem = "is not set, and anyone can call a function: set it to jwt with JWT_SECRET or JWT_JWKS_URL, or to \
                           none";
            reader.report(auth::AUTH, problem, "jwt");
        }
        if matches!(self.embedding, EmbeddingConfig::Local { .. }) {
            let problem = "is local, but a function has no local model, and vectors of different models cannot be compared: \
                           set it to openai or hashed, and to the same in agent-local";
            reader.report(embedding::EMBEDDING_PROVIDER, problem, "openai");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DemoConfig, DemoReason, Provider};

    fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let variables: std::collections::HashMap<_, _> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read(&|name| variables.get(name).cloned())
    }

    fn invalid(variables: &[(&str, &str)]) -> Vec<&'static str> {
        read(variables).unwrap_err().0.into_iter().map(|error| error.variable).collect()
    }

    #[test]
    fn defaults_are_demo_mode_and_embedded_postgres() {
        let config = read(&[]).unwrap();
        let ModelConfig::Demo(demo) = config.model else { panic!("{:?}", config.model) };
        assert_eq!(demo.reason, DemoReason::NoKey);
        assert_eq!((demo.thinking_delay.as_millis(), demo.chunk_delay.as_millis()), (1000, 30));
        assert!(matches!(config.embedding, EmbeddingConfig::Hashed));
        assert!(matches!(config.stores.database, DatabaseConfig::Embedded { .. }));
        assert_eq!(config.server.port, 50051);
        assert!(config.server.host.is_loopback());
        assert_eq!(config.server.http1_keepalive.as_secs(), 75);
        assert_eq!(config.server.status_interval.map(|interval| interval.as_secs()), Some(15));
    }

    #[test]
    fn all_errors_are_reported_together_without_values() {
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
    fn key_selects_provider_unless_demo_mode() {
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
    fn invalid_combination_is_reported() {
        assert_eq!(invalid(&[("LLM_PROVIDER", "qwen")]), ["LLM_API_KEY"]);
        assert_eq!(invalid(&[("DEEPSEEK_API_KEY", "k")]), ["EMBEDDING_PROVIDER"]);
        assert_eq!(invalid(&[("DEMO_MODE", "false")]), ["LLM_API_KEY"]);
        assert_eq!(invalid(&[("LLM_API_KEY", "k"), ("EMBEDDING_MODEL", "own")]), ["EMBEDDING_DIM"]);
        assert_eq!(invalid(&[("TLS_CERT_FILE", "/no/cert.pem")]), ["TLS_KEY_FILE", "TLS_CERT_FILE"]);
        assert_eq!(invalid(&[("DEMO_RESPONSES_FILE", "/no/file")]), ["DEMO_RESPONSES_FILE"]);
        assert_eq!(invalid(&[("EMBEDDING_PROVIDER", "local")]), ["EMBEDDING_MODEL_DIR"]);
        assert_eq!(
            invalid(&[("EMBEDDING_PROVIDER", "local"), ("EMBEDDING_MODEL_DIR", "/no")]),
            ["EMBEDDING_MODEL_DIR"]
        );
        assert_eq!(invalid(&[("LLM_API_BASE_URL", "garbage")]), ["LLM_API_BASE_URL"], "in demo mode too");
        assert_eq!(invalid(&[("LLM_API_BASE_URL", "https://user:key@host/v1")]), ["LLM_API_BASE_URL"]);
        assert_eq!(invalid(&[("DEEPSEEK_API_KEY", "k"), ("EMBEDDING_PROVIDER", "openai")]), ["EMBEDDING_API_KEY"]);
        assert_eq!(invalid(&[("GRPC_HOST", "0.0.0.0")]), ["GRPC_HOST"]);
        assert_eq!(invalid(&[("CORS_ALLOWED_HEADERS", "x-a, a b")]), ["CORS_ALLOWED_HEADERS"]);
        assert_eq!(invalid(&[("HTTP1_KEEPALIVE_SECONDS", "0")]), ["HTTP1_KEEPALIVE_SECONDS"]);
        assert!(read(&[("STATUS_INTERVAL_SECONDS", "0")]).is_ok_and(|config| config.server.status_interval.is_none()));
        assert!(read(&[("GRPC_HOST", "0.0.0.0"), ("AUTH", "gateway")]).is_ok());
    }

    #[test]
    fn local_embeddings_are_invalid_for_functions() {
        let source = |name: &str| match name {
            "EMBEDDING_PROVIDER" => Some("local".to_owned()),
            "EMBEDDING_MODEL_DIR" => Some(".".to_owned()),
            _ => None,
        };
        assert!(Config::read(&source).is_ok());
        let errors = Config::read_for(EntryPoint::Function, &source).unwrap_err();
        assert!(
            errors.to_string().contains("EMBEDDING_PROVIDER: is local, but a function has no local model"),
            "{errors}"
        );
    }

    #[test]
    fn debug_output_contains_no_secret() {
        let config = read(&[("LLM_API_KEY", "sk-secret"), ("DATABASE_URL", "postgres://u:sk-secret@h/d")]).unwrap();
        assert!(!format!("{config:?}").contains("sk-secret"));
    }
}
