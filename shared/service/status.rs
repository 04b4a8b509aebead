//! Errors as gRPC statuses with details: `google.rpc` messages in `grpc-status-details-bin`.

use std::{collections::HashMap, time::Duration};

use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    error::{AdmissionError, ConversationError, LimitExceeded, RpcError},
    wording,
};
use crate::{
    conversation::QuotaKind,
    embedding::EmbedError,
    error::InvalidArgument,
    identity::{AuthnError, CredentialError},
    language::Language,
    memory::MemoryError,
};

/// Retry delay after a short failure of this service.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The name of the bound on open streams among quotas.
pub(super) const OPEN_STREAMS: &str = "open_streams";
/// Longest pushback. A gateway that retries by itself is silent meanwhile, and a person waits for it.
const MAX_PUSHBACK: Duration = Duration::from_secs(3);

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
        AdmissionError::LimitExceeded(exceeded) => limit_exceeded(exceeded, language),
        AdmissionError::Overloaded => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            with_pushback(Code::Unavailable, wording::overloaded(language), details, RETRY_AFTER)
        }
        AdmissionError::TooManyReaders => {
            let message = wording::too_many_readers(language);
            let mut details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            details.add_quota_failure_violation(OPEN_STREAMS, message);
            with_pushback(Code::ResourceExhausted, message, details, RETRY_AFTER)
        }
    }
}

fn limit_exceeded(LimitExceeded { quota, limit, retry_after }: &LimitExceeded, language: Language) -> Status {
    let message = match retry_after {
        Some(_) => wording::limit_exceeded(language, *quota, *limit),
        None => wording::request_above_limit(language, *quota, *limit),
    };
    let mut details = ErrorDetails::new();
    if retry_after.is_some() {
        details.set_retry_info(*retry_after);
    }
    details.add_quota_failure_violation(quota.name(), &message);
    with_pushback(Code::ResourceExhausted, &message, details, *retry_after)
}

pub(super) fn shutting_down(language: Language) -> Status {
    unavailable(wording::shutting_down(language))
}

pub(super) fn token_expired(language: Language) -> Status {
    authn(&AuthnError::Unauthenticated(CredentialError::Expired), language)
}

fn unavailable(message: &str) -> Status {
    Status::with_error_details(Code::Unavailable, message, ErrorDetails::with_retry_info(Some(RETRY_AFTER)))
}

/// Pushback for clients that retry automatically, in milliseconds; -1 = do not retry
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md>).
fn with_pushback(code: Code, message: &str, details: ErrorDetails, retry_after: impl Into<Option<Duration>>) -> Status {
    let retry_after = retry_after.into().filter(|delay| *delay <= MAX_PUSHBACK);
    let milliseconds = retry_after.and_then(|delay| i64::try_from(delay.as_millis()).ok()).unwrap_or(-1);
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(milliseconds));
    Status::with_error_details_and_metadata(code, message, details, metadata)
}

impl RpcError for MemoryError {
    fn defect() -> Self {
        Self::Internal
    }

    fn is_store_down(&self) -> bool {
        use sqlx::Error::{Io, PoolClosed, PoolTimedOut, Tls};
        matches!(self, Self::Timeout | Self::Database(PoolTimedOut | PoolClosed | Io(_) | Tls(_)))
    }

    /// UNAVAILABLE where a retry may help, else INTERNAL. The cause is only logged.
    fn status(&self, language: Language) -> Status {
        match self {
            Self::NotFound => Status::not_found(wording::memory_not_found(language)),
            Self::EmbeddingBudgetExceeded { bytes_per_day, retry_after } => {
                let (quota, limit) = (QuotaKind::EmbeddedBytesPerDay, *bytes_per_day);
                limit_exceeded(&LimitExceeded { quota, limit, retry_after: *retry_after }, language)
            }
            Self::Database(sqlx::Error::Configuration(_)) => {
                Status::failed_precondition(wording::memory_not_configured(language))
            }
            Self::Invalid(error) => invalid_argument(error, language),
            error if error.is_contended() => {
                tracing::warn!(%error, "a memory write waited for others");
                unavailable(wording::memory_contended(language))
            }
            Self::PartlyDeleted => {
                tracing::warn!("a deletion of memories waited for others, after a part was deleted");
                unavailable(wording::memories_partly_deleted(language))
            }
            error if error.is_transient() => {
                tracing::warn!(%error, "memory store unavailable");
                unavailable(wording::memory_unavailable(language))
            }
            error => {
                tracing::error!(%error, "memory call failed");
                Status::internal(match error {
                    Self::Embedding(EmbedError::Rejected(401 | 403)) => wording::embedding_key_refused(language),
                    _ => wording::memory_failed(language),
                })
            }
        }
    }
}

impl RpcError for ConversationError {
    fn defect() -> Self {
        Self::Defect
    }

    fn is_store_down(&self) -> bool {
        matches!(self, Self::Store(_) | Self::DeletionIncomplete(_))
    }

    fn status(&self, language: Language) -> Status {
        match self {
            Self::Disabled => Status::failed_precondition(wording::conversations_disabled(language)),
            Self::NotFound => Status::not_found(wording::session_not_found(language)),
            Self::Store(error) => {
                tracing::warn!(%error, "conversation store unavailable");
                unavailable(wording::store_unavailable(language))
            }
            Self::DeletionIncomplete(_) => {
                tracing::warn!(error = %self, "conversation store unavailable");
                unavailable(wording::deletion_incomplete(language))
            }
            Self::Defect => Status::internal(wording::conversations_failed(language)),
        }
    }
}
