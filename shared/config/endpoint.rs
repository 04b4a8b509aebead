//! Providers and how to reach a model of theirs.

use super::{EnvReader, Secret};

pub(super) const LLM_API_BASE_URL: &str = "LLM_API_BASE_URL";
pub(super) const LLM_API_KEY: &str = "LLM_API_KEY";
pub(super) const LLM_MODEL_NAME: &str = "LLM_MODEL_NAME";
pub(super) const DEEPSEEK_API_KEY: &str = "DEEPSEEK_API_KEY";
pub(super) const DEEPSEEK_BASE_URL: &str = "DEEPSEEK_BASE_URL";

const BASE_URL_EXAMPLE: &str = "http://127.0.0.1:11434/v1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    OpenAi,
    /// Alibaba Cloud's `DashScope`.
    Qwen,
    DeepSeek,
    /// Any other, such as Ollama or vLLM; it may need no key.
    Compatible,
}

impl Provider {
    pub(super) const CHOICES: [(&'static str, Self); 4] = [
        ("openai", Self::OpenAi),
        ("qwen", Self::Qwen),
        ("deepseek", Self::DeepSeek),
        ("compatible", Self::Compatible),
    ];

    /// The value of `LLM_PROVIDER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::CHOICES.iter().find(|(_, provider)| *provider == self).map_or("", |(name, _)| name)
    }

    pub(super) fn from_url(url: &str) -> Self {
        let contains = |host: &str| url.contains(host);
        match () {
            () if contains("://api.openai.com") => Self::OpenAi,
            () if contains("dashscope") => Self::Qwen,
            () if contains("://api.deepseek.com") => Self::DeepSeek,
            () => Self::Compatible,
        }
    }

    fn default_base_url(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("https://api.openai.com/v1"),
            Self::Qwen => Some("https://dashscope.aliyuncs.com/compatible-mode/v1"),
            Self::DeepSeek => Some("https://api.deepseek.com/v1"),
            Self::Compatible => None,
        }
    }

    fn default_model(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("gpt-4o-mini"),
            Self::Qwen => Some("qwen-plus"),
            Self::DeepSeek => Some("deepseek-chat"),
            Self::Compatible => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct EndpointConfig {
    pub provider: Provider,
    /// Includes `/v1`, without a trailing slash.
    pub base_url: String,
    pub api_key: Option<Secret>,
    pub model: String,
    /// The variable to name in errors about the key.
    pub key_variable: String,
    pub url_variable: &'static str,
}

impl EndpointConfig {
    /// Whether the API is OpenAI's own, which rejects fields that compatible APIs accept.
    #[must_use]
    pub fn is_openai_api(&self) -> bool {
        Provider::from_url(&self.base_url) == Provider::OpenAi
    }

    #[must_use]
    pub fn is_deepseek(&self) -> bool {
        self.provider == Provider::DeepSeek || Provider::from_url(&self.base_url) == Provider::DeepSeek
    }
}

/// The variables of the primary model that are valid in demo mode as well.
pub(super) struct EndpointVariables {
    pub key: Option<String>,
    pub deepseek_key: Option<String>,
    url: Option<String>,
    deepseek_url: Option<String>,
}

impl EndpointVariables {
    pub(super) fn read(reader: &mut EnvReader<'_>) -> Self {
        Self {
            key: reader.text(LLM_API_KEY),
            deepseek_key: reader.text(DEEPSEEK_API_KEY),
            url: reader.base_url(LLM_API_BASE_URL, BASE_URL_EXAMPLE),
            deepseek_url: reader.base_url(DEEPSEEK_BASE_URL, "https://api.deepseek.com/v1"),
        }
    }

    pub(super) fn into_endpoint(self, reader: &mut EnvReader<'_>, provider: Provider) -> EndpointConfig {
        let (key_variable, api_key) = match (provider, self.deepseek_key) {
            (Provider::DeepSeek, Some(key)) => (DEEPSEEK_API_KEY, Some(key)),
            (Provider::DeepSeek, None) if self.key.is_none() => (DEEPSEEK_API_KEY, None),
            _ => (LLM_API_KEY, self.key),
        };
        let (url_variable, base_url) = match (provider, self.deepseek_url) {
            (Provider::DeepSeek, Some(url)) => (DEEPSEEK_BASE_URL, Some(url)),
            _ => (LLM_API_BASE_URL, self.url),
        };
        if api_key.is_none() && provider != Provider::Compatible {
            let problem = format!("is not set, but LLM_PROVIDER={} needs a key", provider.name());
            reader.report(key_variable, problem, "sk-...");
        }
        let no_default = "is not set, and LLM_PROVIDER=compatible has no default";
        let base_url = base_url.or(provider.default_base_url().map(str::to_owned)).unwrap_or_else(|| {
            reader.report(LLM_API_BASE_URL, no_default, BASE_URL_EXAMPLE);
            String::new()
        });
        let model = reader.text(LLM_MODEL_NAME).or(provider.default_model().map(str::to_owned)).unwrap_or_else(|| {
            reader.report(LLM_MODEL_NAME, no_default, "qwen3:8b");
            String::new()
        });
        let api_key = api_key.map(Secret::new);
        EndpointConfig { provider, base_url, api_key, model, key_variable: key_variable.to_owned(), url_variable }
    }
}
