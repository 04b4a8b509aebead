#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    RequestsPerMinute,
    ConcurrentStreams,
    TokensPerDay,
}

impl QuotaKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::ConcurrentStreams => "concurrent_streams",
            Self::TokensPerDay => "tokens_per_day",
        }
    }
}
