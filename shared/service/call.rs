//! Every RPC: authentication, its log span, its place in the drain, and one log line when it ends.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Extensions, Request, Response, Status, metadata::MetadataMap};
use tracing::{Instrument as _, Span, field, info_span};

use super::{
    caller_language::CallerLanguage,
    checked_caller,
    drain::Drain,
    error::{AdmissionError, RpcError},
    frame::FrameKind,
    limits::{CallKind, RunningCall, UserLimits},
    status,
};
use crate::{
    conversation::ConversationStore,
    error::{InvalidArgument, Problem},
    identity::{Authenticator, AuthnError, Principal, RequestId, SessionId, TraceId, UserId},
    language::Language,
    proto::agent_v1 as pb,
};

pub(super) type RpcResult<T> = Result<Response<T>, Status>;

#[derive(Clone)]
pub(super) struct RpcContext {
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) limits: Arc<UserLimits>,
    pub(super) drain: Drain,
    /// The stored profiles of users, for the language of refusals. `None` = conversations are not stored.
    pub(super) profiles: Option<Arc<dyn ConversationStore>>,
}

/// Taken from the body of a request, not verified.
pub(super) struct ClaimedUser<'a> {
    pub(super) id: &'a str,
    /// Only a chat has a profile.
    pub(super) is_pro: bool,
}

/// A request whose body may name its user.
pub(super) trait UserRequest: prost::Message {
    const KIND: CallKind;

    fn take_user_id(&mut self) -> String;
}

macro_rules! user_requests {
    ($kind:ident: $($request:ident),+) => {
        $(impl UserRequest for pb::$request {
            const KIND: CallKind = CallKind::$kind;

            fn take_user_id(&mut self) -> String {
                std::mem::take(&mut self.user_id)
            }
        })+
    };
}

user_requests!(Write: AddMemoriesRequest, IngestDocumentRequest, UpdateMemoryRequest, DeleteMemoriesRequest);
user_requests!(Write: DeleteSessionsRequest);
user_requests!(Other: MemoryQuery, ListMemoriesRequest, ListSessionsRequest, GetSessionRequest, RenameSessionRequest);
user_requests!(Control: CancelTurnRequest);

impl RpcContext {
    /// `request_id` is the call's trace where the metadata names none.
    pub(super) fn begin_call(&self, method: &'static str, metadata: &MetadataMap, request_id: &str) -> RpcCall {
        let header = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let trace = TraceId::from_call(header("traceparent"), header("x-trace-id"), request_id);
        RpcCall::new(method, trace, &self.drain)
    }

    /// Authenticates the caller and counts the call, before anything else is done for it. Every call comes through here, so that
    /// none is without a limit.
    pub(super) async fn admit_caller(
        &self,
        rpc: &RpcCall,
        claimed: ClaimedUser<'_>,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Principal, AdmissionError> {
        let caller = self.authenticate(claimed.id, metadata, extensions).await?;
        rpc.set_user(&caller.user);
        self.limits.take_call(&caller, claimed.is_pro)?;
        Ok(caller)
    }

    async fn authenticate(
        &self,
        body_user: &str,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Principal, AuthnError> {
        let caller = checked_caller::caller(&self.authenticator, extensions, metadata.as_ref()).await?;
        let users: Result<Vec<_>, _> = metadata.get_all("user-id").iter().map(|value| value.to_str()).collect();
        let users = users.map_err(|_| InvalidArgument::new("user_id", Problem::NotVisibleAscii))?;
        caller.act_for(body_user, &users)
    }

    pub(super) async fn unary<Message: UserRequest, Command, Answer, Work, Error: RpcError>(
        &self,
        method: &'static str,
        request: Request<Message>,
        parse: impl FnOnce(Message) -> Result<Command, InvalidArgument>,
        handler: impl FnOnce(UserId, Command) -> Work,
    ) -> RpcResult<Answer>
    where
        Work: Future<Output = Result<Answer, Error>>,
    {
        self.unary_by_plan(method, request, parse, |principal, command| handler(principal.user, command)).await
    }

    /// As [`unary`](Self::unary), for a handler whose limits depend on the plan of the user.
    pub(super) async fn unary_by_plan<Message: UserRequest, Command, Answer, Work, Error: RpcError>(
        &self,
        method: &'static str,
        request: Request<Message>,
        parse: impl FnOnce(Message) -> Result<Command, InvalidArgument>,
        handler: impl FnOnce(Principal, Command) -> Work,
    ) -> RpcResult<Answer>
    where
        Work: Future<Output = Result<Answer, Error>>,
    {
        let (metadata, extensions, mut request) = request.into_parts();
        let mut rpc = self.begin_call(method, &metadata, "");
        let caller = CallerLanguage::of_call(&metadata);
        let entering = self.enter(&rpc, &mut request, &metadata, &extensions);
        let entered = Box::pin(entering).await.map_err(|error| rpc.reject(&error, caller.resolve("")));
        let (principal, _running) = entered?;
        let user = principal.user.clone();
        let command = match parse(request) {
            Ok(command) => command,
            Err(error) => return Err(rpc.reject(&error.into(), self.language_of(&caller, &user).await)),
        };
        let handled = handler(principal, command);
        let result = AssertUnwindSafe(handled).catch_unwind().instrument(rpc.span.clone()).await;
        match result.unwrap_or_else(|_panic| Err(Error::defect())) {
            Ok(answer) => {
                rpc.succeed();
                Ok(Response::new(answer))
            }
            Err(error) => {
                let language = match error.is_store_down() {
                    true => caller.resolve(""),
                    false => self.language_of(&caller, &user).await,
                };
                let status = rpc.span.in_scope(|| error.status(language));
                Err(rpc.fail(status))
            }
        }
    }

    async fn enter<Message: UserRequest>(
        &self,
        rpc: &RpcCall,
        request: &mut Message,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<(Principal, Option<RunningCall>), AdmissionError> {
        let user = request.take_user_id();
        let claimed = ClaimedUser { id: &user, is_pro: false };
        let caller = self.admit_caller(rpc, claimed, metadata, extensions).await?;
        let running = self.limits.enter(&caller, Message::KIND, request.encoded_len()).await?;
        Ok((caller, running))
    }

    /// Boxed, because only refusals need it.
    async fn language_of(&self, caller: &CallerLanguage, user: &UserId) -> Language {
        Box::pin(caller.resolve_for(user, self.profiles.as_ref())).await
    }
}

/// Dropping it writes the log line, so that a cancelled call is logged as well.
pub(super) struct RpcCall {
    method: &'static str,
    span: Span,
    trace: TraceId,
    started: Instant,
    first_delta: Option<Duration>,
    frames: u32,
    outcome: &'static str,
    _in_flight: TaskTrackerToken,
}

impl RpcCall {
    pub(super) fn new(method: &'static str, trace: TraceId, drain: &Drain) -> Self {
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
            trace,
            started: Instant::now(),
            first_delta: None,
            frames: 0,
            outcome: "cancelled",
            _in_flight: drain.track_call(),
        }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn trace(&self) -> &TraceId {
        &self.trace
    }

    pub(super) fn set_user(&self, user: &UserId) {
        self.span.record("user", user.digest());
    }

    /// All fields at once, because a JSON span is formatted again with each record.
    pub(super) fn set_request(&self, session: &SessionId, request: &RequestId, model: &str) {
        tracing::record_all!(self.span, session = session.as_str(), request = request.as_str(), model = model);
    }

    /// For the log line of the call.
    pub(super) fn outcome(&self) -> &'static str {
        self.outcome
    }

    pub(super) fn reject(&mut self, error: &AdmissionError, language: Language) -> Status {
        self.outcome = match error {
            AdmissionError::InvalidArgument(_) | AdmissionError::Authn(AuthnError::Invalid(_)) => "invalid_argument",
            AdmissionError::Authn(AuthnError::PermissionDenied) => "permission_denied",
            AdmissionError::Authn(_) => "unauthenticated",
            AdmissionError::StoreUnavailable(_) => "unavailable",
            AdmissionError::Busy { .. } => "busy",
            AdmissionError::LimitExceeded(_) => "over_limit",
            AdmissionError::Overloaded => "overloaded",
            AdmissionError::TooManyReaders => "too_many_readers",
        };
        self.span.in_scope(|| match error {
            AdmissionError::StoreUnavailable(error) => tracing::warn!(%error, "conversation store unavailable"),
            error => tracing::debug!(%error, "call rejected"),
        });
        status::admission(error, language)
    }

    pub(super) fn succeed(&mut self) {
        self.outcome = "ok";
    }

    pub(super) fn fail(&mut self, status: Status) -> Status {
        self.outcome = match status.code() {
            Code::Unavailable => "unavailable",
            Code::Unauthenticated => "token_expired",
            Code::NotFound => "not_found",
            Code::FailedPrecondition => "failed_precondition",
            Code::ResourceExhausted => "over_limit",
            _ => "internal",
        };
        status
    }

    pub(super) fn record_frame(&mut self, kind: FrameKind) {
        self.frames += 1;
        match kind {
            FrameKind::Delta => {
                self.first_delta.get_or_insert_with(|| self.started.elapsed());
            }
            FrameKind::Last { outcome } => self.outcome = outcome,
            FrameKind::Other => {}
        }
    }
}

impl Drop for RpcCall {
    fn drop(&mut self) {
        let _in_span = self.span.enter();
        tracing::info!(
            frames = (self.frames > 0).then_some(self.frames),
            ttft_ms = self.first_delta.map(milliseconds),
            elapsed_ms = milliseconds(self.started.elapsed()),
            outcome = self.outcome,
            "{} ended",
            self.method
        );
    }
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
