//! Errors of the gRPC layer; `status` maps each of them to a gRPC status. A failure after the first frame is a
//! [`TurnFailure`](crate::chat::TurnFailure) and becomes an error frame instead.

use std::time::Duration;

use tonic::Status;

use crate::{
    conversation::{QuotaKind, StoreError},
    error::InvalidArgument,
    identity::AuthnError,
    language::Language,
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
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
    #[error("no concurrency permit is left")]
    Overloaded,
    #[error("the user or the process has too many open streams")]
    TooManyReaders,
}

impl AdmissionError {
    /// The user's profile is not asked for: the store does not answer, or it is spared because load is shed.
    pub(super) fn spares_store(&self) -> bool {
        matches!(self, Self::StoreUnavailable(_) | Self::Overloaded | Self::LimitExceeded(_) | Self::TooManyReaders)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("quota exceeded: {} = {limit}", quota.name())]
pub(super) struct LimitExceeded {
    pub(super) quota: QuotaKind,
    pub(super) limit: u64,
    /// `None` = never: the request alone exceeds the limit.
    pub(super) retry_after: Option<Duration>,
}

impl LimitExceeded {
    /// In whole milliseconds, as clients are told, and rounded up: a client that comes back then is not early.
    pub(super) fn after(wait: Duration, quota: QuotaKind, limit: u64) -> Self {
        let milliseconds = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Self { quota, limit, retry_after: Some(Duration::from_millis(milliseconds)) }
    }
}

pub(super) trait RpcError {
    /// The error for a panic of the handler.
    fn defect() -> Self;

    /// The user's database does not answer, so that their profile need not be asked for.
    fn is_store_down(&self) -> bool;

    fn status(&self, language: Language) -> Status;
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ConversationError {
    #[error("conversations are not stored")]
    Disabled,
    #[error("the session does not exist")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("sessions were not all deleted: {0}")]
    DeletionIncomplete(StoreError),
    #[error("internal defect")]
    Defect,
}
