use std::path::PathBuf;

use super::{EnvReader, ModelConfig, Provider, RetryConfig, Secret};

pub(super) const EMBEDDING_PROVIDER: &str = "EMBEDDING_PROVIDER";
pub(super) const EMBEDDING_API_BASE_URL: &str = "EMBEDDING_API_BASE_URL";
pub(super) const EMBEDDING_API_KEY: &str = "EMBEDDING_API_KEY";
pub(super) const EMBEDDING_MODEL: &str = "EMBEDDING_MODEL";
pub(super) const EMBEDDING_DIM: &str = "EMBEDDING_DIM";
pub(super) const EMBEDDING_MODEL_DIR: &str = "EMBEDDING_MODEL_DIR";

/// pgvector's limit for indexed `halfvec` columns.
const MAX_DIMENSION: u64 = 4_000;
const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";

#[derive(Debug, Clone)]
pub enum EmbeddingConfig {
    /// The built-in embedder: deterministic hashing of words and characters.
    Hashed,
    Local {
        /// A sentence-transformers directory.
        model_dir: PathBuf,
    },
    OpenAi {
        /// Includes `/v1`, without a trailing slash.
        base_url: String,
        api_key: Option<Secret>,
        model: String,
        dimension: usize,
        /// Requests must name the dimension, because it is not the model's own.
        sends_dimension: bool,
        retry: RetryConfig,
    },
}

#[derive(Clone, Copy)]
enum EmbeddingProvider {
    OpenAi,
    Local,
    Hashed,
}

impl EmbeddingConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>, model: &ModelConfig, retry: RetryConfig) -> Self {
        let choices = [
            ("openai", EmbeddingProvider::OpenAi),
            ("local", EmbeddingProvider::Local),
            ("hashed", EmbeddingProvider::Hashed),
        ];
        let chosen = reader.choice(EMBEDDING_PROVIDER, &choices);
        let model_dir = reader.directory(EMBEDDING_MODEL_DIR, "models/all-MiniLM-L6-v2");
        let own_url = reader.base_url(EMBEDDING_API_BASE_URL, OPENAI_BASE_URL);
        let own_key = reader.text(EMBEDDING_API_KEY).map(Secret::new);
        let own_model = reader.text(EMBEDDING_MODEL);
        let own_dimension = reader.integer(EMBEDDING_DIM, 1, MAX_DIMENSION, "1536");
        let chat = match model {
            ModelConfig::Provider(config) => Some(&config.primary),
            ModelConfig::Demo(_) => None,
        };
        match (chosen, chat) {
            (Some(EmbeddingProvider::Local), _) => return Self::local(reader, model_dir),
            (Some(EmbeddingProvider::Hashed), _) | (None, None) => return Self::Hashed,
            (None, Some(config)) if config.provider == Provider::DeepSeek && own_url.is_none() => {
                let problem = "is not set, and DeepSeek has no embeddings API: set it to openai with EMBEDDING_API_KEY, or \
                               to hashed for the built-in embedder";
                reader.report(EMBEDDING_PROVIDER, problem, "openai");
                return Self::Hashed;
            }
            _ => {}
        }
        // The chat provider's key and URL serve embeddings as well, except DeepSeek's.
        let shared = chat.filter(|config| config.provider != Provider::DeepSeek);
        let base_url = own_url.or_else(|| shared.map(|config| config.base_url.clone()));
        let api_key = own_key.or_else(|| shared.and_then(|config| config.api_key.clone()));
        let model = own_model.or_else(|| match shared.map(|config| config.provider) {
            Some(Provider::Qwen) => Some("text-embedding-v4".to_owned()),
            Some(Provider::Compatible) => None,
            _ => Some("text-embedding-3-small".to_owned()),
        });
        let Some(model) = model else {
            let problem = "is not set, and LLM_PROVIDER=compatible has no default; or set EMBEDDING_PROVIDER=hashed";
            reader.report(EMBEDDING_MODEL, problem, "nomic-embed-text");
            return Self::Hashed;
        };
        let native = native_dimension(&model);
        let Some(dimension) = own_dimension.or(native) else {
            reader.report(EMBEDDING_DIM, "is not set, and the dimension of EMBEDDING_MODEL is not known", "768");
            return Self::Hashed;
        };
        if base_url.is_none() && api_key.is_none() {
            reader.report(EMBEDDING_API_KEY, "is not set, but OpenAI's embeddings need a key", "sk-...");
        }
        Self::OpenAi {
            base_url: base_url.unwrap_or_else(|| OPENAI_BASE_URL.to_owned()),
            api_key,
            model,
            sends_dimension: native.is_some_and(|native| native != dimension),
            dimension: usize::try_from(dimension).unwrap_or_default(),
            retry,
        }
    }

    fn local(reader: &mut EnvReader<'_>, model_dir: Option<PathBuf>) -> Self {
        if model_dir.is_none() && reader.text(EMBEDDING_MODEL_DIR).is_none() {
            let problem = "is not set, but EMBEDDING_PROVIDER=local needs the directory of a model";
            reader.report(EMBEDDING_MODEL_DIR, problem, "models/all-MiniLM-L6-v2");
        }
        Self::Local { model_dir: model_dir.unwrap_or_default() }
    }
}

fn native_dimension(model: &str) -> Option<u64> {
    match model {
        "text-embedding-3-small" | "text-embedding-ada-002" => Some(1536),
        "text-embedding-3-large" => Some(3072),
        "text-embedding-v3" | "text-embedding-v4" => Some(1024),
        "nomic-embed-text" => Some(768),
        _ => None,
    }
}
