//! What goes wrong between us and a provider.

use std::time::Duration;

/// A failed answer. It holds no text of the user and no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?}: {detail}")]
pub struct ModelError {
    /// What class of failure it is.
    pub kind: ModelErrorKind,
    /// HTTP status of the provider's answer, where there was one.
    pub status: Option<u16>,
    /// The provider's own code or type, where it gave one.
    pub provider_code: Option<String>,
    /// How long the provider asks to wait.
    pub retry_after: Option<Duration>,
    /// For the log: what happened, in our words.
    pub detail: String,
}

/// Classes of failure, each with one right reaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelErrorKind {
    /// The key is wrong or may not do this.
    Unauthorized,
    /// The account has no money or quota left; waiting does not help.
    QuotaExhausted,
    /// Too many requests; waiting helps.
    RateLimited,
    /// The model or the address does not exist.
    NotFound,
    /// The conversation is longer than the model can read.
    ContextLength,
    /// The provider's filter refused the question.
    ContentFilter,
    /// The provider refused the request for another reason.
    Rejected,
    /// The provider can not be reached or is in trouble.
    Unavailable,
    /// The provider took too long.
    Timeout,
    /// The stream broke off before the answer was complete.
    Cut,
    /// The provider sent what the protocol does not allow.
    Malformed,
    /// The provider ended without any text.
    Empty,
}

impl ModelErrorKind {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::RateLimited | Self::Unavailable | Self::Timeout | Self::Cut | Self::Malformed | Self::Empty => true,
            Self::Unauthorized
            | Self::QuotaExhausted
            | Self::NotFound
            | Self::ContextLength
            | Self::ContentFilter
            | Self::Rejected => false,
        }
    }

    /// The class of a provider's own error code or type, where it is a known one.
    fn from_code(code: &str) -> Option<Self> {
        Some(match code {
            "invalid_api_key" | "authentication_error" | "invalid_authentication" | "permission_denied" => {
                Self::Unauthorized
            }
            "insufficient_quota" | "billing_hard_limit_reached" | "Arrearage" | "insufficient_balance" => {
                Self::QuotaExhausted
            }
            "rate_limit_exceeded" | "rate_limit_error" | "too_many_requests" | "limit_requests" => Self::RateLimited,
            "model_not_found" => Self::NotFound,
            "context_length_exceeded" => Self::ContextLength,
            "content_filter" | "content_policy_violation" | "data_inspection_failed" => Self::ContentFilter,
            "server_error"
            | "internal_server_error"
            | "internal_error"
            | "overloaded_error"
            | "service_unavailable" => Self::Unavailable,
            _ => return None,
        })
    }

    /// The class of an HTTP status.
    fn from_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Unauthorized,
            402 => Self::QuotaExhausted,
            404 => Self::NotFound,
            408 | 504 => Self::Timeout,
            429 => Self::RateLimited,
            500..=599 => Self::Unavailable,
            _ => Self::Rejected,
        }
    }
}

impl ModelError {
    /// A failure of a class.
    pub fn new(kind: ModelErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, status: None, provider_code: None, retry_after: None, detail: detail.into() }
    }

    /// A failure that the provider reported: its code counts more than the HTTP status, because 429 stands for an
    /// empty account too.
    #[must_use]
    pub fn reported(status: Option<u16>, code: Option<&str>, kind: Option<&str>) -> Self {
        let class = [code, kind]
            .into_iter()
            .flatten()
            .find_map(ModelErrorKind::from_code)
            .or_else(|| status.map(ModelErrorKind::from_status))
            .unwrap_or(ModelErrorKind::Unavailable);
        let provider_code = code.or(kind).map(|code| code.chars().filter(|c| !c.is_control()).take(64).collect());
        Self { status, provider_code, ..Self::new(class, "the provider reported an error") }
    }
}
