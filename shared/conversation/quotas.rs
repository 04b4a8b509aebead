#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    RequestsPerMinute,
    ConcurrentStreams,
    TokensPerDay,
    CallsPerMinute,
    ConcurrentCalls,
    ExportsPerMinute,
    ConcurrentExports,
    EmbeddedBytesPerDay,
}

impl QuotaKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::ConcurrentStreams => "concurrent_streams",
            Self::TokensPerDay => "tokens_per_day",
            Self::CallsPerMinute => "calls_per_minute",
            Self::ConcurrentCalls => "concurrent_calls",
            Self::ExportsPerMinute => "exports_per_minute",
            Self::ConcurrentExports => "concurrent_exports",
            Self::EmbeddedBytesPerDay => "embedded_bytes_per_day",
        }
    }
}
