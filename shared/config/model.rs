//! Who answers: a provider's model, or canned answers in demo mode.

use std::{path::PathBuf, time::Duration};

use super::{Reader, Secret};

pub(super) const DEMO_MODE: &str = "DEMO_MODE";
pub(super) const DEMO_THINKING_DELAY_MS: &str = "DEMO_THINKING_DELAY_MS";
pub(super) const DEMO_CHUNK_DELAY_MS: &str = "DEMO_CHUNK_DELAY_MS";
pub(super) const DEMO_RESPONSES_FILE: &str = "DEMO_RESPONSES_FILE";
pub(super) const LLM_PROVIDER: &str = "LLM_PROVIDER";
pub(super) const LLM_API_BASE_URL: &str = "LLM_API_BASE_URL";
pub(super) const LLM_API_KEY: &str = "LLM_API_KEY";
pub(super) const LLM_MODEL_NAME: &str = "LLM_MODEL_NAME";
pub(super) const LLM_ALLOWED_MODELS: &str = "LLM_ALLOWED_MODELS";
pub(super) const DEEPSEEK_API_KEY: &str = "DEEPSEEK_API_KEY";
pub(super) const DEEPSEEK_BASE_URL: &str = "DEEPSEEK_BASE_URL";
pub(super) const LLM_CONNECT_TIMEOUT_SECONDS: &str = "LLM_CONNECT_TIMEOUT_SECONDS";
pub(super) const LLM_FIRST_TOKEN_TIMEOUT_SECONDS: &str = "LLM_FIRST_TOKEN_TIMEOUT_SECONDS";
pub(super) const LLM_IDLE_TIMEOUT_SECONDS: &str = "LLM_IDLE_TIMEOUT_SECONDS";
pub(super) const LLM_TOTAL_TIMEOUT_SECONDS: &str = "LLM_TOTAL_TIMEOUT_SECONDS";

/// Who answers.
#[derive(Debug, Clone)]
pub enum ModelConfig {
    /// Canned answers at no cost.
    Demo(DemoConfig),
    /// A provider's model.
    Provider(ProviderConfig),
}

/// Canned answers and their pace.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    /// Why it is demo mode.
    pub reason: DemoReason,
    /// Simulated thought after the THINKING frame.
    pub thinking_delay: Duration,
    /// Time between two chunks.
    pub chunk_delay: Duration,
    /// Answers that replace the built-in ones.
    pub responses_file: Option<PathBuf>,
}

/// Why it is demo mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemoReason {
    /// `DEMO_MODE` says so.
    Chosen,
    /// There is no key for any provider.
    NoKey,
}

/// A provider whose API speaks OpenAI's chat completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// OpenAI.
    OpenAi,
    /// Qwen by Alibaba Cloud's DashScope.
    Qwen,
    /// DeepSeek.
    DeepSeek,
    /// Any other, such as Ollama or vLLM; it may need no key.
    Compatible,
}

impl Provider {
    const CHOICES: [(&'static str, Self); 4] = [
        ("openai", Self::OpenAi),
        ("qwen", Self::Qwen),
        ("deepseek", Self::DeepSeek),
        ("compatible", Self::Compatible),
    ];

    /// The name as it is configured.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::CHOICES.iter().find(|(_, provider)| *provider == self).map_or("", |(name, _)| name)
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

/// A provider's model and how to reach it.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Whose API it is.
    pub provider: Provider,
    /// Base URL with its `/v1`, without a trailing slash.
    pub base_url: String,
    /// The key; `None` where the API needs none.
    pub api_key: Option<Secret>,
    /// The model where a request names none.
    pub model: String,
    /// Models that a request may name; empty = any.
    pub allowed_models: Vec<String>,
    /// How long to wait for what.
    pub limits: Limits,
}

/// How long a turn waits for its provider.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To connect.
    pub connect: Duration,
    /// From the request to the first event that carries something.
    pub first_token: Duration,
    /// Between two such events.
    pub idle: Duration,
    /// For the whole turn.
    pub total: Duration,
}

const BASE_URL_EXAMPLE: &str = "http://127.0.0.1:11434/v1";

/// Base URLs that are set.
struct Urls {
    own: Option<String>,
    deepseek: Option<String>,
}

impl ModelConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        // All variables are read in either mode, so that a mistake is found before the mode is changed.
        let demo = DemoConfig {
            reason: DemoReason::Chosen,
            thinking_delay: reader.milliseconds(DEMO_THINKING_DELAY_MS, 1000),
            chunk_delay: reader.milliseconds(DEMO_CHUNK_DELAY_MS, 30),
            responses_file: reader.file(DEMO_RESPONSES_FILE, "responses.json"),
        };
        let limits = Limits {
            connect: reader.seconds(LLM_CONNECT_TIMEOUT_SECONDS, 5.0, true),
            first_token: reader.seconds(LLM_FIRST_TOKEN_TIMEOUT_SECONDS, 30.0, true),
            idle: reader.seconds(LLM_IDLE_TIMEOUT_SECONDS, 20.0, true),
            total: reader.seconds(LLM_TOTAL_TIMEOUT_SECONDS, 300.0, true),
        };
        let demo_mode = reader.switch(DEMO_MODE);
        let chosen = reader.choice(LLM_PROVIDER, &Provider::CHOICES);
        let key = reader.text(LLM_API_KEY);
        let deepseek_key = reader.text(DEEPSEEK_API_KEY);
        let urls = Urls {
            own: reader.url(LLM_API_BASE_URL, &["http", "https"], BASE_URL_EXAMPLE),
            deepseek: reader.url(DEEPSEEK_BASE_URL, &["http", "https"], "https://api.deepseek.com/v1"),
        };
        if demo_mode == Some(true) {
            return Self::Demo(demo);
        }
        let provider = match (chosen, &key, &deepseek_key) {
            (Some(provider), ..) => provider,
            (None, Some(_), _) => Provider::OpenAi,
            (None, None, Some(_)) => Provider::DeepSeek,
            (None, None, None) => {
                if demo_mode == Some(false) {
                    reader.mistake(LLM_API_KEY, "is not set, but DEMO_MODE=false asks for a real model", "sk-...");
                }
                return Self::Demo(DemoConfig { reason: DemoReason::NoKey, ..demo });
            }
        };
        let api_key = if provider == Provider::DeepSeek { deepseek_key.or(key) } else { key };
        Self::Provider(ProviderConfig::read(reader, provider, api_key, urls, limits))
    }
}

impl ProviderConfig {
    fn read(reader: &mut Reader<'_>, provider: Provider, api_key: Option<String>, urls: Urls, limits: Limits) -> Self {
        let is_deepseek = provider == Provider::DeepSeek;
        let base_url = if is_deepseek { urls.deepseek.or(urls.own) } else { urls.own };
        if api_key.is_none() && provider != Provider::Compatible {
            let problem = format!("is not set, but LLM_PROVIDER={} needs a key", provider.name());
            reader.mistake(if is_deepseek { DEEPSEEK_API_KEY } else { LLM_API_KEY }, problem, "sk-...");
        }
        let base_url = base_url.or(provider.default_base_url().map(str::to_owned)).unwrap_or_else(|| {
            reader.mistake(
                LLM_API_BASE_URL,
                "is not set, but LLM_PROVIDER=compatible has no default",
                BASE_URL_EXAMPLE,
            );
            String::new()
        });
        let model = reader.text(LLM_MODEL_NAME).or(provider.default_model().map(str::to_owned)).unwrap_or_else(|| {
            reader.mistake(LLM_MODEL_NAME, "is not set, but LLM_PROVIDER=compatible has no default", "qwen3:8b");
            String::new()
        });
        let mut allowed_models = reader.list(LLM_ALLOWED_MODELS);
        if !allowed_models.is_empty() && !allowed_models.contains(&model) {
            allowed_models.push(model.clone());
        }
        Self { provider, base_url, api_key: api_key.map(Secret::new), model, allowed_models, limits }
    }
}
