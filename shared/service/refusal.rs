//! Refusals of a chat as error frames, for gateways that lose gRPC statuses. They say what the status says: its name is the code.

use std::{collections::BTreeMap, time::Duration};

use tonic::{Code, Status};

use super::error::{AdmissionError, LimitExceeded};
use crate::{
    identity::AuthnError,
    proto::agent_v1::{self as pb, ErrorCode},
};

pub(super) fn error(error: &AdmissionError, status: &Status) -> pb::Error {
    let (code, class) = code(status.code());
    pb::Error {
        code: code.to_owned(),
        message: status.message().to_owned(),
        retryable: matches!(status.code(), Code::Aborted | Code::ResourceExhausted | Code::Unavailable),
        details: details(error),
        error_code: class.into(),
    }
}

fn code(code: Code) -> (&'static str, ErrorCode) {
    match code {
        Code::InvalidArgument => ("INVALID_ARGUMENT", ErrorCode::InvalidArgument),
        Code::PermissionDenied => ("PERMISSION_DENIED", ErrorCode::Forbidden),
        Code::Aborted => ("ABORTED", ErrorCode::Conflict),
        Code::ResourceExhausted => ("RESOURCE_EXHAUSTED", ErrorCode::RateLimited),
        Code::Unavailable => ("UNAVAILABLE", ErrorCode::Unavailable),
        _ => ("INTERNAL", ErrorCode::Internal),
    }
}

/// The parts of the status's details that a client can use without `google.rpc`.
fn details(error: &AdmissionError) -> BTreeMap<String, String> {
    let entry = |name: &str, value: String| (name.to_owned(), value);
    let retry_after = |delay: Duration| entry("retry_after_ms", delay.as_millis().to_string());
    match error {
        AdmissionError::InvalidArgument(error) | AdmissionError::Authn(AuthnError::Invalid(error)) => {
            [entry("field", error.field.clone())].into()
        }
        AdmissionError::Busy { retry_after: delay } => {
            [entry("reason", "CONFLICT".to_owned()), retry_after(*delay)].into()
        }
        AdmissionError::LimitExceeded(LimitExceeded { quota, limit, retry_after: delay }) => {
            let entries = [entry("quota", quota.name().to_owned()), entry("limit", limit.to_string())];
            entries.into_iter().chain(delay.map(retry_after)).collect()
        }
        AdmissionError::TooManyReaders => {
            [entry("quota", super::status::OPEN_STREAMS.to_owned()), retry_after(super::status::RETRY_AFTER)].into()
        }
        AdmissionError::Authn(AuthnError::Unauthenticated(_))
        | AdmissionError::StoreUnavailable(_)
        | AdmissionError::Overloaded => [retry_after(super::status::RETRY_AFTER)].into(),
        AdmissionError::Authn(AuthnError::PermissionDenied) => BTreeMap::new(),
    }
}
