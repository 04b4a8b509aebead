//! What goes wrong between us and a provider, and what is right to do then.

use std::time::Duration;

use crate::provider::{ErrorReport, ErrorResponse};

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
    /// What failed on the way to the provider, in a word that stays the same: `dns`, `tls`, …
    pub problem: Option<&'static str>,
    /// Whose failure it is.
    pub origin: Option<Box<ErrorOrigin>>,
    /// For the log: what happened, in our words.
    pub detail: String,
}

/// Whose failure it is, for whoever runs the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorOrigin {
    /// The provider, as it is configured.
    pub provider: String,
    /// The model.
    pub model: String,
    /// The variables to look at.
    pub variables_to_check: Vec<String>,
    /// What is wrong with the address, if that can be told from itself.
    pub address_hint: Option<&'static str>,
}

/// Classes of failure, each with one right reaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelErrorKind {
    /// The key is wrong or may not do this.
    Unauthorized,
    /// The account has no money or quota left; waiting does not help.
    QuotaExhausted,
    /// Too many requests; waiting helps.
    RateLimited,
    /// There is no such model.
    ModelNotFound,
    /// There is no such API at the address.
    AddressNotFound,
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
    Truncated,
    /// The provider sent what the protocol does not allow.
    Malformed,
    /// The provider ended without any text.
    EmptyAnswer,
    /// The model thought and then said nothing.
    OnlyReasoning,
}

use ModelErrorKind as Kind;

impl ModelErrorKind {
    /// Whether the same request may succeed later.
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

    /// The class of a provider's own error code or type, where it is a known one; see `docs/providers.md`.
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

    /// The class of an error whose code says nothing, by its sentence in lower case.
    fn from_sentence(sentence: &str, status: Option<u16>) -> Option<Self> {
        let says = |words: &[&str]| words.iter().any(|word| sentence.contains(word));
        // What other statuses mean is told by themselves.
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
        let of_model = sentence.contains("model")
            && says(&[
                "not found",
                "not exist",
                "no such model",
                "unknown model",
                "invalid model",
                "not a valid model",
            ]);
        of_model.then_some(Self::ModelNotFound)
    }

    /// The class of an HTTP status.
    fn from_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Unauthorized,
            402 => Self::QuotaExhausted,
            // A redirection is never followed: it could carry the key away.
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
    /// A failure of a class.
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

    /// A failure that the provider reported: its code counts more than the HTTP status, because 429 stands for an
    /// empty account too.
    pub(super) fn from_report(status: Option<u16>, report: &ErrorReport) -> Self {
        let status = status.or(report.status);
        let kind = [&report.code, &report.kind]
            .into_iter()
            .find_map(|code| Kind::from_code(code.as_deref()?))
            .or_else(|| Kind::from_sentence(&report.message, status))
            .or_else(|| status.map(Kind::from_status))
            .unwrap_or(Kind::Unavailable);
        let provider_code = report.code.clone().or_else(|| report.kind.clone());
        Self { status, provider_code, ..Self::new(kind, "the provider reported an error") }
    }

    /// Whether the provider was in trouble, so that others will fail, too. What it answers with a status of 4xx is about
    /// the request.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        let is_trouble = matches!(self.kind, Kind::Unavailable | Kind::Timeout | Kind::Truncated | Kind::Malformed);
        is_trouble && !self.status.is_some_and(|status| (400..500).contains(&status))
    }
}

impl From<ErrorResponse> for ModelError {
    fn from(refusal: ErrorResponse) -> Self {
        Self { retry_after: refusal.retry_after, ..Self::from_report(Some(refusal.status), &refusal.report) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> ModelErrorKind {
        ModelError::from_report(Some(status), &ErrorReport::from_body(body.as_bytes())).kind
    }

    /// As documented by the providers, or as their servers' sources write them.
    #[test]
    fn a_wrong_key_a_wrong_address_an_unknown_model_and_an_empty_account_are_told_apart() {
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
    fn statuses_of_4xx_are_no_outage() {
        let error = |kind, status| ModelError { status, ..ModelError::new(kind, "") };
        assert!(error(Kind::Timeout, None).is_outage() && error(Kind::Unavailable, Some(503)).is_outage());
        assert!(!error(Kind::Timeout, Some(408)).is_outage() && !error(Kind::RateLimited, Some(429)).is_outage());
        assert!(!error(Kind::ContextLength, None).is_outage());
    }
}
