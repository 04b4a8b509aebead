//! Errors of the gRPC layer; `status` maps each of them to a gRPC status. A failure after the first frame is a
//! [`TurnFailure`](crate::chat::TurnFailure) and becomes an error frame instead.

use std::time::Duration;

use tonic::Status;

use crate::{
    conversation::{QuotaKind, StoreError},
    error::InvalidArgument,
    identity::AuthnError,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum AdmissionError {
    #[error(transparent)]
    InvalidArgument(#[from] InvalidArgument),
    #[error(transparent)]
    Authn(#[from] AuthnError),
    #[error(transparent)]
    StoreUnavailable(#[from] StoreError),
    #[error("another request of the session is running")]
    Busy { retry_after: Duration },
    #[error("quota exceeded: {}", quota.name())]
    QuotaExceeded { quota: QuotaKind, retry_after: Duration },
    #[error("no concurrency permit is left")]
    Overloaded,
}

pub(super) trait RpcError {
    /// The error for a panic of the handler.
    fn defect() -> Self;

    fn status(&self) -> Status;
}

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
