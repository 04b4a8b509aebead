//! Admission: everything that can refuse a chat before its first frame. It takes at most one round trip to the conversation
//! store, plus one for a tool result.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

use super::{
    call::RpcCall,
    caller_language::decode_profile,
    envelope::Envelope,
    error::{AdmissionError, LimitExceeded},
    frame::FrameBuilder,
    frame_source::{DirectChat, DirectFrames, FrameSource},
    heartbeat::StreamStart,
    limits::{TokenCount, UserLimits, chat_limit},
    open_streams::{OpenStreamGuard, OpenStreams},
    parse::chat::{self, ChatCall, ChatInput, IncomingChat, LAST_RESPONSE_ID},
    run::{AdmittedRun, FrameLog, RunRegistry, SessionWait, StoredRun, events_or_defect},
    token_end,
};
use crate::{
    chat::{Assistant, HISTORY_TOKEN_BUDGET, ResumedTurn, Stage, ToolResult, TurnEvent, TurnFailure, TurnInput},
    conversation::{AdmitOutcome, AdmittedLease, History, NewRun, RunKey, ToolResultOutcome},
    error::{InvalidArgument, Problem},
    proto::chat_frame::FramePosition,
};

pub(super) struct Admission {
    pub(super) assistant: Arc<Assistant>,
    /// `None` = conversations are not stored.
    pub(super) runs: Option<RunRegistry>,
    pub(super) limits: Arc<UserLimits>,
    pub(super) streams: OpenStreams,
    pub(super) permits: Arc<Semaphore>,
}

pub(super) struct AdmittedCall {
    pub(super) envelope: Envelope,
    pub(super) source: FrameSource,
    pub(super) start: StreamStart,
    /// `None` = the call holds a concurrency permit.
    pub(super) open_stream: Option<OpenStreamGuard>,
    /// When the stream ends whose run goes on.
    pub(super) token_end: Option<Instant>,
}

struct PreparedCall {
    call: ChatCall,
    envelope: Envelope,
    /// A call that attaches to a run needs no permit, so a missing one is no error yet.
    permit: Result<OwnedSemaphorePermit, AdmissionError>,
    token_end: Option<Instant>,
}

/// A run that the store has admitted, before its turn exists.
struct StartedRun {
    call: ChatCall,
    envelope: Envelope,
    lease: AdmittedLease,
    stored_profile: Option<Vec<u8>>,
    history: Option<History>,
    permit: OwnedSemaphorePermit,
}

impl Admission {
    /// `interrupted` ends the turn from outside: the server shuts down, or the call's deadline passes.
    pub(super) async fn admit(
        &self,
        rpc: &RpcCall,
        incoming: IncomingChat<'_>,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> Result<AdmittedCall, AdmissionError> {
        let token_end = token_end::stream_end(&incoming.principal);
        let call = chat::parse(incoming)?;
        if let Some(model) = call.model()
            && !self.assistant.model.allows(model)
        {
            return Err(InvalidArgument::new("config.model", Problem::UnknownModel).into());
        }
        rpc.set_request(&call.session, &call.request, self.assistant.model.name(call.model()));
        let envelope = Envelope::new(call.session.clone(), &call.request, rpc.trace());
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| AdmissionError::Overloaded);
        let prepared = PreparedCall { call, envelope, permit, token_end };
        match &self.runs {
            Some(runs) => Box::pin(self.start_or_attach(runs, prepared, interrupted)).await,
            None => self.start_direct(prepared, interrupted),
        }
    }

    fn start_direct(
        &self,
        PreparedCall { call, envelope, permit, token_end }: PreparedCall,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> Result<AdmittedCall, AdmissionError> {
        if call.last_response_id.is_some() {
            return Err(unknown_frame().into());
        }
        let builder = FrameBuilder::new(call.language.resolve(""), call.full_citations);
        let builder = builder.degraded(self.runs.is_some());
        // A pending turn would be in the store.
        let ChatInput::Message(input) = call.input else { return Err(unknown_tool_call().into()) };
        // Before the limits, so that a call that is shed costs its user nothing.
        let permit = permit?;
        let count = if self.runs.is_some() { TokenCount::StoreDown } else { TokenCount::InProcess };
        let open = self.limits.open_chat(&call.user, call.is_pro, count)?;
        let open = open.map(|open| DirectChat::new(open, &input));
        let interrupted = token_end::or_token_expired(interrupted, token_end);
        let events = Box::pin(self.assistant.clone().run_turn(*input, interrupted));
        let events = events_or_defect(events);
        let source = FrameSource::Direct(DirectFrames::new(events, builder, permit, open));
        Ok(AdmittedCall { envelope, source, start: StreamStart::default(), open_stream: None, token_end: None })
    }

    /// Starts a run, or attaches to the one that an earlier call with this request id started.
    async fn start_or_attach(
        &self,
        runs: &RunRegistry,
        PreparedCall { call, envelope, permit, token_end }: PreparedCall,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> Result<AdmittedCall, AdmissionError> {
        if !self.streams.may_open(&call.user, &call.request) {
            return Err(AdmissionError::TooManyReaders);
        }
        let resumes = call.last_response_id.is_some();
        let run = NewRun {
            key: RunKey { user: call.user.clone(), session: call.session.clone(), request: call.request.clone() },
            fingerprint: call.fingerprint,
            head: envelope.to_bytes(),
            takes_session: matches!(call.input, ChatInput::Message(_)),
            resumes: resumes || permit.is_err(),
            quotas: self.limits.chat_quotas(call.is_pro),
            history_budget: matches!(call.input, ChatInput::Message(_)).then_some(HISTORY_TOKEN_BUDGET),
        };
        let outcome = match runs.admit(&run).await {
            Err(error) if error.is_unreachable() && call.is_self_contained && !resumes => {
                tracing::warn!(%error, "conversation store unreachable; the turn runs without persistence");
                return self.start_direct(PreparedCall { call, envelope, permit, token_end }, interrupted);
            }
            outcome => outcome?,
        };
        match outcome {
            AdmitOutcome::Started { lease, profile: stored_profile, history } => {
                let run = StartedRun { call, envelope, lease, stored_profile, history, permit: permit? };
                let admitted = self.start_run(runs, run, interrupted).await?;
                Ok(AdmittedCall { token_end, ..admitted })
            }
            AdmitOutcome::Known { fingerprint, .. } if fingerprint != call.fingerprint => {
                Err(InvalidArgument::new("request_id", Problem::UsedForAnotherRequest).into())
            }
            AdmitOutcome::Known { .. } => {
                // Before anything is read for it.
                let open_stream = self.streams.open_reader(&call.user, &call.request).await;
                let open_stream = open_stream.ok_or(AdmissionError::TooManyReaders)?;
                let admitted = attach(runs, call).await?;
                Ok(AdmittedCall { open_stream: Some(open_stream), token_end, ..admitted })
            }
            AdmitOutcome::Unknown if resumes => Err(unknown_frame().into()),
            // Without a permit the store was only asked for a known run.
            AdmitOutcome::Unknown => Err(AdmissionError::Overloaded),
            AdmitOutcome::Busy { retry_after } => Err(AdmissionError::Busy { retry_after }),
            AdmitOutcome::QuotaExceeded { quota, retry_after } => {
                let limit = run.quotas.and_then(|quotas| chat_limit(quotas, quota)).unwrap_or_default();
                Err(LimitExceeded { quota, limit, retry_after: Some(retry_after) }.into())
            }
        }
    }

    /// Until a driver starts, dropping the call drops the lease, which revokes the admission.
    async fn start_run(
        &self,
        runs: &RunRegistry,
        run: StartedRun,
        interrupted: impl Future<Output = TurnFailure> + Send + 'static,
    ) -> Result<AdmittedCall, AdmissionError> {
        let StartedRun { call, envelope, lease, stored_profile, history, permit } = run;
        let ChatCall { user, input, language, full_citations, .. } = call;
        let stored = decode_profile(stored_profile);
        let assistant = self.assistant.clone();
        let admitted = |lease: AdmittedLease, fallback_tag: &str, changed_profile| AdmittedRun {
            lease: lease.take(),
            envelope: envelope.clone(),
            builder: FrameBuilder::new(language.resolve(fallback_tag), full_citations),
            changed_profile,
            permit,
        };
        let reader = match input {
            ChatInput::Message(input) => {
                let profile = input.profile.clone().with_defaults_from(stored.clone());
                let changed = (profile != stored).then(|| serde_json::to_vec(&profile).ok()).flatten();
                let language = language.resolve(&profile.language_tag);
                let held = Some(lease.lease().clone());
                let input = TurnInput { lease: held, stored_history: history, profile, language, ..*input };
                let run = admitted(lease, &input.profile.language_tag, changed);
                runs.start(run, |stop| Box::pin(assistant.run_turn(input, first(stop, interrupted))))
            }
            ChatInput::ToolResult(result) => match self.record_tool_result(runs, lease, result).await? {
                (lease, None) => {
                    let run = admitted(lease, &stored.language_tag, None);
                    runs.start(run, |_| Box::pin(Assistant::await_more_results()))
                }
                (lease, Some(turn)) => {
                    // A tool result need not repeat the profile of its turn.
                    let run = admitted(lease, turn.language_tag(), None);
                    runs.start(run, |stop| Box::pin(assistant.resume_turn(*turn, first(stop, interrupted))))
                }
            },
        };
        let open_stream = Some(self.streams.open_started(&user, reader.log().clone()));
        let source = FrameSource::Live(reader);
        Ok(AdmittedCall { envelope, source, start: StreamStart::default(), open_stream, token_end: None })
    }

    /// The resumed turn, or `None` while other results are pending. A result that is not recorded takes its admission back:
    /// at once, so that the client's next request finds nothing of it, and otherwise by the drop of the lease.
    async fn record_tool_result(
        &self,
        runs: &RunRegistry,
        lease: AdmittedLease,
        result: ToolResult,
    ) -> Result<(AdmittedLease, Option<Box<ResumedTurn>>), AdmissionError> {
        let mut wait = SessionWait::start();
        let error = loop {
            break match self.assistant.record_tool_result(lease.lease(), &result).await {
                Ok(ToolResultOutcome::Pending) => return Ok((lease, None)),
                Ok(ToolResultOutcome::Complete(turn)) => return Ok((lease, Some(turn))),
                Ok(ToolResultOutcome::Busy { retry_after }) => {
                    match runs.wait_for_session(&lease.lease().key, &mut wait).await {
                        Ok(true) => continue,
                        Ok(false) => AdmissionError::Busy { retry_after },
                        Err(error) => error.into(),
                    }
                }
                Ok(ToolResultOutcome::Duplicate) => answered_tool_call().into(),
                Ok(ToolResultOutcome::UnknownCall) => unknown_tool_call().into(),
                Err(error) => error.into(),
            };
        };
        match runs.store.revoke_admission(lease.lease()).await {
            Ok(()) => drop(lease.take()),
            Err(error) => {
                tracing::warn!(%error, "the admission of a refused tool result was not revoked; it is tried again")
            }
        }
        Err(error)
    }
}

/// Attaches to a run behind the last frame that the client received.
async fn attach(runs: &RunRegistry, call: ChatCall) -> Result<AdmittedCall, AdmissionError> {
    match runs.find(&call.user, &call.request) {
        Some(log) => attach_to_live(runs, &log, &call),
        None => attach_to_stored(runs, call).await,
    }
}

fn attach_to_live(runs: &RunRegistry, log: &Arc<FrameLog>, call: &ChatCall) -> Result<AdmittedCall, AdmissionError> {
    let position = last_received(&log.envelope, call)?;
    let start = StreamStart { position, status: log.last_status(position.number), notice: None };
    let reader = runs.read(log, runs.address(&call.user, &call.request), position.number).ok_or_else(unknown_frame)?;
    let (envelope, source) = (log.envelope.clone(), FrameSource::Live(reader));
    Ok(AdmittedCall { envelope, source, start, open_stream: None, token_end: None })
}

async fn attach_to_stored(runs: &RunRegistry, call: ChatCall) -> Result<AdmittedCall, AdmissionError> {
    // The id of the stream is only known from the store, and checked then.
    let received = call.last_response_id.as_deref().map_or(0, Envelope::frame_number);
    let run = StoredRun::load(runs.address(&call.user, &call.request), received).await?;
    let Some(run) = run else { return Err(unknown_frame().into()) };
    let position = last_received(&run.envelope, &call)?;
    let envelope = run.envelope.clone();
    // Of an error frame for a run that is lost, and of its status until then.
    let language = Box::pin(call.language.resolve_for(&call.user, Some(&runs.store))).await;
    let mut builder = FrameBuilder::new(language, call.full_citations);
    // The frame that the client has may not be stored yet.
    let assumed = if received == 0 { Stage::Thinking } else { Stage::Generating { recall_failed: false } };
    let (status, notice) = match run.is_running() {
        true => (run.last_status().await?, Some(builder.waiting_status(assumed).content)),
        false => (None, None),
    };
    let assumed = || builder.build(TurnEvent::StageEntered(assumed)).map(|frame| frame.content);
    let start = StreamStart { position, status: status.or_else(assumed), notice };
    let frames = run.frames(builder).ok_or_else(unknown_frame)?;
    Ok(AdmittedCall { envelope, source: FrameSource::Replay(frames), start, open_stream: None, token_end: None })
}

/// The default if the client has received nothing.
fn last_received(envelope: &Envelope, call: &ChatCall) -> Result<FramePosition, InvalidArgument> {
    match &call.last_response_id {
        Some(id) => envelope.position(id).ok_or_else(unknown_frame),
        None => Ok(FramePosition::default()),
    }
}

async fn first(stop: oneshot::Receiver<TurnFailure>, interrupted: impl Future<Output = TurnFailure>) -> TurnFailure {
    tokio::select! {
        // A driver that is gone stops nothing.
        Ok(failure) = stop => failure,
        failure = interrupted => failure,
    }
}

fn unknown_tool_call() -> InvalidArgument {
    InvalidArgument::new("tool_result.tool_call_id", Problem::UnknownToolCall)
}

fn answered_tool_call() -> InvalidArgument {
    InvalidArgument::new("tool_result.tool_call_id", Problem::AnsweredToolCall)
}

fn unknown_frame() -> InvalidArgument {
    InvalidArgument::new(LAST_RESPONSE_ID, Problem::UnknownFrame)
}
