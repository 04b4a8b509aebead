//! Refusals before the first frame, as gRPC statuses with their details (`google.rpc` messages).

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{error::InvalidArgument, language::Language, memory::MemoryError};

/// How long a caller should wait before it tries again after a short trouble of ours.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// INVALID_ARGUMENT that names the field.
pub(super) fn invalid_argument(error: &InvalidArgument, language: Language) -> Status {
    let message = error.describe(language);
    let details = ErrorDetails::with_bad_request_violation(error.field.as_str(), message.as_str());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// UNAVAILABLE where trying again may help, INTERNAL otherwise. The cause is for the log only.
pub(super) fn memory_failure(error: &MemoryError) -> Status {
    if error.is_transient() {
        tracing::warn!(%error, "the memory is out of reach");
        let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
        Status::with_error_details(Code::Unavailable, "the memory can not be reached right now; try again", details)
    } else {
        tracing::error!(%error, "the memory failed");
        Status::internal("the memory failed")
    }
}
