//! The chat model: a provider's, or canned answers in demo mode.

use std::{path::PathBuf, time::Duration};

use super::{
    EndpointConfig, EnvReader, Provider, RetryConfig,
    endpoint::{EndpointVariables, LLM_API_KEY},
    fallbacks,
};

pub(super) const DEMO_MODE: &str = "DEMO_MODE";
pub(super) const DEMO_THINKING_DELAY_MS: &str = "DEMO_THINKING_DELAY_MS";
pub(super) const DEMO_CHUNK_DELAY_MS: &str = "DEMO_CHUNK_DELAY_MS";
pub(super) const DEMO_RESPONSES_FILE: &str = "DEMO_RESPONSES_FILE";
pub(super) const LLM_PROVIDER: &str = "LLM_PROVIDER";
pub(super) const LLM_ALLOWED_MODELS: &str = "LLM_ALLOWED_MODELS";
pub(super) const LLM_CONNECT_TIMEOUT_SECONDS: &str = "LLM_CONNECT_TIMEOUT_SECONDS";
pub(super) const LLM_FIRST_TOKEN_TIMEOUT_SECONDS: &str = "LLM_FIRST_TOKEN_TIMEOUT_SECONDS";
pub(super) const LLM_IDLE_TIMEOUT_SECONDS: &str = "LLM_IDLE_TIMEOUT_SECONDS";
pub(super) const LLM_TOTAL_TIMEOUT_SECONDS: &str = "LLM_TOTAL_TIMEOUT_SECONDS";
pub(super) const LLM_MAX_TOKENS: &str = "LLM_MAX_TOKENS";
pub(super) const PRICES_FILE: &str = "PRICES_FILE";
pub(super) const TOOLS_FILE: &str = "TOOLS_FILE";

#[derive(Debug, Clone)]
pub enum ModelConfig {
    Demo(DemoConfig),
    Provider(Box<ProviderConfig>),
}

#[derive(Debug, Clone)]
pub struct DemoConfig {
    pub reason: DemoReason,
    pub thinking_delay: Duration,
    pub chunk_delay: Duration,
    pub responses_file: Option<PathBuf>,
    /// Canned answers end by themselves, but not all clients read them.
    pub stall_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemoReason {
    Chosen,
    /// No provider has a key.
    NoKey,
}

#[derive(Debug, Clone)]
pub struct ProviderConfig {
    pub primary: EndpointConfig,
    pub fallbacks: Vec<EndpointConfig>,
    /// Models that a request may name; empty = any.
    pub allowed_models: Vec<String>,
    pub timeouts: ModelTimeouts,
    pub retry: RetryConfig,
    /// Upper bound of tokens per answer, whatever a request asks for; `None` = the provider's own limit.
    pub max_tokens: Option<u32>,
    /// Overrides the built-in prices.
    pub prices_file: Option<PathBuf>,
    /// Tools that clients run.
    pub tools_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
pub struct ModelTimeouts {
    pub connect: Duration,
    /// From the request to the first event with content.
    pub first_token: Duration,
    /// Between two such events.
    pub idle: Duration,
    /// For the turn, with all retries and fallbacks.
    pub total: Duration,
}

impl ModelTimeouts {
    fn read(reader: &mut EnvReader<'_>) -> Self {
        Self {
            connect: reader.seconds(LLM_CONNECT_TIMEOUT_SECONDS, 5.0, true),
            first_token: reader.seconds(LLM_FIRST_TOKEN_TIMEOUT_SECONDS, 30.0, true),
            idle: reader.seconds(LLM_IDLE_TIMEOUT_SECONDS, 20.0, true),
            total: reader.seconds(LLM_TOTAL_TIMEOUT_SECONDS, 300.0, true),
        }
    }
}

impl DemoConfig {
    fn read(reader: &mut EnvReader<'_>, reason: DemoReason, stall_timeout: Duration) -> Self {
        Self {
            reason,
            thinking_delay: reader.milliseconds(DEMO_THINKING_DELAY_MS, 1000),
            chunk_delay: reader.milliseconds(DEMO_CHUNK_DELAY_MS, 30),
            responses_file: reader.file(DEMO_RESPONSES_FILE, "responses.json"),
            stall_timeout,
        }
    }
}

impl ModelConfig {
    #[must_use]
    pub fn total_timeout(&self) -> Duration {
        match self {
            // Canned answers end by themselves.
            Self::Demo(_) => Duration::from_hours(1),
            Self::Provider(provider) => provider.timeouts.total,
        }
    }

    /// After which a stream that its client does not read ends.
    pub(super) fn stall_timeout(&self) -> Duration {
        match self {
            Self::Demo(demo) => demo.stall_timeout,
            Self::Provider(provider) => provider.timeouts.total,
        }
    }

    /// Reads the variables of both modes, so that an invalid value is found before the mode changes.
    pub(super) fn read(reader: &mut EnvReader<'_>, retry: RetryConfig) -> Self {
        let demo_mode = reader.switch(DEMO_MODE);
        let reason = if demo_mode == Some(true) { DemoReason::Chosen } else { DemoReason::NoKey };
        let timeouts = ModelTimeouts::read(reader);
        let demo = DemoConfig::read(reader, reason, timeouts.total);
        let max_tokens = reader.number(LLM_MAX_TOKENS, 1, 10_000_000, "4096");
        let prices_file = reader.file(PRICES_FILE, "prices.json");
        let tools_file = reader.file(TOOLS_FILE, "tools.json");
        let chosen = reader.choice(LLM_PROVIDER, &Provider::CHOICES);
        let variables = EndpointVariables::read(reader);
        let provider = match (chosen, &variables.key, &variables.deepseek_key) {
            _ if demo_mode == Some(true) => None,
            (Some(provider), ..) => Some(provider),
            (None, Some(_), _) => Some(Provider::OpenAi),
            (None, None, Some(_)) => Some(Provider::DeepSeek),
            (None, None, None) => None,
        };
        let Some(provider) = provider else {
            if demo_mode == Some(false) {
                reader.report(LLM_API_KEY, "is not set, but DEMO_MODE=false requires a real model", "sk-...");
            }
            fallbacks::read(reader, None);
            return Self::Demo(demo);
        };
        let primary = variables.into_endpoint(reader, provider);
        let mut allowed_models = reader.list(LLM_ALLOWED_MODELS);
        if !allowed_models.is_empty() && !allowed_models.contains(&primary.model) {
            allowed_models.push(primary.model.clone());
        }
        Self::Provider(Box::new(ProviderConfig {
            fallbacks: fallbacks::read(reader, Some(&primary)),
            primary,
            allowed_models,
            timeouts,
            retry,
            max_tokens,
            prices_file,
            tools_file,
        }))
    }
}
