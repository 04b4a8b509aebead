//! What a user may use.

/// One of [`UserQuotas`](crate::config::UserQuotas).
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
