//! What a user may use.

/// Limits of one user. They hold across all processes that share a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserQuotas {
    /// Requests in one minute of the clock.
    pub requests_per_minute: u32,
    /// Runs at the same time.
    pub concurrent_streams: u32,
    /// Tokens in one day of UTC. The request that crosses it is answered, and the next one refused.
    pub tokens_per_day: u64,
}

/// One of [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    /// Requests in one minute.
    RequestsPerMinute,
    /// Runs at the same time.
    ConcurrentStreams,
    /// Tokens in one day.
    TokensPerDay,
}

impl QuotaKind {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::ConcurrentStreams => "concurrent_streams",
            Self::TokensPerDay => "tokens_per_day",
        }
    }
}
