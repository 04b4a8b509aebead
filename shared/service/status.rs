//! Refusals before the first frame, as gRPC statuses with their details (`google.rpc` messages).

use std::{collections::HashMap, time::Duration};

use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{admission::AdmissionError, wording};
use crate::{
    conversation::StoreError,
    embedding::EmbedError,
    error::InvalidArgument,
    identity::{AuthnError, CredentialError},
    language::Language,
    memory::MemoryError,
};

/// How long a caller should wait before it tries again after a short trouble of ours.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest wait that a client which tries again by itself is told of: a person waits no longer.
const LONGEST_PUSHBACK: Duration = Duration::from_secs(60);

/// INVALID_ARGUMENT that names the field, UNAUTHENTICATED or PERMISSION_DENIED; UNAVAILABLE where nobody could be let in.
pub(super) fn refused(refusal: &AuthnError, language: Language) -> Status {
    let message = wording::refusal(language, refusal);
    match refusal {
        AuthnError::Invalid(error) => invalid_argument(error, language),
        AuthnError::Unauthenticated(CredentialError::KeysUnavailable) => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            Status::with_error_details(Code::Unavailable, message, details)
        }
        AuthnError::Unauthenticated(_) => Status::unauthenticated(message),
        AuthnError::PermissionDenied => Status::permission_denied(message),
    }
}

/// INVALID_ARGUMENT that names the field.
fn invalid_argument(error: &InvalidArgument, language: Language) -> Status {
    let message = error.describe(language);
    let details = ErrorDetails::with_bad_request_violation(error.field.as_str(), message.as_str());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// Why a chat does not begin: INVALID_ARGUMENT and its like, ABORTED where the conversation is busy, RESOURCE_EXHAUSTED over a
/// limit, UNAVAILABLE where the store or the process can not.
pub(super) fn turned_away(why: &AdmissionError, language: Language) -> Status {
    match why {
        AdmissionError::Authn(refusal) => refused(refusal, language),
        AdmissionError::StoreUnavailable(_) => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            Status::with_error_details(Code::Unavailable, wording::store_failure(language), details)
        }
        AdmissionError::Busy(retry_after) => {
            let mut details = ErrorDetails::with_error_info("CONFLICT", "agent.v1", HashMap::<String, String>::new());
            details.set_retry_info(Some(*retry_after));
            Status::with_error_details(Code::Aborted, wording::busy(language), details)
        }
        AdmissionError::QuotaExceeded(limit, retry_after) => {
            let message = wording::too_much(language, *limit);
            let mut details = ErrorDetails::with_retry_info(Some(*retry_after));
            details.add_quota_failure_violation(limit.name(), message);
            pushed_back(Code::ResourceExhausted, message, details, *retry_after)
        }
        AdmissionError::Overloaded => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            pushed_back(Code::Unavailable, wording::full(language), details, RETRY_AFTER)
        }
    }
}

/// UNAVAILABLE, because the store of conversations failed outside of a chat.
pub(super) fn store_failure(error: &StoreError) -> Status {
    tracing::warn!(%error, "the store of conversations is out of reach");
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, wording::store_failure(Language::default()), details)
}

/// A status that tells clients which try again by themselves when to do so: in milliseconds, or -1 for not at all
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md>, pushback).
fn pushed_back(code: Code, message: &str, details: ErrorDetails, retry_after: Duration) -> Status {
    let milliseconds =
        if retry_after > LONGEST_PUSHBACK { -1 } else { i64::try_from(retry_after.as_millis()).unwrap_or(-1) };
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(milliseconds));
    Status::with_error_details_and_metadata(code, message, details, metadata)
}

/// UNAVAILABLE where trying again may help, INTERNAL otherwise. The cause is for the log only.
pub(super) fn memory_failure(error: &MemoryError) -> Status {
    if matches!(error, MemoryError::NotFound) {
        Status::not_found("id names no memory of this user")
    } else if matches!(error, MemoryError::Database(sqlx::Error::Configuration(_))) {
        Status::failed_precondition("this service has no memory: whoever runs it should set DATABASE_URL")
    } else if error.is_transient() {
        tracing::warn!(%error, "the memory is out of reach");
        let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
        Status::with_error_details(Code::Unavailable, "the memory can not be reached right now; try again", details)
    } else {
        tracing::error!(%error, "the memory failed");
        Status::internal(match error {
            MemoryError::Embedding(EmbedError::Rejected(401 | 403)) => {
                "the embedding provider refused the service's key; whoever runs the service should check EMBEDDING_API_KEY"
            }
            _ => "the memory failed",
        })
    }
}

/// UNAVAILABLE because the server stops.
pub(super) fn stopping() -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, "the server is stopping; try again", details)
}
