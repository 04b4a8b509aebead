//! Failed turns as error frames: stable code, class, and details for the operator.

use std::collections::BTreeMap;

use super::wording;
use crate::{
    chat::TurnFailure,
    language::Language,
    llm::{ModelError, ModelErrorKind},
    proto::agent_v1::{self as pb, ErrorCode},
};

pub(super) fn error(language: Language, failure: &TurnFailure) -> pb::Error {
    let (code, class) = code(failure);
    let details = match failure {
        TurnFailure::Model(error) => details(language, error),
        _ => BTreeMap::new(),
    };
    let retryable = failure.is_retryable();
    let message = wording::failure(language, failure).to_owned();
    pb::Error { code: code.to_owned(), message, retryable, details, error_code: class.into() }
}

fn code(failure: &TurnFailure) -> (&'static str, ErrorCode) {
    match failure {
        TurnFailure::ShuttingDown => ("SERVER_SHUTTING_DOWN", ErrorCode::Unavailable),
        TurnFailure::DeadlineExceeded => ("DEADLINE_EXCEEDED", ErrorCode::Timeout),
        TurnFailure::InvalidToolCall => ("TOOL_CALL_INVALID", ErrorCode::Unavailable),
        TurnFailure::ToolRoundsExceeded => ("TOOL_ROUNDS_EXCEEDED", ErrorCode::Internal),
        TurnFailure::NotPersisted => ("TURN_NOT_KEPT", ErrorCode::Unavailable),
        TurnFailure::Cancelled => ("CANCELLED", ErrorCode::Unknown),
        TurnFailure::Abandoned => ("ABANDONED", ErrorCode::Unavailable),
        TurnFailure::Preempted => ("PREEMPTED", ErrorCode::Conflict),
        TurnFailure::TokenExpired => ("TOKEN_EXPIRED", ErrorCode::Unauthorized),
        TurnFailure::ReplayUnavailable => ("REPLAY_UNAVAILABLE", ErrorCode::Unavailable),
        TurnFailure::ReaderReplaced => ("READER_REPLACED", ErrorCode::Conflict),
        TurnFailure::Internal => ("INTERNAL", ErrorCode::Internal),
        TurnFailure::Model(error) => match error.kind {
            ModelErrorKind::Unauthorized => ("PROVIDER_UNAUTHORIZED", ErrorCode::Unauthorized),
            ModelErrorKind::QuotaExhausted => ("PROVIDER_QUOTA_EXHAUSTED", ErrorCode::RateLimited),
            ModelErrorKind::RateLimited => ("PROVIDER_RATE_LIMITED", ErrorCode::RateLimited),
            ModelErrorKind::ModelNotFound => ("PROVIDER_MODEL_NOT_FOUND", ErrorCode::NotFound),
            ModelErrorKind::AddressNotFound => ("PROVIDER_ADDRESS_NOT_FOUND", ErrorCode::NotFound),
            ModelErrorKind::ContextLength => ("PROVIDER_CONTEXT_LENGTH", ErrorCode::InvalidArgument),
            ModelErrorKind::ContentFilter => ("PROVIDER_CONTENT_FILTER", ErrorCode::InvalidArgument),
            ModelErrorKind::Rejected => ("PROVIDER_REJECTED", ErrorCode::InvalidArgument),
            ModelErrorKind::Unavailable => ("PROVIDER_UNAVAILABLE", ErrorCode::Unavailable),
            ModelErrorKind::Timeout => ("PROVIDER_TIMEOUT", ErrorCode::Timeout),
            ModelErrorKind::Truncated => ("PROVIDER_STREAM_CUT", ErrorCode::Unavailable),
            ModelErrorKind::Malformed => ("PROVIDER_MALFORMED", ErrorCode::Unavailable),
            ModelErrorKind::EmptyAnswer => ("PROVIDER_EMPTY_ANSWER", ErrorCode::Unavailable),
            ModelErrorKind::OnlyReasoning => ("PROVIDER_ONLY_REASONING", ErrorCode::Unavailable),
        },
    }
}

pub(super) fn outcome(code: &str) -> &'static str {
    match code {
        "SERVER_SHUTTING_DOWN" => "shut_down",
        "DEADLINE_EXCEEDED" => "deadline_exceeded",
        "TOOL_CALL_INVALID" | "TOOL_ROUNDS_EXCEEDED" => "tools_failed",
        "TURN_NOT_KEPT" => "not_kept",
        "CANCELLED" => "cancelled",
        "ABANDONED" => "abandoned",
        "PREEMPTED" => "preempted",
        "TOKEN_EXPIRED" => "token_expired",
        "REPLAY_UNAVAILABLE" => "unavailable",
        "READER_REPLACED" => "replaced",
        code if code.starts_with("PROVIDER_") => "provider_failed",
        _ => "internal",
    }
}

/// Diagnostics for the operator, without secrets.
fn details(language: Language, error: &ModelError) -> BTreeMap<String, String> {
    let mut details = BTreeMap::new();
    let mut insert = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            details.insert(name.to_owned(), value);
        }
    };
    insert("provider_status", error.status.map(|status| status.to_string()));
    insert("provider_code", error.provider_code.clone());
    insert("problem", error.problem.map(str::to_owned));
    insert("retry_after_ms", error.retry_after.map(|wait| wait.as_millis().to_string()));
    if let Some(origin) = &error.origin {
        insert("provider", Some(origin.provider.clone()));
        insert("model", Some(origin.model.clone()));
        insert("check", Some(origin.variables_to_check.join(", ")));
        insert("address", origin.address_hint.map(|hint| wording::address_hint(language, hint).to_owned()));
    }
    details
}
