//! Who answers: a provider's model, or canned answers in demo mode.

use std::{path::PathBuf, time::Duration};

use super::{EnvReader, Secret};
use crate::provider::BreakerSettings;

mod fallbacks;

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
pub(super) const LLM_MAX_ATTEMPTS: &str = "LLM_MAX_ATTEMPTS";
pub(super) const LLM_MAX_TOKENS: &str = "LLM_MAX_TOKENS";
pub(super) const LLM_FALLBACKS: &str = "LLM_FALLBACKS";
pub(super) const LLM_BREAKER_FAILURES: &str = "LLM_BREAKER_FAILURES";
pub(super) const LLM_BREAKER_COOLDOWN_SECONDS: &str = "LLM_BREAKER_COOLDOWN_SECONDS";
pub(super) const PRICES_FILE: &str = "PRICES_FILE";
pub(super) const TOOLS_FILE: &str = "TOOLS_FILE";

/// Who answers.
#[derive(Debug, Clone)]
pub enum ModelConfig {
    /// Canned answers at no cost.
    Demo(DemoConfig),
    /// A provider's model.
    Provider(Box<ProviderConfig>),
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

    /// Whose API is at an address.
    fn from_url(url: &str) -> Self {
        let is = |host: &str| url.contains(host);
        match () {
            () if is("://api.openai.com") => Self::OpenAi,
            () if is("dashscope") => Self::Qwen,
            () if is("://api.deepseek.com") => Self::DeepSeek,
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

/// A model and how to reach it.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Whose API it is.
    pub provider: Provider,
    /// Base URL with its `/v1`, without a trailing slash.
    pub base_url: String,
    /// The key; `None` where the API needs none.
    pub api_key: Option<Secret>,
    /// The model's name.
    pub model: String,
    /// The variable that holds the key, for whoever looks for a mistake.
    pub key_variable: String,
    /// The variable that holds the address.
    pub url_variable: &'static str,
}

impl EndpointConfig {
    /// Whether the API is really OpenAI's, which knows less than others and is stricter.
    #[must_use]
    pub fn is_openai_api(&self) -> bool {
        Provider::from_url(&self.base_url) == Provider::OpenAi
    }

    /// Whether the API is DeepSeek's, whatever it was configured as.
    #[must_use]
    pub fn is_deepseek(&self) -> bool {
        self.provider == Provider::DeepSeek || Provider::from_url(&self.base_url) == Provider::DeepSeek
    }
}

/// Models that answer, and with how much patience.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Who is asked first.
    pub primary: EndpointConfig,
    /// Who is asked next where that fails, in this order.
    pub fallbacks: Vec<EndpointConfig>,
    /// Models that a request may name; empty = any.
    pub allowed_models: Vec<String>,
    /// How long to wait for what.
    pub timeouts: ModelTimeouts,
    /// How often a model is asked for one answer, and when no more.
    pub retry: RetryConfig,
    /// Most tokens of an answer, whatever a request says; `None` = the provider's own limit.
    pub max_tokens: Option<u32>,
    /// What tokens cost, if other than known.
    pub prices_file: Option<PathBuf>,
    /// Tools that clients run.
    pub tools_file: Option<PathBuf>,
}

/// How often providers are asked, for answers and for vectors alike.
#[derive(Debug, Clone, Copy)]
pub struct RetryConfig {
    /// Most requests for one answer to each model, at least 1.
    pub max_attempts: u32,
    /// When a model that is dead is no longer asked.
    pub breaker: BreakerSettings,
}

impl RetryConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>) -> Self {
        Self {
            max_attempts: reader.number(LLM_MAX_ATTEMPTS, 1, 10, "3").unwrap_or(3),
            breaker: BreakerSettings {
                failures: reader.number(LLM_BREAKER_FAILURES, 0, 1_000, "5").unwrap_or(5),
                cooldown: reader.seconds(LLM_BREAKER_COOLDOWN_SECONDS, 10.0, true),
            },
        }
    }
}

/// How long a turn waits for its provider.
#[derive(Debug, Clone, Copy)]
pub struct ModelTimeouts {
    /// To connect.
    pub connect: Duration,
    /// From the request to the first event that carries something.
    pub first_token: Duration,
    /// Between two such events.
    pub idle: Duration,
    /// For the whole turn, with all retries and fallbacks.
    pub total: Duration,
}

const BASE_URL_EXAMPLE: &str = "http://127.0.0.1:11434/v1";

/// Base URLs that are set.
struct Urls {
    own: Option<String>,
    deepseek: Option<String>,
}

impl ModelConfig {
    /// Longest that a turn may take.
    #[must_use]
    pub fn total_timeout(&self) -> Duration {
        match self {
            // Canned answers end by themselves.
            Self::Demo(_) => Duration::from_hours(1),
            Self::Provider(provider) => provider.timeouts.total,
        }
    }

    pub(super) fn read(reader: &mut EnvReader<'_>, patience: RetryConfig) -> Self {
        // All variables are read in either mode, so that a mistake is found before the mode is changed.
        let demo = DemoConfig {
            reason: DemoReason::Chosen,
            thinking_delay: reader.milliseconds(DEMO_THINKING_DELAY_MS, 1000),
            chunk_delay: reader.milliseconds(DEMO_CHUNK_DELAY_MS, 30),
            responses_file: reader.file(DEMO_RESPONSES_FILE, "responses.json"),
        };
        let limits = ModelTimeouts {
            connect: reader.seconds(LLM_CONNECT_TIMEOUT_SECONDS, 5.0, true),
            first_token: reader.seconds(LLM_FIRST_TOKEN_TIMEOUT_SECONDS, 30.0, true),
            idle: reader.seconds(LLM_IDLE_TIMEOUT_SECONDS, 20.0, true),
            total: reader.seconds(LLM_TOTAL_TIMEOUT_SECONDS, 300.0, true),
        };
        let max_tokens = reader.number(LLM_MAX_TOKENS, 1, 10_000_000, "4096");
        let prices_file = reader.file(PRICES_FILE, "prices.json");
        let tools_file = reader.file(TOOLS_FILE, "tools.json");
        let demo_mode = reader.switch(DEMO_MODE);
        let chosen = reader.choice(LLM_PROVIDER, &Provider::CHOICES);
        let key = reader.text(LLM_API_KEY);
        let deepseek_key = reader.text(DEEPSEEK_API_KEY);
        let urls = Urls {
            own: reader.base_url(LLM_API_BASE_URL, BASE_URL_EXAMPLE),
            deepseek: reader.base_url(DEEPSEEK_BASE_URL, "https://api.deepseek.com/v1"),
        };
        let provider = match (chosen, &key, &deepseek_key) {
            _ if demo_mode == Some(true) => None,
            (Some(provider), ..) => Some(provider),
            (None, Some(_), _) => Some(Provider::OpenAi),
            (None, None, Some(_)) => Some(Provider::DeepSeek),
            (None, None, None) => None,
        };
        let Some(provider) = provider else {
            if demo_mode == Some(false) {
                reader.report(LLM_API_KEY, "is not set, but DEMO_MODE=false asks for a real model", "sk-...");
            }
            // Mistakes in it are told in demo mode, too.
            fallbacks::read(reader, None);
            let reason = if demo_mode == Some(true) { DemoReason::Chosen } else { DemoReason::NoKey };
            return Self::Demo(DemoConfig { reason, ..demo });
        };
        let primary = EndpointConfig::read(reader, provider, key, deepseek_key, urls);
        let mut allowed_models = reader.list(LLM_ALLOWED_MODELS);
        if !allowed_models.is_empty() && !allowed_models.contains(&primary.model) {
            allowed_models.push(primary.model.clone());
        }
        Self::Provider(Box::new(ProviderConfig {
            fallbacks: fallbacks::read(reader, Some(&primary)),
            primary,
            allowed_models,
            timeouts: limits,
            retry: patience,
            max_tokens,
            prices_file,
            tools_file,
        }))
    }
}

impl EndpointConfig {
    fn read(
        reader: &mut EnvReader<'_>,
        provider: Provider,
        key: Option<String>,
        deepseek_key: Option<String>,
        urls: Urls,
    ) -> Self {
        let (key_variable, api_key) = match (provider, deepseek_key) {
            (Provider::DeepSeek, Some(key)) => (DEEPSEEK_API_KEY, Some(key)),
            (Provider::DeepSeek, None) if key.is_none() => (DEEPSEEK_API_KEY, None),
            _ => (LLM_API_KEY, key),
        };
        let (address_variable, base_url) = match (provider, urls.deepseek) {
            (Provider::DeepSeek, Some(url)) => (DEEPSEEK_BASE_URL, Some(url)),
            _ => (LLM_API_BASE_URL, urls.own),
        };
        if api_key.is_none() && provider != Provider::Compatible {
            let problem = format!("is not set, but LLM_PROVIDER={} needs a key", provider.name());
            reader.report(key_variable, problem, "sk-...");
        }
        let base_url = base_url.or(provider.default_base_url().map(str::to_owned)).unwrap_or_else(|| {
            reader.report(LLM_API_BASE_URL, "is not set, but LLM_PROVIDER=compatible has no default", BASE_URL_EXAMPLE);
            String::new()
        });
        let model = reader.text(LLM_MODEL_NAME).or(provider.default_model().map(str::to_owned)).unwrap_or_else(|| {
            reader.report(LLM_MODEL_NAME, "is not set, but LLM_PROVIDER=compatible has no default", "qwen3:8b");
            String::new()
        });
        let api_key = api_key.map(Secret::new);
        Self {
            provider,
            base_url,
            api_key,
            model,
            key_variable: key_variable.to_owned(),
            url_variable: address_variable,
        }
    }
}
