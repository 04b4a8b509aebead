//! Errors as gRPC statuses with details: `google.rpc` messages in `grpc-status-details-bin`.

use std::{collections::HashMap, time::Duration};

use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    error::{AdmissionError, ConversationError, RpcError},
    wording,
};
use crate::{
    conversation::StoreError,
    embedding::EmbedError,
    error::InvalidArgument,
    identity::{AuthnError, CredentialError},
    language::Language,
    memory::MemoryError,
};

/// Retry delay after a short failure of this service.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest pushback. Automatic retries beyond it help no person who waits.
const MAX_PUSHBACK: Duration = Duration::from_secs(60);

pub(super) fn authn(error: &AuthnError, language: Language) -> Status {
    match error {
        AuthnError::Invalid(error) => invalid_argument(error, language),
        AuthnError::Unauthenticated(error) => {
            let message = wording::credential_error(language, *error);
            match error {
                CredentialError::KeysUnavailable => unavailable(message),
                _ => Status::unauthenticated(message),
            }
        }
        AuthnError::PermissionDenied => Status::permission_denied(wording::permission_denied(language)),
    }
}

pub(super) fn invalid_argument(error: &InvalidArgument, language: Language) -> Status {
    let message = error.describe(language);
    let details = ErrorDetails::with_bad_request_violation(error.field.as_str(), message.as_str());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

pub(super) fn admission(error: &AdmissionError, language: Language) -> Status {
    match error {
        AdmissionError::InvalidArgument(error) => invalid_argument(error, language),
        AdmissionError::Authn(error) => authn(error, language),
        AdmissionError::StoreUnavailable(_) => unavailable(wording::store_unavailable(language)),
        AdmissionError::Busy { retry_after } => {
            let mut details = ErrorDetails::with_error_info("CONFLICT", "agent.v1", HashMap::<String, String>::new());
            details.set_retry_info(Some(*retry_after));
            Status::with_error_details(Code::Aborted, wording::session_busy(language), details)
        }
        AdmissionError::QuotaExceeded { quota, retry_after } => {
            let message = wording::quota_exceeded(language, *quota);
            let mut details = ErrorDetails::with_retry_info(Some(*retry_after));
            details.add_quota_failure_violation(quota.name(), message);
            with_pushback(Code::ResourceExhausted, message, details, *retry_after)
        }
        AdmissionError::Overloaded => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            with_pushback(Code::Unavailable, wording::overloaded(language), details, RETRY_AFTER)
        }
    }
}

pub(super) fn shutting_down() -> Status {
    unavailable("the server is shutting down; try again")
}

fn unavailable(message: &str) -> Status {
    Status::with_error_details(Code::Unavailable, message, ErrorDetails::with_retry_info(Some(RETRY_AFTER)))
}

/// Pushback for clients that retry automatically, in milliseconds; -1 = do not retry
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md>).
fn with_pushback(code: Code, message: &str, details: ErrorDetails, retry_after: Duration) -> Status {
    let milliseconds =
        if retry_after > MAX_PUSHBACK { -1 } else { i64::try_from(retry_after.as_millis()).unwrap_or(-1) };
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(milliseconds));
    Status::with_error_details_and_metadata(code, message, details, metadata)
}

impl RpcError for MemoryError {
    fn defect() -> Self {
        Self::Internal
    }

    /// UNAVAILABLE where a retry may help, else INTERNAL. The cause is only logged.
    fn status(&self) -> Status {
        match self {
            Self::NotFound => Status::not_found("id names no memory of this user"),
            Self::Database(sqlx::Error::Configuration(_)) => {
                Status::failed_precondition("this service has no memory; its operator can set DATABASE_URL")
            }
            error if error.is_transient() => {
                tracing::warn!(%error, "memory store unavailable");
                unavailable("the memory cannot be reached right now; try again")
            }
            error => {
                tracing::error!(%error, "memory call failed");
                Status::internal(match error {
                    Self::Embedding(EmbedError::Rejected(401 | 403)) => {
                        "the embedding provider refused the service's key; its operator should check EMBEDDING_API_KEY"
                    }
                    _ => "the memory failed",
                })
            }
        }
    }
}

impl RpcError for ConversationError {
    fn defect() -> Self {
        Self::Defect
    }

    fn status(&self) -> Status {
        match self {
            Self::Disabled => {
                Status::failed_precondition("this service stores no conversations; its operator can set CONVERSATIONS")
            }
            Self::NotFound => Status::not_found("session_id names no conversation of this user"),
            Self::Store(error) => store_error(error),
            Self::Defect => Status::internal("the conversations failed"),
        }
    }
}

fn store_error(error: &StoreError) -> Status {
    tracing::warn!(%error, "conversation store unavailable");
    unavailable(wording::store_unavailable(Language::default()))
}
