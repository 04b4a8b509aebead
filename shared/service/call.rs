//! One call: who makes it, the span it is logged under, and the line that tells how it ended.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Response, Status, metadata::MetadataMap};
use tracing::{Instrument as _, Span, field, info_span};

use super::{Drain, admission::AdmissionError, frames, status};
use crate::{
    error::{InvalidArgument, Problem},
    identity::{Authenticator, AuthnError, Credentials, Principal, RequestId, SessionId, TraceId, UserId},
    language::Language,
    memory::MemoryError,
    proto::agent_v1::{self as pb, chat_response::Content},
};

/// What every call passes: who calls is found out, and the call counts as under way.
#[derive(Clone)]
pub(super) struct RpcContext {
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) drain: Drain,
}

impl RpcContext {
    /// The caller's user.
    pub(super) async fn user(&self, body_user: &str, metadata: &MetadataMap) -> Result<UserId, AuthnError> {
        Ok(self.authenticate(body_user, metadata).await?.user)
    }

    /// Who calls.
    pub(super) async fn authenticate(&self, body_user: &str, metadata: &MetadataMap) -> Result<Principal, AuthnError> {
        let header = |name| metadata.get(name).map(|value| value.as_bytes());
        let user_id = metadata.get("user-id").map(|value| value.to_str()).transpose().map_err(|_| {
            InvalidArgument::new("user_id", Problem::Malformed { expected: "visible ASCII where it is call metadata" })
        })?;
        let claim = Credentials {
            body_user,
            user_id,
            authorization: header("authorization"),
            internal_api_key: header("x-internal-api-key"),
        };
        self.authenticator.authenticate(claim).await
    }
}

/// The caller's trace.
pub(super) fn trace_of(metadata: &MetadataMap, request_id: &str) -> TraceId {
    let header = |name| metadata.get(name).and_then(|value| value.to_str().ok());
    TraceId::from_call(header("traceparent"), header("x-trace-id"), request_id)
}

/// A call from its admission to its end. Dropping it logs one line.
pub(super) struct RpcCall {
    method: &'static str,
    span: Span,
    began: Instant,
    first_delta: Option<Duration>,
    frames: u32,
    outcome: &'static str,
    /// Keeps a stopping server waiting.
    _under_way: TaskTrackerToken,
}

impl RpcCall {
    pub(super) fn begin(method: &'static str, trace: &TraceId, drain: &Drain) -> Self {
        let span = info_span!(
            "call",
            method,
            trace = trace.as_str(),
            user = field::Empty,
            session = field::Empty,
            request = field::Empty,
            model = field::Empty,
        );
        Self {
            method,
            span,
            began: Instant::now(),
            first_delta: None,
            frames: 0,
            // What is true if nothing else happens before the call is dropped.
            outcome: "cancelled",
            _under_way: drain.track_call(),
        }
    }

    /// The span of everything that the call does.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Notes who calls.
    pub(super) fn set_user(&self, user: &UserId) {
        self.span.record("user", user.digest());
    }

    /// Notes what is asked for: all at once, because a span in JSON is written anew with each record.
    pub(super) fn set_request(&self, session: &SessionId, request: &RequestId, model: &str) {
        tracing::record_all!(self.span, session = session.as_str(), request = request.as_str(), model = model);
    }

    /// Ends a chat before it begins.
    pub(super) fn turned_away(&mut self, why: &AdmissionError, language: Language) -> Status {
        self.outcome = match why {
            AdmissionError::Authn(refusal) => return self.refused(refusal, language),
            AdmissionError::StoreUnavailable(_) => "unavailable",
            AdmissionError::Busy(_) => "busy",
            AdmissionError::QuotaExceeded(..) => "over_limit",
            AdmissionError::Overloaded => "overloaded",
        };
        self.span.in_scope(|| match why {
            AdmissionError::StoreUnavailable(error) => {
                tracing::warn!(%error, "the store of conversations is out of reach")
            }
            why => tracing::debug!(?why, "the call was turned away"),
        });
        status::turned_away(why, language)
    }

    /// Ends the call before it begins.
    pub(super) fn refused(&mut self, refusal: &AuthnError, language: Language) -> Status {
        self.outcome = match refusal {
            AuthnError::Invalid(_) => "invalid_argument",
            AuthnError::Unauthenticated(_) => "unauthenticated",
            AuthnError::PermissionDenied => "permission_denied",
        };
        self.span.in_scope(|| match refusal {
            AuthnError::Invalid(error) => tracing::debug!(field = error.field, "an argument was refused"),
            AuthnError::Unauthenticated(_) | AuthnError::PermissionDenied => {
                tracing::debug!(%refusal, "the caller was refused")
            }
        });
        status::refused(refusal, language)
    }

    /// Ends the call well.
    pub(super) fn succeed(&mut self) {
        self.outcome = "ok";
    }

    /// Ends the call by a status.
    pub(super) fn fail(&mut self, status: Status) -> Status {
        self.outcome = match status.code() {
            Code::Unavailable => "unavailable",
            Code::NotFound => "not_found",
            Code::FailedPrecondition => "failed_precondition",
            _ => "internal",
        };
        status
    }

    /// Notes a frame of an answer, before it is sent.
    pub(super) fn saw(&mut self, frame: &pb::ChatResponse) {
        self.frames += 1;
        if self.first_delta.is_none() && matches!(frame.content, Some(Content::Delta(_))) {
            self.first_delta = Some(self.began.elapsed());
        }
        self.outcome = match frame.finish_reason() {
            pb::FinishReason::Null => return,
            pb::FinishReason::Stop => "stop",
            pb::FinishReason::Length => "length",
            pb::FinishReason::ToolCalls => "tool_calls",
            pb::FinishReason::ContentFilter => "content_filter",
            pb::FinishReason::Continue => "continue",
            pb::FinishReason::Error => match &frame.content {
                Some(Content::Error(error)) => frames::outcome(&error.code),
                _ => "internal",
            },
        };
    }
}

impl Drop for RpcCall {
    fn drop(&mut self) {
        let _in_span = self.span.enter();
        tracing::info!(
            frames = (self.frames > 0).then_some(self.frames),
            ttft_ms = self.first_delta.map(milliseconds),
            elapsed_ms = milliseconds(self.began.elapsed()),
            outcome = self.outcome,
            "{} ended",
            self.method
        );
    }
}

/// Why the work of a call with one answer fails.
pub(super) trait RpcError {
    /// A defect of ours.
    fn defect() -> Self;

    /// What the caller is told.
    fn status(&self) -> Status;
}

impl RpcError for MemoryError {
    fn defect() -> Self {
        Self::Internal
    }

    fn status(&self) -> Status {
        status::memory_failure(self)
    }
}

/// A call with one answer: admit the caller, do the work, log how it ended.
pub(super) async fn unary<C, T, W, E>(
    method: &'static str,
    gate: &RpcContext,
    metadata: &MetadataMap,
    user_id: &str,
    command: Result<C, InvalidArgument>,
    work: impl FnOnce(UserId, C) -> W,
) -> Result<Response<T>, Status>
where
    W: Future<Output = Result<T, E>>,
    E: RpcError,
{
    let mut call = RpcCall::begin(method, &trace_of(metadata, ""), &gate.drain);
    let user = gate.user(user_id, metadata).await;
    let admitted = user.and_then(|user| Ok((user, command?)));
    let (user, command) = admitted.map_err(|refusal| call.refused(&refusal, Language::default()))?;
    call.span.record("user", user.digest());
    let done = AssertUnwindSafe(work(user, command)).catch_unwind().instrument(call.span.clone()).await;
    match done.unwrap_or(Err(E::defect())) {
        Ok(done) => {
            call.succeed();
            Ok(Response::new(done))
        }
        Err(error) => {
            let status = call.span.in_scope(|| error.status());
            Err(call.fail(status))
        }
    }
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
