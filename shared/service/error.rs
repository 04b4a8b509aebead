//! Errors of the gRPC layer; `status` maps each of them to a gRPC status. A failure after the first frame is a
//! [`TurnFailure`](crate::chat::TurnFailure) and becomes an error frame instead.

use std::time::Duration;

use tonic::Status;

use crate::{
    conversation::{QuotaKind, StoreError},
    error::InvalidArgument,
    identity::AuthnError,
};

/// A chat was refused before its first frame.
#[derive(Debug)]
pub(super) enum AdmissionError {
    InvalidArgument(InvalidArgument),
    Authn(AuthnError),
    StoreUnavailable(StoreError),
    /// Another request of the session is running.
    Busy {
        retry_after: Duration,
    },
    QuotaExceeded {
        quota: QuotaKind,
        retry_after: Duration,
    },
    /// The process has no concurrency permit left.
    Overloaded,
}

impl From<InvalidArgument> for AdmissionError {
    fn from(error: InvalidArgument) -> Self {
        Self::InvalidArgument(error)
    }
}

impl From<AuthnError> for AdmissionError {
    fn from(error: AuthnError) -> Self {
        match error {
            AuthnError::Invalid(error) => Self::InvalidArgument(error),
            error => Self::Authn(error),
        }
    }
}

impl From<StoreError> for AdmissionError {
    fn from(error: StoreError) -> Self {
        Self::StoreUnavailable(error)
    }
}

/// An error of a unary call.
pub(super) trait RpcError {
    /// The error for a panic of the handler.
    fn defect() -> Self;

    fn status(&self) -> Status;
}

/// An error of a `ConversationService` call.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConversationError {
    #[error("conversations are not stored")]
    Disabled,
    #[error("the session does not exist")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("internal defect")]
    Defect,
}
