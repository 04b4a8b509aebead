//! Errors of providers, classified by the right reaction to them.

use std::time::Duration;

use crate::provider::{ErrorReport, ErrorResponse};

/// Holds no text of the user and no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?}: {detail}")]
pub struct ModelError {
    pub kind: ModelErrorKind,
    pub status: Option<u16>,
    pub provider_code: Option<String>,
    pub retry_after: Option<Duration>,
    /// A stable code for a transport failure, which clients see: `dns`, `tls`, …
    pub problem: Option<&'static str>,
    pub origin: Option<Box<ErrorOrigin>>,
    /// For the log.
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorOrigin {
    pub provider: String,
    pub model: String,
    pub variables_to_check: Vec<String>,
    pub address_hint: Option<AddressHint>,
}

/// A probable mistake in a provider's base URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressHint {
    VersionMissing,
    VersionTwice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelErrorKind {
    Unauthorized,
    /// The account has no balance or quota; waiting does not help.
    QuotaExhausted,
    RateLimited,
    ModelNotFound,
    AddressNotFound,
    ContextLength,
    ContentFilter,
    /// The provider rejected the request for another reason.
    Rejected,
    Unavailable,
    Timeout,
    Truncated,
    Malformed,
    EmptyAnswer,
    OnlyReasoning,
}

use ModelErrorKind as Kind;

impl ModelErrorKind {
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::RateLimited
            | Self::Unavailable
            | Self::Timeout
            | Self::Truncated
            | Self::Malformed
            | Self::EmptyAnswer
            | Self::OnlyReasoning => true,
            Self::Unauthorized
            | Self::QuotaExhausted
            | Self::ModelNotFound
            | Self::AddressNotFound
            | Self::ContextLength
            | Self::ContentFilter
            | Self::Rejected => false,
        }
    }

    /// By the provider's own code or type; see `docs/reference/errors.md`.
    fn from_code(code: &str) -> Option<Self> {
        Some(match code {
            "invalid_api_key"
            | "InvalidApiKey"
            | "authentication_error"
            | "invalid_authentication"
            | "permission_denied"
            | "permission_error"
            | "AccessDenied"
            | "access_denied" => Self::Unauthorized,
            "insufficient_quota"
            | "billing_hard_limit_reached"
            | "billing_not_active"
            | "Arrearage"
            | "arrearage"
            | "AllocationQuota.FreeTierOnly"
            | "insufficient_balance" => Self::QuotaExhausted,
            "rate_limit_exceeded"
            | "rate_limit_error"
            | "rate_limit_reached_error"
            | "too_many_requests"
            | "limit_requests"
            | "limit_burst_rate"
            | "Throttling"
            | "Throttling.RateQuota"
            | "Throttling.BurstRate"
            | "Throttling.AllocationQuota" => Self::RateLimited,
            "model_not_found" | "ModelNotFound" | "Model.NotExist" | "model_not_supported" => Self::ModelNotFound,
            "InvalidURL" | "unknown_url" => Self::AddressNotFound,
            "context_length_exceeded" | "string_above_max_length" => Self::ContextLength,
            "content_filter" | "content_policy_violation" | "data_inspection_failed" | "DataInspectionFailed" => {
                Self::ContentFilter
            }
            "server_error"
            | "internal_server_error"
            | "internal_error"
            | "InternalError"
            | "overloaded_error"
            | "engine_overloaded_error"
            | "service_unavailable" => Self::Unavailable,
            _ => return None,
        })
    }

    /// By the message in lower case, for errors without a known code.
    fn from_message(message: &str, status: Option<u16>) -> Option<Self> {
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        // Other statuses are unambiguous.
        if !status.is_none_or(|status| matches!(status, 400 | 403 | 404 | 413 | 422 | 429)) {
            return None;
        }
        if says(&["insufficient balance", "exceeded your current quota", "in good standing", "free tier of the model"])
        {
            return Some(Self::QuotaExhausted);
        }
        if says(&["context length", "context window", "range of input length", "prompt is too long", "too many tokens"])
        {
            return Some(Self::ContextLength);
        }
        if says(&["inappropriate content", "content management policy", "content_filter"]) {
            return Some(Self::ContentFilter);
        }
        if says(&["incorrect api key", "invalid api key", "api key not valid", "no api key"]) {
            return Some(Self::Unauthorized);
        }
        if says(&["invalid url", "unknown request url"]) {
            return Some(Self::AddressNotFound);
        }
        let is_about_model = message.contains("model")
            && says(&[
                "not found",
                "not exist",
                "no such model",
                "unknown model",
                "invalid model",
                "not a valid model",
            ]);
        is_about_model.then_some(Self::ModelNotFound)
    }

    fn from_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Unauthorized,
            402 => Self::QuotaExhausted,
            // Redirects are not followed: they could leak the key.
            300..=399 | 404 | 405 => Self::AddressNotFound,
            408 | 504 => Self::Timeout,
            413 => Self::ContextLength,
            429 => Self::RateLimited,
            500..=599 => Self::Unavailable,
            _ => Self::Rejected,
        }
    }
}

impl ModelError {
    pub fn new(kind: ModelErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            status: None,
            provider_code: None,
            retry_after: None,
            problem: None,
            origin: None,
            detail: detail.into(),
        }
    }

    /// The provider's code takes precedence over the HTTP status, because 429 means an empty account too.
    pub(super) fn from_report(status: Option<u16>, report: &ErrorReport) -> Self {
        let status = status.or(report.status);
        let kind = [&report.code, &report.kind]
            .into_iter()
            .find_map(|code| Kind::from_code(code.as_deref()?))
            .or_else(|| Kind::from_message(&report.message, status))
            .or_else(|| status.map(Kind::from_status))
            .unwrap_or(Kind::Unavailable);
        let provider_code = report.code.clone().or_else(|| report.kind.clone());
        Self { status, provider_code, ..Self::new(kind, "the provider reported an error") }
    }

    /// Whether other requests will fail too, so that the circuit breaker counts it. A status of 4xx concerns one request.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        let is_outage = matches!(self.kind, Kind::Unavailable | Kind::Timeout | Kind::Truncated | Kind::Malformed);
        is_outage && !self.status.is_some_and(|status| (400..500).contains(&status))
    }
}

impl From<ErrorResponse> for ModelError {
    fn from(response: ErrorResponse) -> Self {
        Self { retry_after: response.retry_after, ..Self::from_report(Some(response.status), &response.report) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> ModelErrorKind {
        ModelError::from_report(Some(status), &ErrorReport::from_body(body.as_bytes())).kind
    }

    /// Bodies from the documentation of the providers, or from the sources of their servers.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a table with a case per provider error")]
    fn provider_errors_are_classified() {
        for (status, body, expected) in [
            // OpenAI
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided: sk-x. You can find your API key at https://platform.openai.com/account/api-keys.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
                Kind::Unauthorized,
            ),
            (
                404,
                r#"{"error":{"message":"Invalid URL (POST /v1/v1/chat/completions)","type":"invalid_request_error","param":null,"code":null}}"#,
                Kind::AddressNotFound,
            ),
            (
                404,
                r#"{"error":{"message":"The model `x` does not exist or you do not have access to it.","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
                Kind::ModelNotFound,
            ),
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
                Kind::QuotaExhausted,
            ),
            (
                429,
                r#"{"error":{"message":"Rate limit reached for gpt-4o-mini","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#,
                Kind::RateLimited,
            ),
            // DeepSeek
            (
                401,
                r#"{"error":{"message":"Authentication Fails, Your api key: ****x is invalid","type":"authentication_error","param":null,"code":"invalid_request_error"}}"#,
                Kind::Unauthorized,
            ),
            (
                402,
                r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":"invalid_request_error"}}"#,
                Kind::QuotaExhausted,
            ),
            (
                400,
                r#"{"error":{"message":"Model Not Exist","type":"invalid_request_error","param":null,"code":"invalid_request_error"}}"#,
                Kind::ModelNotFound,
            ),
            (
                400,
                r#"{"error":{"message":"This model's maximum context length is 65536 tokens. However, you requested 70000 tokens","type":"invalid_request_error","param":null,"code":"invalid_request_error"}}"#,
                Kind::ContextLength,
            ),
            // DashScope
            (
                400,
                r#"{"error":{"message":"Access denied, please make sure your account is in good standing.","type":"Arrearage","param":null,"code":"Arrearage"}}"#,
                Kind::QuotaExhausted,
            ),
            (
                403,
                r#"{"error":{"message":"The free tier of the model has been exhausted.","type":"AllocationQuota.FreeTierOnly","param":null,"code":"AllocationQuota.FreeTierOnly"}}"#,
                Kind::QuotaExhausted,
            ),
            (
                400,
                r#"{"error":{"message":"Range of input length should be [1, 129024]","type":"invalid_request_error","param":null,"code":"invalid_parameter_error"}}"#,
                Kind::ContextLength,
            ),
            (
                400,
                r#"{"error":{"message":"Input data may contain inappropriate content.","type":"data_inspection_failed","param":null,"code":"data_inspection_failed"}}"#,
                Kind::ContentFilter,
            ),
            (404, "", Kind::AddressNotFound),
            // Ollama and vLLM
            (
                404,
                r#"{"error":{"message":"model \"x\" not found, try pulling it first","type":"api_error","param":null,"code":null}}"#,
                Kind::ModelNotFound,
            ),
            (404, "404 page not found", Kind::AddressNotFound),
            (404, r#"{"detail":"Not Found"}"#, Kind::AddressNotFound),
            (
                404,
                r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}"#,
                Kind::ModelNotFound,
            ),
            (405, r#"{"detail":"Method Not Allowed"}"#, Kind::AddressNotFound),
            (308, "", Kind::AddressNotFound),
            (529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#, Kind::Unavailable),
            (500, "<html>model not found</html>", Kind::Unavailable),
        ] {
            assert_eq!(kind(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn status_4xx_is_no_outage() {
        let error = |kind, status| ModelError { status, ..ModelError::new(kind, "") };
        assert!(error(Kind::Timeout, None).is_outage() && error(Kind::Unavailable, Some(503)).is_outage());
        assert!(!error(Kind::Timeout, Some(408)).is_outage() && !error(Kind::RateLimited, Some(429)).is_outage());
        assert!(!error(Kind::ContextLength, None).is_outage());
    }
}
