use std::time::Duration;

use super::EnvReader;

pub(super) const LLM_MAX_ATTEMPTS: &str = "LLM_MAX_ATTEMPTS";
pub(super) const LLM_BREAKER_FAILURES: &str = "LLM_BREAKER_FAILURES";
pub(super) const LLM_BREAKER_COOLDOWN_SECONDS: &str = "LLM_BREAKER_COOLDOWN_SECONDS";

#[derive(Debug, Clone, Copy)]
pub struct RetryConfig {
    /// Requests per model for one answer, at least 1.
    pub max_attempts: u32,
    pub breaker: BreakerSettings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Consecutive failures that open the circuit breaker; 0 = it never opens.
    pub failures: u32,
    /// Time in the open state before one probe call is let through.
    pub cooldown: Duration,
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
