//! Refusals before the first frame, as gRPC statuses with their details (`google.rpc` messages).

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::wording;
use crate::{
    conversation::StoreError,
    embedding::EmbedError,
    error::InvalidArgument,
    identity::{Refusal, Unproven},
    language::Language,
    memory::MemoryError,
};

/// How long a caller should wait before it tries again after a short trouble of ours.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// INVALID_ARGUMENT that names the field, UNAUTHENTICATED or PERMISSION_DENIED; UNAVAILABLE where nobody could be let in.
pub(super) fn refused(refusal: &Refusal, language: Language) -> Status {
    let message = wording::refusal(language, refusal);
    match refusal {
        Refusal::Invalid(error) => invalid_argument(error, language),
        Refusal::Unproven(Unproven::NoKeys) => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            Status::with_error_details(Code::Unavailable, message, details)
        }
        Refusal::Unproven(_) => Status::unauthenticated(message),
        Refusal::Foreign => Status::permission_denied(message),
    }
}

/// INVALID_ARGUMENT that names the field.
fn invalid_argument(error: &InvalidArgument, language: Language) -> Status {
    let message = error.describe(language);
    let details = ErrorDetails::with_bad_request_violation(error.field.as_str(), message.as_str());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// UNAVAILABLE, because the store of conversations can not be asked in time.
pub(super) fn store_failure(error: &StoreError, language: Language) -> Status {
    tracing::warn!(%error, "the store of conversations is out of reach");
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, wording::store_failure(language), details)
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
            MemoryError::Embedding(EmbedError::Refused(401 | 403)) => {
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
